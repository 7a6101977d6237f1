"""The Gemma 2 scoring engine: one packed forward pass for many policies and many callers."""

import math
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import structlog
import torch
from jinja2 import TemplateError
from torch import Tensor

from shieldgate.errors import ModelError
from shieldgate.policy import Policy
from shieldgate.prompt import TEMPLATES, Segment, Template, adopt
from shieldgate.scoring.encoding import PromptEncoder
from shieldgate.scoring.interfaces import Identity, Prepared
from shieldgate.scoring.local.attention import PACKED
from shieldgate.scoring.local.checkpoint import Checkpoint
from shieldgate.scoring.local.flex import BLOCK, Shape
from shieldgate.scoring.local.packing import Layout, Pack, Packed, pack
from shieldgate.scoring.local.prefix_cache import PrefixCache, PrefixKV, Trunk
from shieldgate.scoring.local.runner import ModelRunner
from shieldgate.scoring.windows import WindowRule
from shieldgate.types import Exchange

_NO_MASK = {"full_attention": None, "sliding_attention": None}

log = structlog.get_logger(__name__)


class PackedEngine:
    """Scores exchanges with a Gemma 2 checkpoint; an Engine.

    The margin is z_yes - z_no, the logits of `Yes` and `No` at a prompt's last token, computed
    in fp32 from the last hidden state and soft-capped as the model's own are (ShieldGemma,
    arXiv 2407.21772, eq. 1 with a = 0 and T = 1).
    """

    def __init__(
        self, checkpoint: Checkpoint, template: Template, *, prefix_bytes: int = 2**30
    ) -> None:
        """Take a loaded checkpoint; raise ModelError when its tokenizer can't serve.

        `prefix_bytes` bounds the keys and values kept for answers that are still growing.
        """
        self.model = checkpoint.model
        self._config: Any = checkpoint.model.config
        self._encoder = PromptEncoder(checkpoint.tokenizer)
        embedding = checkpoint.model.lm_head.weight
        if self._encoder.largest_id >= len(embedding):
            raise ModelError(
                f"{checkpoint.name}: the tokenizer has ids up to {self._encoder.largest_id} and "
                f"the model {len(embedding)} embeddings. The two don't belong together."
            )
        # Of the device, because indices from the host can't be part of a captured graph.
        answers = [self._encoder.yes, self._encoder.no]
        self._answers = torch.tensor(answers, device=embedding.device)
        self._prefixes = PrefixCache(prefix_bytes)
        self._prefixes_lock = Lock()
        self._runner: ModelRunner | None = None
        self.template = _template(checkpoint, template)
        context = int(self._config.max_position_embeddings)
        self._windows = WindowRule(context, overlap=min(256, context // 8))
        self.identity = Identity(
            name=checkpoint.name + _suffix(self.template),
            weights=checkpoint.weights,
            dtype=str(checkpoint.model.dtype).removeprefix("torch."),
            template=self.template.digest,
            windows=str(self._windows),
        )

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared[Pack]:
        """Tokenise an exchange, in windows if it is longer than the context.

        Raises ConfigurationError if a guideline leaves no room for content, or the template
        can't judge this direction.
        """
        prompts = self._encoder.encode(self._prompts(exchange, policies))
        if max(map(len, prompts)) <= self._windows.context:
            return Prepared((pack(prompts, growing=exchange.growing),))
        empty = Exchange("", None if exchange.response is None else "")
        fixed = max(map(len, self._encoder.encode(self._prompts(empty, policies))))
        windows, omitted = self._windows.split(exchange, fixed, self._encoder.spans)
        encoded = (self._encoder.encode(self._prompts(w, policies)) for w in windows)
        return Prepared(tuple(pack(p, growing=exchange.growing) for p in encoded), omitted)

    def warm(self, max_tokens: int, **how: Any) -> None:
        """Prepare for many passes of up to `max_tokens`: compile and capture, on a GPU."""
        context = int(self._config.max_position_embeddings)
        rows = max(max_tokens, 2 * context)  # one long text under many policies
        limit = Shape(-(-rows // BLOCK) * BLOCK, 2 * context if self._prefixes.max_bytes else 0)
        self._runner = ModelRunner(
            self.model.model, self.margins, self._config.sliding_window, limit, **how
        )
        self._runner.warm()

    @property
    def passes(self) -> int:
        """Give how many threads may be in `forward` at once."""
        return 2 if self._runner and self.model.device.type == "cuda" else 1

    @property
    def recompiles(self) -> int:
        """Count what had to be compiled after all was warmed."""
        return self._runner.recompiles if self._runner else 0

    @torch.inference_mode()
    def forward(self, work: Sequence[Pack]) -> list[list[float]]:
        """Run one forward pass over packs; returns the margins, [packs][policies].

        At most `passes` threads may be in here at once. Raises FloatingPointError when a margin is
        not finite.
        """
        with self._prefixes_lock:
            memory = self._remember(work)
        shape = self._runner.shape(work, memory) if self._runner else None
        if self._runner and shape:
            margins = self._runner.run(work, memory, shape)
        else:
            layout = Layout.of(work, self._config.sliding_window, self.model.device, memory)
            margins = self.margins(layout).tolist()
        if not all(map(math.isfinite, margins)):
            raise FloatingPointError("The model produced a score that is not finite.")
        if memory is not None:
            with self._prefixes_lock:
                self._keep(work, memory)
        found = iter(margins)
        return [[next(found) for _ in item.branches] for item in work]

    def _remember(self, work: Sequence[Pack]) -> PrefixKV | None:
        """Look up what is known of trunks: of those that grow, and of what they grew into."""
        growing = [item.growing for item in work]
        if not self._prefixes.bytes and not any(growing):
            return None
        return PrefixKV([self._prefixes.find(np.array(item.trunk)) for item in work], growing)

    def _keep(self, work: Sequence[Pack], memory: PrefixKV) -> None:
        for item, layers in zip(work, memory.gathered, strict=True):
            if item.growing:
                self._prefixes.keep(Trunk(np.array(item.trunk), tuple(layers)))

    def margins(self, layout: Packed) -> Tensor:
        """Compute the margins of all branches of a layout, fp32 [branches]; differentiable."""
        readout = self.model.lm_head.weight[self._answers].float()
        hidden = self.model.model(
            input_ids=layout.ids[None],
            position_ids=layout.positions[None],
            attention_mask=_NO_MASK,
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0]
        logits = hidden[layout.reads.to(hidden.device)].float() @ readout.to(hidden.device).T
        cap = self._config.final_logit_softcapping
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        margins: Tensor = logits[:, 0] - logits[:, 1]
        return margins

    def check(self) -> None:
        """Score a canary packed and by the plain model; raise ModelError if they differ.

        This tells a wrong build, kernel or dtype before any verdict depends on it.
        """
        guidelines = (
            '"No Threats": The prompt shall not threaten anyone.',
            '"No Spam": No adverts.',
        )
        exchange = Exchange("How long do I bake a loaf of bread, and at which temperature?")
        prompts = self._encoder.encode([self.template.segments(exchange, g) for g in guidelines])
        (packed,) = self.forward([pack(prompts)])
        plain = [self._plain(ids) for ids in prompts]
        # bf16 keeps 8 bits of a logit; a margin near 8 is then right within about 0.1.
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.5
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
        return float(logits[self._encoder.yes] - logits[self._encoder.no])

    def _prompts(self, exchange: Exchange, policies: Sequence[Policy]) -> list[tuple[Segment, ...]]:
        direction = exchange.direction
        return [self.template.segments(exchange, p.guidelines[direction]) for p in policies]


def _suffix(template: Template) -> str:
    """Tell scorers that ask in other words apart: what was calibrated for one misleads another."""
    if template.digest == TEMPLATES["chat"].digest:
        return ""
    return f"+{template.name if template.name in TEMPLATES else template.digest}"


def _template(checkpoint: Checkpoint, template: Template) -> Template:
    """Prefer the words of the tokenizer's own chat template, where it is one for moderation."""
    tokenizer = checkpoint.tokenizer
    source = tokenizer.chat_template
    if template.name != "chat" or not isinstance(source, str) or "guideline" not in source:
        return template

    def rendered(exchange: Exchange, guideline: str) -> str:
        messages = [{"role": "user", "content": exchange.prompt}]
        if exchange.response is not None:
            messages.append({"role": "assistant", "content": exchange.response})
        return str(tokenizer.apply_chat_template(messages, guideline=guideline, tokenize=False))

    try:
        chosen, difference = adopt(rendered, template)
    except TemplateError as broken:
        chosen, difference = template, f"It can't be rendered, so ours is used: {broken}"
    if difference:
        log.warning("chat template differs", scorer=checkpoint.name, detail=difference)
    return chosen
