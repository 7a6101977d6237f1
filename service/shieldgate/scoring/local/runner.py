"""Forward passes on a GPU: compiled layers, launches captured, and shapes that are warmed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from shieldgate.scoring.local.flex import (
    BLOCK,
    ROWS_PER_READ,
    Batch,
    FlexLayout,
    Masks,
    Shape,
    Tables,
    lay_out,
    shape_of,
)
from shieldgate.scoring.local.packing import Packed
from shieldgate.scoring.local.prefix_cache import PrefixKV, Trunk
from shieldgate.scoring.pack import Pack

# Up to here a pass is shorter than the launching of its kernels, so the launches are captured.
CAPTURED_ROWS = 4096
# Shapes with one block of rows are compiled apart, as sizes of one are.
SMALLEST = 2 * BLOCK

# Tiles of the attention kernel by the size of heads, where others are faster than the compiler's
# own: measured on an H200. They take more shared memory than smaller GPUs have.
TILES = {256: {"BLOCK_M": 128, "BLOCK_N": 64, "num_stages": 2, "num_warps": 8}}

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Stage:
    """Where one batch is laid out while another computes, and where its margins arrive."""

    tables: Tables
    margins: Tensor
    arrived: Any = None


@dataclass(slots=True)
class _Graph:
    graph: Any
    margins: Tensor


@dataclass(slots=True)
class ModelRunner:
    """Runs batches of packs through a model whose attention takes a FlexLayout.

    `forward` computes the margins of a layout. With `compiled`, `warm` compiles the layers of
    `model`, and on a GPU captures graphs; without, all is computed operation by operation.
    Two threads may be in `run` at once: one batch is laid out while the other's computes.
    """

    model: Any
    forward: Callable[[Packed], Tensor]
    window: int | None
    limit: Shape
    compiled: bool = True
    captured_rows: int = CAPTURED_ROWS
    options: dict[str, Any] = field(default_factory=dict)
    recompiles: int = 0
    """Graphs compiled since `warm`: each held a pass up, and should not have been."""
    _tables: Tables = field(init=False)
    _masks: Masks = field(init=False)
    _stages: SimpleQueue[_Stage] = field(init=False)
    _attention: Callable[..., Any] = field(init=False)
    _graphs: dict[int, _Graph] = field(init=False)
    _lock: Any = field(init=False)
    _compilations: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Take memory for the tables."""
        device = self.model.device
        self._tables = Tables(self.limit, device)
        self._masks = Masks(self._tables, self.window)
        self._attention = flex_attention
        self._graphs = {}
        self._lock = Lock()
        self._stages = SimpleQueue()
        if device.type == "cuda":
            for _ in range(2):
                margins = torch.empty(self.limit.rows // ROWS_PER_READ, pin_memory=True)
                event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                self._stages.put(_Stage(self._tables.pinned(), margins, event))
        else:
            margins = torch.empty(self.limit.rows // ROWS_PER_READ)
            self._stages.put(_Stage(self._tables, margins))

    def shape(self, packs: Sequence[Pack], memory: PrefixKV | None) -> Shape | None:
        """Choose the shape of a batch; None if it is larger than the limit."""
        shape = shape_of(packs, _known(packs, memory), self._bucket)
        fits = shape.rows <= self.limit.rows and shape.remembered <= self.limit.remembered
        return shape if fits else None

    def run(self, packs: Sequence[Pack], memory: PrefixKV | None, shape: Shape) -> list[float]:
        """Compute the margins of all branches."""
        stage = self._stages.get()
        try:
            batch = lay_out(stage.tables, packs, _known(packs, memory), shape, self.window)
            with self._lock:
                self._launch(stage, batch, memory)
            if stage.arrived is not None:
                stage.arrived.synchronize()
            return stage.margins[: batch.reads].tolist()
        finally:
            self._stages.put(stage)

    def _launch(self, stage: _Stage, batch: Batch, memory: PrefixKV | None) -> None:
        """Queue a batch on the device, behind those queued before."""
        if stage.tables is not self._tables:
            self._tables.tensor.copy_(stage.tables.tensor, non_blocking=True)
        graph = self._graphs.get(batch.shape.rows) if memory is None else None
        if graph is not None:
            graph.graph.replay()
            margins = graph.margins
        else:
            margins = self.forward(self._layout(batch, memory))
        stage.margins[: len(margins)].copy_(margins, non_blocking=True)
        if stage.arrived is not None:
            stage.arrived.record()
        self._watch(batch.shape)

    def _layout(self, batch: Batch, memory: PrefixKV | None) -> Any:
        shape = batch.shape
        return FlexLayout(
            ids=self._tables["ids"][: shape.rows],
            positions=self._tables["positions"][: shape.rows],
            reads=self._tables["reads"][: shape.rows // ROWS_PER_READ],
            masks=self._masks.of(shape),
            cap=self._masks.cap,
            attention=self._attention,
            options={"IS_DIVISIBLE": True} | self.options,  # by the kernel's tiles, as by BLOCK
            remembered=shape.remembered,
            memory=memory,
            trunks=batch.trunks,
        )

    def _bucket(self, rows: int) -> int:
        """Round up to a captured length; beyond those, to whole blocks."""
        rows = max(rows, SMALLEST)
        step = 2 * BLOCK if CAPTURED_ROWS // 2 < rows <= CAPTURED_ROWS else BLOCK
        return -(-rows // step) * step

    @torch.inference_mode()
    def warm(self) -> None:
        """Compile for any length, and capture the short ones.

        FlexAttention is compiled for the first length as it is, and at the second for all: were it
        told at once, it would take numbers like the window for lengths, too.
        """
        if not self.compiled:
            return
        # In place, so that each caller of the model gets the compiled one.
        self._attention = torch.compile(flex_attention)
        for module in self._modules():
            module.compile()
        lengths = [(512, 0), (768, 0), (1280, 0)]
        if self.limit.remembered:
            lengths += [(512, 256), (768, 512)]
        for rows, remembered in lengths:
            if rows > self.limit.rows or remembered > self.limit.remembered:
                continue
            self._try(Shape(rows, remembered), _blank_memory(self.model, remembered))
        if self.model.device.type == "cuda":
            self._capture()
        self._compilations = _compilations()

    def undo(self) -> None:
        """Leave the model as it was before `warm`."""
        for module in self._modules():
            module._compiled_call_impl = None

    def _modules(self) -> Sequence[Any]:
        return *self.model.layers, self.model.norm, self.model.rotary_emb

    def _try(self, shape: Shape, memory: PrefixKV | None = None) -> None:
        """Run a batch of that shape whose tokens don't matter."""
        trunk = (0,) * (shape.rows - 32 + shape.remembered)
        self.run([Pack(trunk, ((0,) * 32,))], memory, shape)

    def _capture(self) -> None:
        lengths = sorted(
            {self._bucket(n) for n in range(BLOCK, min(self.captured_rows, self.limit.rows) + 1)},
            reverse=True,  # so that the memory of the longest serves the others
        )
        pool = torch.cuda.graph_pool_handle()
        for rows in lengths:
            self._try(Shape(rows))
            batch = Batch(Shape(rows), 1, ())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                margins = self.forward(self._layout(batch, None))
            self._graphs[rows] = _Graph(graph, margins)
        torch.cuda.synchronize()
        log.info("graphs captured", graphs=len(lengths), longest=lengths[0])

    def _watch(self, shape: Shape) -> None:
        """Raise the alarm when a pass had to be compiled after all were warmed."""
        if self._compilations is None:
            return
        found = _compilations()
        if found > self._compilations:
            self.recompiles += found - self._compilations
            self._compilations = found
            log.warning("recompiled", rows=shape.rows, remembered=shape.remembered)


def _blank_memory(model: Any, length: int) -> PrefixKV | None:
    if not length:
        return None
    config = model.config
    size = config.num_key_value_heads, length, model.layers[0].self_attn.head_dim
    blank = torch.zeros(size, dtype=model.dtype, device=model.device)
    layers = ((blank, blank),) * config.num_hidden_layers
    return PrefixKV([(Trunk(np.zeros(length), layers), length)], [False])


def _known(packs: Sequence[Pack], memory: PrefixKV | None) -> Sequence[int]:
    return memory.lengths if memory else [0] * len(packs)


def _compilations() -> int:
    return int(counters["stats"]["unique_graphs"])
