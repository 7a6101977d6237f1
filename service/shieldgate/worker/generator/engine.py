"""Writes several texts at once with a Gemma 2 checkpoint, a step at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma2ForCausalLM

from shieldgate.errors import ModelError
from shieldgate.prompt import GEMMA_CONTROL_TOKENS, Segment
from shieldgate.scoring.local import Checkpoint
from shieldgate.scoring.local.decoder import soft_capped
from shieldgate.scoring.local.tokenizer import prompt_encoder
from shieldgate.worker.generator.attention import RAGGED, Cache, Piece
from shieldgate.worker.generator.sampling import accept, draw, probabilities
from shieldgate.worker.order import Sampling

_CHUNK = 2048  # tokens of prompts in one step: bounds its memory, and how long others wait
_DRAFTED = 5  # tokens that the assistant writes ahead


@dataclass(eq=False, slots=True)
class Writing:
    """A text being written: the prompt and what follows it so far.

    `end` is the most tokens it may have in all; `forwards` counts the large model's passes over
    it. A text with an `origin` shares its prompt, and waits until that has been read.
    """

    tokens: list[int]
    prompt: int
    end: int
    sampling: Sampling
    source: torch.Generator
    cache: Cache
    ahead: Cache
    origin: "Writing | None" = None
    forwards: int = 0


@dataclass(slots=True)
class _Guess:
    """What the assistant thinks comes next, and the probabilities that it drew from."""

    tokens: list[int] = field(default_factory=list)
    likely: list[Tensor] = field(default_factory=list)


class _Incremental:
    """A model that reads on where each text's cache ends."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not isinstance(checkpoint.model, Gemma2ForCausalLM):
            raise ModelError(
                f"{checkpoint.name} is a {checkpoint.model.config.model_type} model, and the "
                "generator is Gemma 2. Use a checkpoint such as google/gemma-2-2b-it."
            )
        self._model = checkpoint.model
        self._model.set_attn_implementation(RAGGED)
        self._config: Any = checkpoint.model.config
        self.device = checkpoint.model.device

    def cache(self) -> Cache:
        return Cache(self._config.num_hidden_layers)

    def read(self, texts: Iterable[tuple[Cache, Sequence[int], int]]) -> list[Tensor]:
        """Read on in each text: (cache, new ids, how many of the last to give logits for).

        Returns the logits of each, fp32 [wanted, vocabulary].
        """
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        pieces = []
        sizes = []
        for cache, new, logits in texts:
            pieces.append(Piece(slice(len(ids), len(ids) + len(new)), cache))
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

    One thread at a time. Texts that are stepped together get what they would get alone.
    Raises ModelError for another model, and when the tokenizer can't serve or is not the
    assistant's.
    """

    def __init__(self, checkpoint: Checkpoint, assistant: Checkpoint | None = None) -> None:
        self.name = checkpoint.name
        self._encoder = prompt_encoder(checkpoint.tokenizer, GEMMA_CONTROL_TOKENS)
        self._tokenizer = checkpoint.tokenizer
        if assistant and _vocabulary(assistant) != _vocabulary(checkpoint):
            raise ModelError(
                f"{assistant.name} can't assist {checkpoint.name}: their tokenizers differ. "
                "Use a smaller model of the same family."
            )
        self._model = _Incremental(checkpoint)
        self._assistant = _Incremental(assistant) if assistant else None
        config: Any = checkpoint.model.config
        self.context = int(config.max_position_embeddings)
        self._ends = _end_tokens(checkpoint)

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
        self, prompt: Sequence[int], *, most: int, sampling: Sampling, seeds: Sequence[int]
    ) -> list[Writing]:
        """Begin as many texts of at most `most` new tokens as there are seeds, on one prompt."""
        texts: list[Writing] = []
        for seed in seeds:
            text = Writing(
                tokens=list(prompt),
                prompt=len(prompt),
                end=len(prompt) + most,
                sampling=sampling,
                source=torch.Generator(self._model.device).manual_seed(seed),
                cache=self._model.cache(),
                ahead=self._assistant.cache() if self._assistant else Cache(0),
                origin=texts[0] if texts else None,
            )
            texts.append(text)
        return texts

    @torch.inference_mode()
    def step(self, texts: Sequence[Writing]) -> list[list[int]]:
        """Run the model once over texts that have room left; returns the new tokens of each.

        None are new where a prompt has not been read to its end. Nothing follows an end token.
        """
        for text in texts:
            _join(text)
        guesses = self._guess([t for t in texts if len(t.tokens) > t.prompt])
        budget = _CHUNK
        reading = []
        for text in texts:
            if text.origin is not None:
                continue
            unread = text.tokens[text.cache.length :]
            guess = guesses.get(text, _Guess())
            if len(unread) > 1:
                unread = unread[:budget]
                budget -= len(unread)
            if unread:
                done = text.cache.length + len(unread) == len(text.tokens)
                wanted = 1 + len(guess.tokens) if done else 0
                reading.append((text, guess, [*unread, *guess.tokens], wanted))
        found = self._model.read((t.cache, new, wanted) for t, _, new, wanted in reading)
        written: dict[Writing, list[int]] = {}
        for (text, guess, _, wanted), logits in zip(reading, found, strict=True):
            text.forwards += 1
            if wanted:
                written[text] = self._write(text, guess, logits)
        return [written.get(text, []) for text in texts]

    def _write(self, text: Writing, guess: _Guess, logits: Tensor) -> list[int]:
        likely = probabilities(logits, text.sampling)
        draft = torch.stack(guess.likely) if guess.likely else likely[:0]
        new = accept(likely, guess.tokens, draft, text.source)
        end = next((i for i, token in enumerate(new) if self.ends(token)), len(new) - 1)
        new = new[: end + 1]
        text.tokens += new
        # What was guessed wrong is forgotten; the newest token is still to be read.
        text.cache.length = len(text.tokens) - 1
        text.ahead.length = min(text.ahead.length, len(text.tokens) - 1)
        return new

    def _guess(self, texts: Sequence[Writing]) -> dict[Writing, _Guess]:
        """Let the assistant write ahead in each text, as far as there is room."""
        guesses = {text: _Guess() for text in texts}
        if self._assistant is None:
            return guesses
        for ahead in range(_DRAFTED):
            writing = [t for t in texts if len(t.tokens) + ahead + 1 < t.end]
            for text in writing:  # the prompt, before the first guess
                while len(text.tokens) - text.ahead.length > _CHUNK:
                    at = text.ahead.length
                    self._assistant.read([(text.ahead, text.tokens[at : at + _CHUNK], 0)])
            if not writing:
                break
            found = self._assistant.read(
                (t.ahead, [*t.tokens, *guesses[t].tokens][t.ahead.length :], 1) for t in writing
            )
            for text, logits in zip(writing, found, strict=True):
                [likely] = probabilities(logits.to(self._model.device), text.sampling)
                guesses[text].likely.append(likely)
                guesses[text].tokens.append(draw(likely, text.source))
        return guesses


def _vocabulary(checkpoint: Checkpoint) -> tuple[int, dict[str, int]]:
    return checkpoint.model.config.vocab_size, checkpoint.tokenizer.get_vocab()


def _join(text: Writing) -> None:
    """Take over the origin's reading of the prompt, once it is done."""
    origin = text.origin
    if origin is not None and origin.cache.length >= text.prompt:
        text.cache = origin.cache.copy(text.prompt - 1)
        text.ahead = origin.ahead.copy(min(origin.ahead.length, text.prompt - 1))
        text.origin = None


def _end_tokens(checkpoint: Checkpoint) -> frozenset[int]:
    """Collect what ends a turn: by the tokenizer, by Gemma's format, by the generation config."""
    tokenizer = checkpoint.tokenizer
    configured: Any = checkpoint.model.generation_config
    listed = getattr(configured, "eos_token_id", None) or []
    ends = {listed} if isinstance(listed, int) else set(listed)
    ends |= {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    return frozenset(ends - {None})
