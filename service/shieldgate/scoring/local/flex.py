"""FlexAttention over a packed sequence: the segments as tables that mask functions read.

A compiled attention kernel is bound to its mask functions and to the tensors that these read. So
the tables of all batches have one place for ever, and the next batch overwrites them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from shieldgate.scoring.local.prefix_cache import PrefixKV
from shieldgate.scoring.pack import Pack

# Rows and keys of one block of the mask; all lengths are multiples of it.
BLOCK = 128
# A batch is padded to so many rows that each of its branches has this many on average, so that the
# number of rows says how many are read, at most.
ROWS_PER_READ = 16
KINDS = ("full", "sliding")
_EVERYTHING = 2**30

Mod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """How much of the tables a batch takes: rows computed, and keys remembered before them."""

    rows: int
    remembered: int = 0

    @property
    def keys(self) -> int:
        """Count the keys, those of the rows last."""
        return self.remembered + self.rows


class Tables:
    """All that the model reads of a batch, in one int32 tensor, so that one copy moves it."""

    def __init__(self, limit: Shape, device: torch.device) -> None:
        """Take memory for batches up to `limit`; pinned on the host of a GPU."""
        blocks = limit.rows // BLOCK
        pairs = blocks * (limit.keys // BLOCK)
        sizes = {
            "ids": limit.rows,
            "positions": limit.rows,
            "reads": limit.rows // ROWS_PER_READ,
            "row_segment": limit.rows,
            "row_trunk": limit.rows,
            "key_segment": limit.keys,
            "key_position": limit.keys,
        }
        for kind in KINDS:
            sizes |= {f"{kind}_partial_count": blocks, f"{kind}_partial": pairs}
            sizes |= {f"{kind}_whole_count": blocks, f"{kind}_whole": pairs}
        self._places: dict[str, slice] = {}
        end = 0
        for name, size in sizes.items():
            self._places[name] = slice(end, end + size)
            end += -(-size // 32) * 32  # kernels want their tensors aligned
        self.tensor = torch.zeros(end, dtype=torch.int32, device=device)

    def pinned(self) -> "Tables":
        """Make tables of the same form on the host, from which copies don't block."""
        twin = object.__new__(Tables)
        twin._places = self._places
        twin.tensor = torch.zeros(self.tensor.shape, dtype=torch.int32, pin_memory=True)
        return twin

    def __getitem__(self, name: str) -> Tensor:
        """Give one table, in its full length."""
        return self.tensor[self._places[name]]

    def blocks(self, kind: str, part: str, shape: Shape) -> tuple[Tensor, Tensor]:
        """Give the counts [1, 1, rows] and the indices [1, 1, rows, keys] of blocks of a mask."""
        rows, keys = shape.rows // BLOCK, shape.keys // BLOCK
        count = self[f"{kind}_{part}_count"][:rows]
        indices = self[f"{kind}_{part}"][: rows * keys]
        return count.view(1, 1, rows), indices.view(1, 1, rows, keys)


@dataclass(slots=True, eq=False)  # not frozen: the compiler would look into all fields
class FlexLayout:
    """A packed sequence as views of tables; a Packed, whose rows are padded.

    `masks` are those of layers that see everything before them and of those with a window.
    `attention` is `flex_attention`, compiled or as it is. `trunks` are the keys of each pack's
    trunk, of which `memory` remembers some and takes the others.
    """

    ids: Tensor
    positions: Tensor
    reads: Tensor
    masks: tuple[BlockMask, BlockMask]
    cap: Callable[[float], Mod]
    attention: Callable[..., Tensor]
    options: dict[str, Any]
    remembered: int = 0
    memory: PrefixKV | None = None
    trunks: tuple[tuple[slice, ...], ...] = ()


class Masks:
    """The mask functions over one set of tables, and the block masks made of them."""

    def __init__(self, tables: Tables, window: int | None) -> None:
        """Bind the functions to the tables; without a `window` both kinds are the same."""
        self._tables = tables
        reach = window or _EVERYTHING
        positions, key_position = tables["positions"], tables["key_position"]
        row_segment, row_trunk = tables["row_segment"], tables["row_trunk"]
        key_segment = tables["key_segment"]

        def full(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
            segment = key_segment[key]
            near = (segment == row_segment[row]) | (segment == row_trunk[row])
            return near & (key_position[key] <= positions[row])

        def sliding(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
            # By positions: a branch may stand far from its trunk, and yet follows it.
            return full(batch, head, row, key) & (key_position[key] > positions[row] - reach)

        self._functions: dict[str, Mod] = {"full": full, "sliding": sliding}
        self._known: dict[Shape, tuple[BlockMask, BlockMask]] = {}
        self._caps: dict[float, Any] = {}

    def of(self, shape: Shape) -> tuple[BlockMask, BlockMask]:
        """Give the masks of a shape, which read whatever is in the tables."""
        if shape not in self._known:
            full, sliding = (self._block_mask(kind, shape) for kind in KINDS)
            self._known[shape] = full, sliding
        return self._known[shape]

    def cap(self, cap: float) -> Any:
        """Give the score function of a soft-cap, always the same one."""
        if cap not in self._caps:

            def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return cap * torch.tanh(score / cap)

            self._caps[cap] = capped
        return self._caps[cap]

    def _block_mask(self, kind: str, shape: Shape) -> BlockMask:
        return BlockMask.from_kv_blocks(
            *self._tables.blocks(kind, "partial", shape),
            *self._tables.blocks(kind, "whole", shape),
            BLOCK_SIZE=BLOCK,
            mask_mod=self._functions[kind],
            seq_lengths=(shape.rows, shape.keys),
            compute_q_blocks=False,  # only a backward pass reads them
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What was laid out in tables: its shape, how many rows are read, the keys of the trunks."""

    shape: Shape
    reads: int
    trunks: tuple[tuple[slice, ...], ...]


def shape_of(packs: Sequence[Pack], known: Sequence[int], bucket: Callable[[int], int]) -> Shape:
    """Choose the shape of a batch of which `known` tokens of each trunk are remembered.

    `bucket` rounds a number of rows up to a multiple of BLOCK.
    """
    tokens = sum(p.tokens for p in packs) - sum(known)
    reads = sum(len(p.branches) for p in packs)
    return Shape(bucket(max(tokens, reads * ROWS_PER_READ)), _up(sum(known)))


def lay_out(
    tables: Tables, packs: Sequence[Pack], known: Sequence[int], shape: Shape, window: int | None
) -> Batch:
    """Write packs into tables on the host, and pad them with a pack of their own."""
    t = {name: tables[name].numpy() for name in _LAID_OUT}
    missing = shape.rows - sum(p.tokens for p in packs) + sum(known)
    whole = [*packs, Pack((), ((0,) * missing,))] if missing else packs
    t["key_segment"][sum(known) : shape.remembered] = -1  # padding that nobody sees
    segments: list[_Segment] = []
    reads: list[int] = []
    trunks: list[tuple[slice, ...]] = []
    row = past = 0

    def add(
        tokens: Sequence[int], first: int, trunk: int | None, context: tuple[_Keys, ...]
    ) -> _Keys:
        nonlocal row
        rows, number = slice(row, row + len(tokens)), len(segments)
        own = _Keys(shape.remembered + rows.start, shape.remembered + rows.stop, first)
        t["ids"][rows] = tokens
        t["positions"][rows] = np.arange(first, first + len(tokens))
        t["row_segment"][rows] = number
        t["row_trunk"][rows] = number if trunk is None else trunk
        segments.append(_Segment(rows.start, rows.stop, first, (*context, own)))
        row = rows.stop
        return own

    for item, length in zip(whole, [*known, *[0] * (len(whole) - len(known))], strict=True):
        remembered = _Keys(past, past + length, 0)
        t["key_segment"][past : past + length] = len(segments)
        t["key_position"][past : past + length] = np.arange(length)
        past += length
        number = len(segments)
        trunk = remembered, add(item.trunk[length:], length, None, (remembered,))
        trunks.append(tuple(slice(k.start, k.stop) for k in trunk))
        for branch in item.branches:
            add(branch, len(item.trunk), number, trunk)
            reads.append(row - 1)
    t["key_segment"][shape.remembered : shape.keys] = t["row_segment"][: shape.rows]
    t["key_position"][shape.remembered : shape.keys] = t["positions"][: shape.rows]
    count = sum(len(p.branches) for p in packs)
    t["reads"][:count] = reads[:count]
    t["reads"][count:] = 0
    _write_blocks(tables, "full", segments, shape, _EVERYTHING)
    _write_blocks(tables, "sliding", segments, shape, window or _EVERYTHING)
    return Batch(shape, count, tuple(trunks[: len(packs)]))


_LAID_OUT = (
    "ids",
    "positions",
    "reads",
    "row_segment",
    "row_trunk",
    "key_segment",
    "key_position",
)


@dataclass(frozen=True, slots=True)
class _Keys:
    """A range of keys, and the position of the first of them."""

    start: int
    stop: int
    first: int

    def between(self, low: int, high: int) -> tuple[int, int]:
        """Cut the range to positions [low, high)."""
        shift = self.start - self.first
        return max(self.start, low + shift), min(self.stop, high + shift)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A trunk or a branch: a range of rows, the first one's position, and the keys it may see."""

    start: int
    stop: int
    first: int
    keys: tuple[_Keys, ...]


def _write_blocks(
    tables: Tables, kind: str, segments: Sequence[_Segment], shape: Shape, reach: int
) -> None:
    """List the blocks that are seen whole, and those of which a part is seen."""
    size = shape.rows // BLOCK, shape.keys // BLOCK
    some = np.zeros(size, dtype=bool)
    # Of each block, the pairs of which it is sure that the row sees the key.
    sure = np.zeros(size, dtype=np.int32)
    for s in segments:
        for start, stop in _cuts(s.start, s.stop):
            low, high = s.first + start - s.start, s.first + stop - 1 - s.start
            line = start // BLOCK
            for keys in s.keys:
                left, right = keys.between(low - reach + 1, high + 1)  # what some row sees
                if left < right:
                    some[line, left // BLOCK : -(-right // BLOCK)] = True
                left, right = keys.between(high - reach + 1, low + 1)  # what each row sees
                if left < right:
                    begin, end = left // BLOCK, -(-right // BLOCK)
                    rows = stop - start
                    sure[line, begin:end] += rows * BLOCK
                    sure[line, begin] -= rows * (left - begin * BLOCK)
                    sure[line, end - 1] -= rows * (end * BLOCK - right)
    whole = sure == BLOCK * BLOCK
    for part, found in (("whole", whole), ("partial", some & ~whole)):
        count, indices = (b.numpy()[0, 0] for b in tables.blocks(kind, part, shape))
        lines, columns = np.nonzero(found)
        count[:] = found.sum(axis=1)
        before = np.cumsum(count) - count
        indices[lines, np.arange(len(lines)) - before[lines]] = columns


def _cuts(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a range of rows where blocks begin."""
    while start < stop:
        end = min(stop, (start // BLOCK + 1) * BLOCK)
        yield start, end
        start = end


def _up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def flex_packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: FlexLayout,
    *,
    layer: int,
    scaling: float,
    softcap: float | None,
    sliding: bool,
) -> Tensor:
    """Attend over a FlexLayout; [1, heads, rows, dim] in, [1, rows, heads, dim] out."""
    if layout.memory is not None:
        keys, values = layout.memory.extend(
            layer, key[0], value[0], layout.trunks, layout.remembered
        )
        key, value = keys[None], values[None]
    out = layout.attention(
        query,
        key,
        value,
        score_mod=None if softcap is None else layout.cap(softcap),
        block_mask=layout.masks[sliding],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=layout.options,
    )
    return out.transpose(1, 2)
