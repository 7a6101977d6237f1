"""Generates several texts at once with a Gemma 2 checkpoint, a step at a time.

Continuous batching with chunked prefill, and speculative decoding where there is an assistant.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shieldgate.errors import ModelError
from shieldgate.prompt import GEMMA_CONTROL_TOKENS, Segment
from shieldgate.scoring.local import Checkpoint
from shieldgate.scoring.local.decoder import soft_capped
from shieldgate.scoring.local.tokenizer import prompt_encoder
from shieldgate.worker.generation import SamplingParams
from shieldgate.worker.generator.attention import RAGGED, KVCache, SequenceSlice
from shieldgate.worker.generator.sampling import accept, probabilities, sample
from shieldgate.worker.watermark.keys import WatermarkKeys
from shieldgate.worker.watermark.synthid import SynthIDWatermark

_PREFILL_CHUNK = 2048  # tokens of prompts in one step: bounds memory, and the wait of others
_DRAFT_TOKENS = 5  # tokens that the assistant writes ahead


@dataclass(eq=False, slots=True)
class TokenSequence:
    """A text being generated: the prompt and what follows it so far.

    `prompt` and `max_length` count tokens, of the prompt and the most in all; `forwards` counts
    the large model's passes. A text with a `parent` shares its prompt, and waits until that has
    been read.
    """

    tokens: list[int]
    prompt: int
    max_length: int
    sampling: SamplingParams
    rng: torch.Generator
    cache: KVCache
    draft_cache: KVCache
    parent: "TokenSequence | None" = None
    forwards: int = 0


@dataclass(slots=True)
class _Draft:
    """What the assistant drafts, and the probabilities that it was sampled from."""

    tokens: list[int] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)


class _IncrementalModel:
    """A model that reads on where each text's cache ends."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model: Any = checkpoint.model
        self._model.set_attn_implementation(RAGGED)
        self._config: Any = checkpoint.model.config
        self.device = checkpoint.model.device

    def cache(self) -> KVCache:
        return KVCache(self._config.num_hidden_layers)

    def read(self, texts: Iterable[tuple[KVCache, Sequence[int], int]]) -> list[Tensor]:
        """Read on in each text: (cache, new ids, how many of the last to give logits for).

        Returns the logits of each, fp32 [wanted, vocabulary].
        """
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        pieces = []
        sizes = []
        for cache, new, logits in texts:
            pieces.append(SequenceSlice(slice(len(ids), len(ids) + len(new)), cache))
            positions += range(cache.length, cache.length + len(new))
            ids += new
            wanted += range(len(ids) - logits, len(ids))
            sizes.append(logits)
        hidden = self._model.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            pieces=pieces,
        ).last_hidden_state[0]
        for piece in pieces:
            piece.cache.length += piece.rows.stop - piece.rows.start
        capped = soft_capped(self._model.lm_head(hidden[wanted]), self._config)
        return list(torch.split(capped.to(self.device).float(), sizes))


class GemmaGenerator:
    """Writes texts with a Gemma 2 checkpoint and, if there is one, an assistant that drafts.

    One thread at a time. Texts that are stepped together get what they would get alone. Where
    there is a `watermark`, they bear it. Raises ModelError when the tokenizer can't serve or is not
    the assistant's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        assistant: Checkpoint | None = None,
        watermark: WatermarkKeys | None = None,
    ) -> None:
        self.name = checkpoint.name
        self._encoder = prompt_encoder(checkpoint.tokenizer, GEMMA_CONTROL_TOKENS)
        self._tokenizer = checkpoint.tokenizer
        if assistant and _vocabulary(assistant) != _vocabulary(checkpoint):
            raise ModelError(
                f"{assistant.name} can't assist {checkpoint.name}: their tokenizers differ. "
                "Use a smaller model of the same family."
            )
        self._model = _IncrementalModel(checkpoint)
        self._assistant = _IncrementalModel(assistant) if assistant else None
        config: Any = checkpoint.model.config
        self.context = int(config.max_position_embeddings)
        self._ends = _end_tokens(checkpoint)
        self._watermark = SynthIDWatermark(watermark, self._model.device) if watermark else None

    def encode(self, prompt: Sequence[Segment]) -> list[int]:
        """Encode a prompt; safe to call from any thread."""
        return self._encoder.encode([prompt])[0]

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens, without control tokens; safe to call from any thread."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def ends(self, token: int) -> bool:
        """Tell whether the model has ended its turn with this token."""
        return token in self._ends

    def begin(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> list[TokenSequence]:
        """Begin a text for each seed, of at most `max_tokens` new tokens, on one prompt."""
        texts: list[TokenSequence] = []
        for seed in seeds:
            text = TokenSequence(
                tokens=list(prompt),
                prompt=len(prompt),
                max_length=len(prompt) + max_tokens,
                sampling=sampling,
                rng=torch.Generator(self._model.device).manual_seed(seed),
                cache=self._model.cache(),
                draft_cache=self._assistant.cache() if self._assistant else KVCache(0),
                parent=texts[0] if texts else None,
            )
            texts.append(text)
        return texts

    @torch.inference_mode()
    def step(self, texts: Sequence[TokenSequence]) -> list[list[int]]:
        """Run the model once over texts that have room left; returns the new tokens of each.

        None are new where a prompt has not been read to its end. Nothing follows an end token.
        """
        for text in texts:
            _fork(text)
        drafts = self._draft([t for t in texts if len(t.tokens) > t.prompt])
        budget = _PREFILL_CHUNK
        reading = []
        for text in texts:
            if text.parent is not None:
                continue
            unread = text.tokens[text.cache.length :]
            draft = drafts.get(text, _Draft())
            if len(unread) > 1:
                unread = unread[:budget]
                budget -= len(unread)
            if unread:
                done = text.cache.length + len(unread) == len(text.tokens)
                wanted = 1 + len(draft.tokens) if done else 0
                reading.append((text, draft, [*unread, *draft.tokens], wanted))
        found = self._model.read((t.cache, new, wanted) for t, _, new, wanted in reading)
        written: dict[TokenSequence, list[int]] = {}
        for (text, draft, _, wanted), logits in zip(reading, found, strict=True):
            text.forwards += 1
            if wanted:
                written[text] = self._write(text, draft, logits)
        return [written.get(text, []) for text in texts]

    def _write(self, text: TokenSequence, draft: _Draft, logits: Tensor) -> list[int]:
        probs = self._probabilities(logits, text, draft.tokens)
        draft_probs = torch.stack(draft.probs) if draft.probs else probs[:0]
        new = accept(probs, draft.tokens, draft_probs, text.rng)
        end = next((i for i, token in enumerate(new) if self.ends(token)), len(new) - 1)
        new = new[: end + 1]
        text.tokens += new
        # What was drafted in vain is forgotten; the newest token is still to be read.
        text.cache.length = len(text.tokens) - 1
        text.draft_cache.length = min(text.draft_cache.length, len(text.tokens) - 1)
        return new

    def _probabilities(self, logits: Tensor, text: TokenSequence, drafted: Sequence[int]) -> Tensor:
        """Give what is drawn from, [rows, vocabulary]; the last row follows all that is drafted."""
        probs = probabilities(logits, text.sampling)
        if self._watermark is None:
            return probs
        return self._watermark.mark(probs, [*text.tokens[text.prompt :], *drafted])

    def _draft(self, texts: Sequence[TokenSequence]) -> dict[TokenSequence, _Draft]:
        """Let the assistant write ahead in each text, as far as there is room."""
        drafts = {text: _Draft() for text in texts}
        if self._assistant is None:
            return drafts
        for ahead in range(_DRAFT_TOKENS):
            drafting = [t for t in texts if len(t.tokens) + ahead + 1 < t.max_length]
            for text in drafting:  # the prompt, before the first draft
                cache = text.draft_cache
                while len(text.tokens) - cache.length > _PREFILL_CHUNK:
                    chunk = text.tokens[cache.length : cache.length + _PREFILL_CHUNK]
                    self._assistant.read([(cache, chunk, 0)])
            if not drafting:
                break
            found = self._assistant.read(
                (t.draft_cache, [*t.tokens, *drafts[t].tokens][t.draft_cache.length :], 1)
                for t in drafting
            )
            for text, logits in zip(drafting, found, strict=True):
                # Marked as well: else the large model would keep few of the drafted tokens.
                drafted = drafts[text].tokens
                [probs] = self._probabilities(logits.to(self._model.device), text, drafted)
                drafts[text].probs.append(probs)
                drafts[text].tokens.append(sample(probs, text.rng))
        return drafts


def _vocabulary(checkpoint: Checkpoint) -> tuple[int, dict[str, int]]:
    return checkpoint.model.config.vocab_size, checkpoint.tokenizer.get_vocab()


def _fork(text: TokenSequence) -> None:
    """Take over the parent's caches of the prompt, once it has been read."""
    parent = text.parent
    if parent is not None and parent.cache.length >= text.prompt:
        text.cache = parent.cache.copy(text.prompt - 1)
        text.draft_cache = parent.draft_cache.copy(min(parent.draft_cache.length, text.prompt - 1))
        text.parent = None


def _end_tokens(checkpoint: Checkpoint) -> frozenset[int]:
    """Collect what ends a turn: by the tokenizer, by Gemma's format, by the generation config."""
    tokenizer = checkpoint.tokenizer
    configured: Any = checkpoint.model.generation_config
    listed = getattr(configured, "eos_token_id", None) or []
    ends = {listed} if isinstance(listed, int) else set(listed)
    ends |= {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    return frozenset(ends - {None})
