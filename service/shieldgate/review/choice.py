"""Which of what was judged a person is asked about, and with which chance each was chosen."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shieldgate.kept_texts.rule import distance
from shieldgate.types import Judgement

Why = Literal["near", "disagree", "random"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """By which rules something was chosen, and the probability in 0..1 that it had to be."""

    why: tuple[Why, ...]
    chance: float

    @property
    def weight(self) -> float:
        """Say for how many it stands."""
        return 1 / self.chance


@dataclass(frozen=True, slots=True)
class Choice:
    """What is worth a look: the unsure, the disputed, and of all the rest a random share.

    - `near` is the greatest distance of a probability from its threshold, in logits; 0 is none.
      With `near_probability` it is in 0..1 instead.
    - `pairs` are policies that should agree: chosen is where just one of them is violated.
    - `share` in 0..1 is drawn by `seed` and id, so the same is chosen again, whatever came to it.
    """

    near: float = 1.0
    near_probability: float | None = None
    pairs: Sequence[tuple[str, str]] = ()
    share: float = 0.05
    seed: int = 0

    def choose(
        self, id: str, judgements: Iterable[Judgement], others: Mapping[str, bool] | None = None
    ) -> Chosen | None:
        """Choose by the judgements of one text, or don't.

        `others` says which policies another scorer found violated.
        """
        judged = {j.policy: j for j in judgements}
        why: list[Why] = []
        if any(map(self._is_near, judged.values())):
            why.append("near")
        differs = others is not None and any(
            judged[policy].violated != violated
            for policy, violated in others.items()
            if policy in judged
        )
        if differs or any(self._differ(judged, *pair) for pair in self.pairs):
            why.append("disagree")
        chance = 1.0 if why else self.share
        if drawn(self.seed, "chosen", id) < self.share:
            why.append("random")
        return Chosen(tuple(why), chance) if why else None

    def _is_near(self, judgement: Judgement) -> bool:
        if self.near_probability is not None:
            gap = abs(judgement.probability - judgement.threshold)
            return gap <= self.near_probability
        return self.near > 0 and distance(judgement.probability, judgement.threshold) <= self.near

    def _differ(self, judged: Mapping[str, Judgement], a: str, b: str) -> bool:
        return a in judged and b in judged and judged[a].violated != judged[b].violated


def drawn(seed: int, purpose: str, id: str) -> float:
    """Draw a number for an id, uniform in 0..1; the same arguments give the same."""
    named = f"{seed}\0{purpose}\0{id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest()) / 2**64
