"""The scoring engine: one packed forward pass for many policies and many callers."""

import math
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from shieldgate.errors import ConfigurationError, ModelError
from shieldgate.policy import Policy
from shieldgate.prompt import Template, name_suffix
from shieldgate.scoring.interfaces import Identity, Prepared
from shieldgate.scoring.languages import languages_of
from shieldgate.scoring.local import decoder
from shieldgate.scoring.local.attention import PACKED
from shieldgate.scoring.local.checkpoint import Checkpoint
from shieldgate.scoring.local.flex import BLOCK, Shape
from shieldgate.scoring.local.gradients import gradient_times_input
from shieldgate.scoring.local.linear import multiplies_as
from shieldgate.scoring.local.packing import Layout, Packed
from shieldgate.scoring.local.prefix_cache import PrefixCache, PrefixKV, Trunk
from shieldgate.scoring.local.runner import TILES, ModelRunner
from shieldgate.scoring.local.tokenizer import adopted, prompt_encoder
from shieldgate.scoring.pack import Pack, pack
from shieldgate.scoring.prompts import PromptBuilder
from shieldgate.types import Exchange

log = structlog.get_logger(__name__)


class PackedEngine:
    """Scores exchanges with a checkpoint of a known family; an Engine.

    The margin is the logit of the template's positive answer less that of its negative one, with
    ShieldGemma z_yes - z_no, at a prompt's last token, computed in fp32 from the last hidden state
    and soft-capped as the model's own are (ShieldGemma, arXiv 2407.21772, eq. 1 with a = 0 and
    T = 1).
    """

    def __init__(
        self, checkpoint: Checkpoint, template: Template, *, prefix_bytes: int = 2**30
    ) -> None:
        """Take a loaded checkpoint; raise ModelError when its tokenizer can't serve.

        `prefix_bytes` bounds the keys and values kept for answers that are still growing.
        """
        self.model = checkpoint.model
        self.template = adopted(
            template, checkpoint.tokenizer, checkpoint.name, checkpoint.template
        )
        encoder = prompt_encoder(checkpoint.tokenizer, self.template.control_tokens)
        embedding: Any = checkpoint.model.get_input_embeddings()
        if encoder.largest_id >= embedding.num_embeddings:
            raise ModelError(
                f"{checkpoint.name}: the tokenizer has ids up to {encoder.largest_id} and "
                f"the model {embedding.num_embeddings} embeddings. The two don't belong together."
            )
        self._prefixes = PrefixCache(prefix_bytes)
        self._prefixes_lock = Lock()
        self._forward_lock = Lock()
        self._runner: ModelRunner | None = None
        context = int(checkpoint.model.config.max_position_embeddings)
        self._prompts = PromptBuilder(self.template, encoder, context)
        # Of the device, because indices from the host can't be part of a captured graph.
        self._answers = torch.tensor(self._prompts.answers, device=embedding.weight.device)
        self.identity = Identity(
            name=checkpoint.name + name_suffix(self.template),
            weights=checkpoint.weights,
            dtype=checkpoint.precision
            if checkpoint.quantization
            else multiplies_as(checkpoint.model),
            template=self.template.digest,
            windows=str(self._prompts.windows),
            languages=languages_of(checkpoint.name, checkpoint.languages),
        )

    @property
    def prompts(self) -> PromptBuilder:
        """Give what builds the prompts."""
        return self._prompts

    def check_policies(self, policies: Iterable[Policy]) -> None:
        """Raise ConfigurationError where a guideline leaves no room for content."""
        self._prompts.check(policies)

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        """Tell how many tokens scoring takes at least, as far as `most`, without tokenising."""
        return self._prompts.least_tokens(exchange, most)

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        """Tokenise an exchange, in windows if it is longer than the context.

        Raises ConfigurationError if a guideline leaves no room for content, or the template
        can't judge this direction.
        """
        return self._prompts.prepare(exchange, policies)

    def warm(self, max_tokens: int, **how: Any) -> None:
        """Prepare for many passes of up to `max_tokens`: compile and capture, on a GPU.

        Larger passes go on as before, and all do where this raises. `how` are fields of
        ModelRunner. Raises what compiling raises, and ModelError as `check` does.
        """
        rows = -(-max_tokens // BLOCK) * BLOCK
        limit = Shape(rows, rows if self._prefixes.max_bytes else 0)
        window = decoder.sliding_window(self.model)
        runner = ModelRunner(self.model.base_model, self.margins, window, limit, **how)
        try:
            runner.warm()
            self._runner = runner
            self.check()
        except BaseException:
            self._runner = None
            runner.undo()
            raise

    @torch.inference_mode()
    def remember_preambles(self) -> None:
        """Compute once what begins every prompt, for a model whose weights stay as they are.

        On a GPU it isn't worth it: the launches of passes that remember aren't captured.
        """
        work = [Pack(ids, (ids[-1:],), growing=True) for ids in self._prompts.preambles()]
        if work:
            memory = PrefixKV([(None, 0)] * len(work), [True] * len(work))
            window = decoder.sliding_window(self.model)
            decoder.hidden_states(self.model, Layout.of(work, window, self.model.device, memory))
            found = [
                Trunk(np.array(item.trunk), tuple(layers))
                for item, layers in zip(work, memory.gathered, strict=True)
            ]
            self._prefixes = PrefixCache(self._prefixes.max_bytes, found)

    @property
    def kernel_options(self) -> Sequence[dict[str, int]]:
        """List what to compile attention with, best first; none unless all is on one GPU."""
        devices = set(getattr(self.model, "hf_device_map", {"": self.model.device}).values())
        if self.model.device.type != "cuda" or len(devices) > 1:
            return ()
        tiles = TILES.get(getattr(self.model.config, "head_dim", 0))
        return (tiles, {}) if tiles else ({},)

    @property
    def passes(self) -> int:
        """Give how many threads may usefully be in `forward` at once."""
        return 2 if self._runner and self.model.device.type == "cuda" else 1

    @property
    def recompiles(self) -> int:
        """Count what had to be compiled after all was warmed."""
        return self._runner.recompiles if self._runner else 0

    @torch.inference_mode()
    def forward(self, work: Sequence[Pack]) -> list[list[float]]:
        """Run one forward pass over packs; returns the margins, [packs][policies].

        Any thread may ask. Passes compute one at a time; once warmed on a GPU, one is laid out
        while another computes. Raises FloatingPointError when a margin is not finite.
        """
        with self._prefixes_lock:
            memory = self._remember(work)
        shape = self._runner.shape(work, memory) if self._runner else None
        if self._runner and shape:
            margins = self._runner.run(work, memory, shape)
        else:
            with self._forward_lock:
                window = decoder.sliding_window(self.model)
                layout = Layout.of(work, window, self.model.device, memory)
                margins = self.margins(layout).tolist()
        if not all(map(math.isfinite, margins)):
            raise FloatingPointError("The model produced a score that is not finite.")
        if memory is not None:
            with self._prefixes_lock:
                self._keep(work, memory)
        found = iter(margins)
        return [[next(found) for _ in item.branches] for item in work]

    def _remember(self, work: Sequence[Pack]) -> PrefixKV | None:
        """Look up what is known of trunks: how all begin, those that grow, what they grew into."""
        growing = [item.growing for item in work]
        memory = PrefixKV([self._prefixes.find(np.array(item.trunk)) for item in work], growing)
        return memory if any(growing) or any(memory.lengths) else None

    def _keep(self, work: Sequence[Pack], memory: PrefixKV) -> None:
        for item, layers in zip(work, memory.gathered, strict=True):
            if item.growing:
                self._prefixes.keep(Trunk(np.array(item.trunk), tuple(layers)))

    def margins(self, layout: Packed) -> Tensor:
        """Compute the margins of all branches of a layout, fp32 [branches]; differentiable."""
        states = decoder.read_states(self.model, layout)
        return decoder.margins(self.model, states, self._answers)

    def gradients(
        self, exchange: Exchange, policies: Sequence[Policy]
    ) -> list[list[tuple[int, int, float]]]:
        """Give what each token of the text under judgement carried of each policy's margin.

        A token is its range of characters, and its gradient times its input in logits. Raises
        ConfigurationError for what takes several windows, and where the model is compiled or its
        weights are quantised.
        """
        guidelines = [p.guidelines[exchange.direction] for p in policies]
        prompts = self._prompts.encode(exchange, guidelines)
        if max(map(len, prompts)) > self._prompts.windows.context:
            raise ConfigurationError("Gradients are of one window, and the text takes several.")
        # Of what is quantised the dtype says how, behind a plus.
        if self._runner or "+" in self.identity.dtype:
            raise ConfigurationError(
                "There are no gradients of a model that is compiled for a GPU, or quantised."
            )
        with self._forward_lock:
            carried = gradient_times_input(self.model, pack(prompts), self._answers)
        return [
            [(start, end, tokens[at]) for at, start, end in self._prompts.content(exchange, g)]
            for g, tokens in zip(guidelines, carried, strict=True)
        ]

    def check(self) -> None:
        """Score a canary packed and by the plain model; raise ModelError if they differ.

        This tells a wrong build, kernel or dtype before any verdict depends on it.
        """
        guidelines = (
            '"No Threats": The prompt shall not threaten anyone.',
            '"No Spam": No adverts.',
        )
        exchange = Exchange("How long do I bake a loaf of bread, and at which temperature?")
        prompts = self._prompts.encode(exchange, guidelines)
        try:
            (packed,) = self.forward([pack(prompts)])
        except FloatingPointError as broken:
            raise ModelError(
                f"{self.identity.name}: the self-check failed: a score is not finite. Fetch the "
                "checkpoint again, or train it again."
            ) from broken
        plain = [self._plain(ids) for ids in prompts]
        # bf16 keeps 8 bits of a logit; a margin near 8 is then right within about 0.1. Where the
        # inputs of products are rounded to 8 bits, too, the last bit of one may tip another.
        tolerance = 1e-3 if self.identity.dtype == "float32" else 0.5
        worst = max(abs(a - b) for a, b in zip(packed, plain, strict=True))
        if not worst <= tolerance:
            raise ModelError(
                f"{self.identity.name}: the self-check failed: packed and plain margins differ by "
                f"{worst:.2g} (allowed: {tolerance}). The PyTorch build or the device computes "
                "wrongly; try another build, or --device cpu."
            )
        log.info("self-check passed", scorer=self.identity.name, difference=worst)

    @torch.inference_mode()
    def _plain(self, ids: Sequence[int]) -> float:
        """Score one prompt by transformers' own eager attention, with full logits."""
        self.model.set_attn_implementation("eager")
        try:
            inputs = torch.tensor([ids], device=self.model.device)
            with torch.compiler.set_stance("force_eager"):
                output = self.model(input_ids=inputs, use_cache=False, logits_to_keep=1)
            logits = output.logits[0, -1]
        finally:
            self.model.set_attn_implementation(PACKED)
        positive, negative = logits[list(self._prompts.answers)].tolist()
        return float(positive - negative)
