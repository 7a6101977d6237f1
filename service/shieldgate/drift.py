"""How far scores have moved from those of calibration, by histograms of their margins.

Histograms add up, over hours and over processes; the population stability index (PSI) that compares
two of them does not. docs/drift.md says what it can't see.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Self

# The width of a bin, and what is beyond any margin that tells texts apart, in logits.
WIDTH = 0.25
OUTERMOST = 32.0

# A part holds at least this share of calibration's rows, and so many; there are twelve at most.
_SHARE = 1 / 12
_ROWS = 10
PARTS = 12

# With fewer scores than that, nothing is said.
ENOUGH = 100

# How often chance alone may exceed what `by_chance` says.
ALPHA = 0.001

# The usual bounds of the PSI; 0.1 is a mean that moved by a third of a standard deviation, 0.25 by
# half of one.
SHIFTED = 0.1
DRIFTED = 0.25

State = Literal["steady", "shifted", "drifted"]


def bin_of(margin: float) -> int:
    """Give the number of a margin's bin; what is beyond ±32 logits is in the outermost ones."""
    return math.floor(max(-OUTERMOST, min(OUTERMOST - WIDTH, margin)) / WIDTH)


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """How many rows have which margins: `counts` in bins of `WIDTH` logits, from `lowest` on.

    Where rows had weights, they count as many as so uneven a sample is worth. `of` says which rows,
    where they aren't those of the calibration that the histogram is part of.
    """

    lowest: float
    counts: tuple[float, ...]
    of: str = ""

    @classmethod
    def made(cls, counts: Mapping[int, float], of: str = "") -> Self:
        """Make one of counts by the number of the bin, of which there is at least one."""
        first, last = min(counts), max(counts)
        return cls(WIDTH * first, tuple(counts.get(n, 0) for n in range(first, last + 1)), of)

    @property
    def rows(self) -> float:
        """Count the rows."""
        return math.fsum(self.counts)

    def bins(self) -> dict[int, float]:
        """Give the counts by the number of the bin."""
        return dict(enumerate(self.counts, bin_of(self.lowest)))

    def share_from(self, margin: float) -> float:
        """Estimate the share of rows with this margin or more; within a bin they lie evenly."""
        place = (margin - self.lowest) / WIDTH
        above = sum(
            count * min(1.0, max(0.0, number + 1 - place))
            for number, count in enumerate(self.counts)
        )
        return above / self.rows

    def cuts(self) -> list[int]:
        """Cut it into parts of about equal size; gives the bins with which all but one begin."""
        least = max(_SHARE * self.rows, _ROWS)
        cuts, part, left = [], 0.0, self.rows
        for number, count in self.bins().items():
            if part >= least and left >= least:
                cuts.append(number)
                part = 0.0
            part += count
            left -= count
        return cuts


def in_parts(counts: Mapping[int, float], cuts: Sequence[int]) -> list[float]:
    """Add up counts by the number of the bin, in the parts that begin with `cuts`."""
    parts = [0.0] * (len(cuts) + 1)
    for number, count in counts.items():
        parts[bisect_right(cuts, number)] += count
    return parts


@dataclass(frozen=True, slots=True)
class Drift:
    """What a comparison found.

    `psi` is the index less what is to be expected of it where nothing moved, so it may be below 0.
    `by_chance` is what it then exceeds once in 1 / `ALPHA` samples.
    """

    psi: float
    by_chance: float

    @property
    def state(self) -> State:
        """Say in a word how far scores have moved; what may be chance is steady."""
        if self.psi < SHIFTED or self.psi <= self.by_chance:
            return "steady"
        return "shifted" if self.psi < DRIFTED else "drifted"


def compare(reference: ScoreHistogram, seen: Sequence[float], alpha: float = ALPHA) -> Drift | None:
    """Compare scores, counted in the parts of a reference; None where there are too few of either.

    PSI = Σ (p - q) ln(p / q). Where n and m rows come of one distribution, it is distributed as
    (1/n + 1/m) times χ² of B - 1 degrees of freedom, for B parts (Yurdakul & Naranjo, 2020), so it
    is (B - 1)(1/n + 1/m) on average. Half a row is added to each part, so that empty ones have a
    logarithm.
    """
    expected = in_parts(reference.bins(), reference.cuts())
    n, m, freedom = sum(seen), reference.rows, len(expected) - 1
    if n < ENOUGH or not freedom:
        return None
    q = [(count + 0.5) / (m + len(expected) / 2) for count in expected]
    p = [(count + 0.5) / (n + len(expected) / 2) for count in seen]
    index = sum((new - old) * math.log(new / old) for new, old in zip(p, q, strict=True))
    unit = 1 / n + 1 / m
    by_chance = unit * _chi_squared(freedom, 1 - alpha)
    return Drift(index - freedom * unit, by_chance - freedom * unit)


def _chi_squared(freedom: int, probability: float) -> float:
    """Estimate a quantile of χ² (Wilson & Hilferty, 1931); SciPy is no dependency of a gateway."""
    width = 2 / (9 * freedom)
    return freedom * (1 - width + NormalDist().inv_cdf(probability) * math.sqrt(width)) ** 3
