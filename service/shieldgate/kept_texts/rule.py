"""Which decisions are worth a person's look."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shieldgate.types import Judgement

KeptFor = Literal["near", "random"]


@dataclass(frozen=True, slots=True)
class KeepRule:
    """Which decisions' texts are kept: those near a threshold, and of all others a random share.

    `near` is the greatest distance, in logits, of a policy's probability from its threshold; 0
    keeps none for that. `share` lies in 0..1.
    """

    share: float
    near: float

    def choose(
        self, judgements: Iterable[Judgement], draw: float
    ) -> tuple[float, tuple[KeptFor, ...]]:
        """Give the chance that a decision had to be kept, and the rules that keep it, if any.

        `draw` is uniform in 0..1. All that is kept as `random` is by itself a random sample.
        """
        near = any(distance(j.probability, j.threshold) <= self.near for j in judgements)
        why: list[KeptFor] = ["near"] if self.near and near else []
        chance = 1.0 if why else self.share
        return chance, tuple(why + ["random"] * (draw < self.share))


def distance(probability: float, threshold: float) -> float:
    """Give the distance of two probabilities in logits; infinite where one is 0 or 1."""
    if probability == threshold:
        return 0.0
    return abs(_logit(probability) - _logit(threshold))


def _logit(p: float) -> float:
    return math.copysign(math.inf, p - 0.5) if p in (0.0, 1.0) else math.log(p / (1.0 - p))
