"""Learning policies from few labelled rows, without unlearning what the base knew."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what everybody calls it

from shieldgate.policy import Policy
from shieldgate.statistics import Ranking
from shieldgate.tuning.adapt import Method, TrainableScorer
from shieldgate.tuning.labelled import Labelled, Splits
from shieldgate.tuning.loop import Check, EarlyStopping, Schedule, train
from shieldgate.types import Direction

Group = tuple[str, Direction]


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """How a policy is learnt; `for_rows` gives the measured defaults (docs/tuning.md).

    A step asks about `batch` rows. `keep` weighs staying with the base on policies that are not
    trained, against each label. A pass holds about `tokens` tokens.
    """

    method: Method
    steps: int
    rate: float
    seed: int
    batch: int = 8
    keep: float = 0.5
    every: int = 20
    patience: int = 6
    tokens: int = 4096

    @classmethod
    def for_rows(cls, rows: int, method: Method, seed: int, **changes: Any) -> "Hyperparameters":
        """Choose for so many rows to learn from; `changes` are fields that were chosen already."""
        # Few rows are soon known by heart, and a fast rate forgets the base for them.
        full = 1e-4 * min(max(1.0, rows / 40), 16) ** 0.5
        rate = 2e-4 if method == "lora" else full
        return replace(cls(method, min(100 + rows // 2, 2000), rate, seed), **changes)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A row with the policies it is asked about: what is to be answered, and how much it weighs."""

    row: Labelled
    policies: Sequence[Policy]
    targets: Sequence[float]
    weights: Sequence[float]


class PolicyObjective:
    """What each step asks: rows drawn evenly over policies and answers.

    Every known label of a row is asked; an unknown one is not. Beside them goes one policy of
    `kept`, whose answer shall stay as the base gave it.
    """

    def __init__(
        self,
        trainable: TrainableScorer,
        rows: Sequence[Labelled],
        policies: Mapping[str, Policy],
        kept: Sequence[Policy],
        recipe: Hyperparameters,
    ) -> None:
        """Ask the base about `kept` first, before anything is learnt."""
        self.model = trainable.scorer.model
        self._trainable = trainable
        self._rows = rows
        self._policies = policies
        self._kept = kept if recipe.keep else ()
        self._recipe = recipe
        # The base's margins, [rows][kept].
        self._anchors = (
            trainable.ask([(row.exchange, self._kept) for row in rows]) if self._kept else []
        )
        self._cells: dict[str, dict[bool, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, row in enumerate(rows):
            for policy, violated in row.labels.items():
                self._cells[policy][violated].append(index)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """List what is trained: adapters only, where there are any."""
        return (
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Give what is trained, to save it."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what was saved."""
        for name, parameter in self.named_parameters():
            parameter.copy_(state[name])

    def losses(self, step: int) -> Iterator[Tensor]:
        """Yield the parts of a step's loss; they add up to it."""
        rng = Random(f"{self._recipe.seed}/lesson/{step}")
        asked = [self._draw(rng) for _ in range(self._recipe.batch)]
        total = sum(weight for one in asked for weight in one.weights)
        for indices, margins in self._trainable.passes(
            [(a.row.exchange, a.policies) for a in asked]
        ):
            targets = [target for i in indices for target in asked[i].targets]
            weights = [weight for i in indices for weight in asked[i].weights]
            yield (
                F.binary_cross_entropy_with_logits(
                    margins,
                    margins.new_tensor(targets),
                    margins.new_tensor(weights),
                    reduction="sum",
                )
                / total
            )

    def _draw(self, rng: Random) -> TrainingRow:
        cells = self._cells[rng.choice(list(self._cells))]
        index = rng.choice(cells[rng.choice(list(cells))])
        row = self._rows[index]
        policies = [self._policies[policy] for policy in row.labels]
        targets = [float(violated) for violated in row.labels.values()]
        weights = [1.0] * len(targets)
        if self._kept:
            place = rng.randrange(len(self._kept))
            policies.append(self._kept[place])
            targets.append(_probability(self._anchors[index][place]))
            weights.append(self._recipe.keep)
        return TrainingRow(row, policies, targets, weights)


def fit(
    trainable: TrainableScorer,
    splits: Splits,
    policies: Mapping[str, Policy],
    kept: Sequence[Policy],
    recipe: Hyperparameters,
    *,
    state: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_check: Callable[[Check], None] = lambda check: None,
) -> list[Check]:
    """Train, and leave the scorer as it was at its best on the validation part.

    Best is the highest average precision, the mean over policies and directions; among equals the
    lowest loss. Returns the checks, the first of which is the base. Goes on from `state`.
    """
    objective = PolicyObjective(trainable, splits.train, policies, kept, recipe)

    def measure() -> tuple[float, ...]:
        rows = splits.validation
        asked = [(row.exchange, [policies[policy] for policy in row.labels]) for row in rows]
        return quality(by_group(rows, trainable.ask(asked)))

    return train(
        objective,
        Schedule(recipe.steps, recipe.rate, warm_up=max(1, recipe.steps // 10), decay=0.0),
        state,
        save_every=recipe.every,
        muon=False,
        early_stopping=EarlyStopping(measure, recipe.every, recipe.patience, on_check),
        on_step=on_step,
    )


def by_group(
    rows: Sequence[Labelled], scored: Sequence[Sequence[float]]
) -> dict[Group, tuple[list[bool], list[float]]]:
    """Gather labels and margins by policy and direction; `scored` is in the order of labels."""
    found: dict[Group, tuple[list[bool], list[float]]] = defaultdict(lambda: ([], []))
    for row, margins in zip(rows, scored, strict=True):
        for (policy, violated), margin in zip(row.labels.items(), margins, strict=True):
            labels, values = found[policy, row.exchange.direction]
            labels.append(violated)
            values.append(margin)
    return dict(sorted(found.items()))


def quality(found: Mapping[Group, tuple[list[bool], list[float]]]) -> tuple[float, float]:
    """Sum up: the mean average precision where it is defined, and minus the mean loss."""
    precisions = []
    losses = []
    for labels, margins in found.values():
        truth, values = np.array(labels), np.array(margins)
        precision = Ranking(truth, values).curve().average_precision()
        if precision is not None:
            precisions.append(precision)
        losses += np.logaddexp(0.0, np.where(truth, -values, values)).tolist()
    return float(np.mean(precisions or 0.0)), -float(np.mean(losses))


def _probability(margin: float) -> float:
    return 1 / (1 + math.exp(-margin))
