"""What is learnt in each stage: first what a text is, then the questions about it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what everybody calls it
from transformers import PreTrainedModel

from recipes.starter.sampling import Example, split_words
from recipes.starter.wording import HARMS, Guidelines
from shieldgate.prompt import Control, Segment, Template
from shieldgate.scoring.encoding import PromptEncoder
from shieldgate.scoring.local import decoder
from shieldgate.scoring.pack import Pack, pack
from shieldgate.tuning.attention import Padded, by_size
from shieldgate.types import Exchange

# How much a text's embedding counts beside its labels, and how much both count beside questions.
_EMBEDDING = 0.7
_SUMMARY = 0.3

Batches = Callable[[int], Sequence[Example]]
"""Gives the examples of a step."""


@dataclass(frozen=True)
class Student:
    """The student of the distillation, with what turns an exchange into its prompts.

    A step's packs go through the model in groups of about `tokens` tokens. `half` computes the
    products in bfloat16, which GPUs and some processors do several times faster. In half of the
    texts, words are cut at up to a share of `cuts` of their letters.
    """

    model: PreTrainedModel
    encoder: PromptEncoder
    template: Template
    tokens: int = 3000
    half: bool = False
    cuts: float = 0.0

    @cached_property
    def answers(self) -> tuple[int, int]:
        """Give the token ids of the template's positive and negative answer."""
        template = self.template
        return self.encoder.token(template.positive), self.encoder.token(template.negative)

    @property
    def device(self) -> torch.device:
        """Tell where the model is."""
        return self.model.device

    def pack(
        self, exchange: Exchange, guidelines: Sequence[str], rng: Random | None = None
    ) -> Pack:
        """Build the prompts of an exchange, packed as for scoring; `rng` draws the cuts."""
        prompts: list[Sequence[Segment]] = [self.template.segments(exchange, g) for g in guidelines]
        if rng and self.cuts and rng.random() < 0.5:
            share = rng.random() * self.cuts
            # The last segment holds the guideline; those before it are the same in all prompts.
            trunk = [
                piece
                for s in prompts[0][:-1]
                for piece in ([s] if isinstance(s, Control) else split_words(s, share, rng))
            ]
            prompts = [[*trunk, prompt[-1]] for prompt in prompts]
        return pack(self.encoder.encode(prompts))

    def hidden(self, layout: Padded) -> Tensor:
        """Compute the last hidden states, [tokens, hidden]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return decoder.hidden_states(self.model, layout)

    def margins(self, states: Tensor) -> Tensor:
        """Compute z_yes - z_no of last hidden states, fp32 [branches], as scoring does."""
        return decoder.margins(self.model, states, self.answers)

    def layouts(self, packs: Sequence[Pack]) -> Iterator[tuple[list[int], Padded]]:
        """Lay a step's packs out in groups of similar size; yields their indices beside."""
        window = decoder.sliding_window(self.model)
        for group in by_size(packs, self.tokens):
            layout = Padded.of([packs[i] for i in group], window)
            yield group, layout.to(self.device)


class WordStage(nn.Module):
    """Learn what each token says by itself: all labels from the mean of a text's embeddings.

    Minutes of this give the embedding what a bag-of-words model knows, before the costly stages.
    """

    def __init__(self, student: Student, batches: Batches) -> None:
        super().__init__()
        self.embedding: Any = student.model.get_input_embeddings()
        self.heads = nn.Linear(student.model.config.hidden_size, len(HARMS)).to(student.device)
        self._student = student
        self._batches = batches

    def losses(self, step: int) -> Iterator[Tensor]:
        """Yield the step's loss."""
        examples = self._batches(step)
        device = self._student.device
        texts = self._student.encoder.encode([(e.exchange.judged or " ",) for e in examples])
        starts = torch.tensor([0, *accumulate(map(len, texts[:-1]))], device=device)
        ids = torch.tensor([i for text in texts for i in text], device=device)
        means = F.embedding_bag(ids, self.embedding.weight, starts, mode="mean")
        goals, trust = _targets(examples, device)
        # As large as the model's own input, which is scaled by the root of its width.
        yield _cross_entropy(self.heads(means * means.shape[1] ** 0.5), goals, trust / trust.sum())

    @torch.no_grad()
    def settle(self, size: float) -> None:
        """Scale the embedding to the root mean square `size`: layers must be able to add to it."""
        weight = self.embedding.weight
        weight.mul_(size / weight.square().mean().sqrt())


class Summary(nn.Module):
    """What the end of a trunk is to tell of its text: all known labels, and its embedding.

    `embeddings` [rows, width] is what a teacher makes of the pool's rows, if there is one. The
    heads are thrown away after training.
    """

    def __init__(self, hidden: int, embeddings: Tensor | None = None) -> None:
        super().__init__()
        self.labels = nn.Linear(hidden, len(HARMS))
        self.embedding = None if embeddings is None else nn.Linear(hidden, embeddings.shape[1])
        self._embeddings = embeddings

    def loss(self, states: Tensor, examples: Sequence[Example], step: Sequence[Example]) -> Tensor:
        """Compute the part of a step's loss that `examples` are, whose states are [n, hidden]."""
        goals, trust = _targets(examples, states.device)
        loss = _cross_entropy(self.labels(states), goals, trust / _trust(step))
        if self.embedding is not None and self._embeddings is not None:
            goal = self._embeddings[[e.place for e in examples]].to(states)
            wrong = F.mse_loss(self.embedding(states), goal, reduction="sum") / goal.shape[1]
            loss = loss + _EMBEDDING * wrong / len(step)
        return loss


class TrunkStage(nn.Module):
    """Learn from trunks alone: the cheap part of a prompt, and it teaches every label at once."""

    def __init__(self, student: Student, summary: Summary, batches: Batches, *, seed: int) -> None:
        super().__init__()
        self.model = student.model
        self.summary = summary.to(student.device)
        self._student = student
        self._batches = batches
        self._seed = seed

    def losses(self, step: int) -> Iterator[Tensor]:
        """Yield the parts of a step's loss; they add up to it."""
        examples = self._batches(step)
        rng = Random(f"{self._seed}/trunk/{step}")
        # Two guidelines that differ from their first token on leave what all prompts share.
        packs = [
            Pack(self._student.pack(e.exchange, ('"No', "A"), rng).trunk, ()) for e in examples
        ]
        for group, layout in self._student.layouts(packs):
            states = self._student.hidden(layout)[layout.ends].float()
            yield self.summary.loss(states, [examples[i] for i in group], examples)


class QuestionStage(nn.Module):
    """Learn to answer: trunk and branches, a loss on the margin of each branch.

    Up to `questions` of an example's labels are asked. The trunk goes on to be summed up, lest
    what it knows of all labels be lost.
    """

    def __init__(
        self,
        student: Student,
        summary: Summary,
        batches: Batches,
        guidelines: Guidelines,
        *,
        questions: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = student.model
        self.summary = summary.to(student.device)
        self._student = student
        self._batches = batches
        self._guidelines = guidelines
        self._questions = questions
        self._seed = seed

    def losses(self, step: int) -> Iterator[Tensor]:
        """Yield the parts of a step's loss; they add up to it."""
        examples = [e for e in self._batches(step) if e.labels]
        rng = Random(f"{self._seed}/wording/{step}")
        asked = [list(self._asked(e, rng)) for e in examples]
        packs = [
            self._student.pack(e.exchange, [guideline for guideline, _, _ in questions], rng)
            for e, questions in zip(examples, asked, strict=True)
        ]
        total = sum(trust for questions in asked for _, _, trust in questions)
        for group, layout in self._student.layouts(packs):
            known = [question for i in group for question in asked[i]]
            goals, weights = torch.tensor(
                [(violated, trust / total) for _, violated, trust in known],
                device=self._student.device,
            ).T
            states = self._student.hidden(layout)
            loss = _cross_entropy(self._student.margins(states[layout.reads]), goals, weights)
            # Where a single question is asked, it belongs to the trunk.
            several = [n for n, i in enumerate(group) if len(asked[i]) > 1]
            ends = states[layout.ends[several]].float()
            summed = self.summary.loss(ends, [examples[group[n]] for n in several], examples)
            yield loss + _SUMMARY * summed

    def _asked(self, example: Example, rng: Random) -> Iterator[tuple[str, float, float]]:
        """Draw guidelines; yields each with how probably it is violated, and what that counts."""
        direction = example.exchange.direction
        for label in example.labels[: self._questions]:
            yield self._guidelines.draw(label.harm, direction, rng), label.violated, label.trust
        if example.mention:
            guideline = self._guidelines.mention(example.mention.words, direction, rng)
            yield guideline, float(example.mention.present), 0.5


def _targets(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """Write answers and trust as tensors [examples, harms]."""
    goals = torch.zeros(len(examples), len(HARMS))
    trust = torch.zeros_like(goals)
    for row, example in enumerate(examples):
        for label in example.labels:
            column = HARMS.index(label.harm)
            goals[row, column], trust[row, column] = label.violated, label.trust
    return goals.to(device), trust.to(device)


def _trust(examples: Sequence[Example]) -> float:
    return sum(label.trust for example in examples for label in example.labels)


def _cross_entropy(logits: Tensor, goals: Tensor, weights: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, goals, weights, reduction="sum")
