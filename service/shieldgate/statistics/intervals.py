"""How far figures may be off by chance: intervals, bounds, and what so few rows can't tell."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from shieldgate.plural import counted
from shieldgate.statistics.figures import Figures, Sample, Weights

_ENOUGH = 50
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


def bootstrap(
    figures: Callable[[Weights | None], Figures],
    rows: int,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Estimate]:
    """Estimate figures with percentile intervals, by drawing `rows` rows with replacement.

    `figures` is given each resample as whole-number weights, [rows]. A resample that leaves a
    figure undefined is left out of its interval. The same seed gives the same resamples, so
    figures of two scorers on the same rows are paired when one call computes their difference.
    """
    values = figures(None)
    random = np.random.default_rng(seed)
    drawn = [
        figures(np.bincount(random.integers(rows, size=rows), minlength=rows))
        for _ in range(resamples if rows else 0)
    ]
    return {name: _estimate(value, [d[name] for d in drawn]) for name, value in values.items()}


def clopper_pearson(hits: int, trials: int, confidence: float = CONFIDENCE) -> Estimate:
    """Bound a binomial share from both sides, exactly (Clopper & Pearson, 1934)."""
    if not trials:
        return Estimate(None)
    tail = (1 - confidence) / 2
    low = 1 - upper_bound(trials - hits, trials, 1 - tail)
    return Estimate(hits / trials, low, upper_bound(hits, trials, 1 - tail))


def upper_bound(hits: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """Bound a binomial share from above: so few hits would come by chance 1 - confidence."""
    if hits >= trials:
        return 1.0
    k = np.arange(hits + 1)
    ways = np.concatenate(([0.0], np.cumsum(np.log((trials - k[:-1]) / (k[:-1] + 1)))))
    low, high = hits / trials, 1.0
    for _ in range(50):
        p = (low + high) / 2
        likely = float(np.exp(ways + k * math.log(p) + (trials - k) * math.log1p(-p)).sum())
        low, high = (p, high) if likely > 1 - confidence else (low, p)
    return high


def difference(a: Sample, b: Sample) -> Callable[[Weights | None], Figures]:
    """Subtract `b`'s figures from `a`'s, on the same rows in the same order, for `bootstrap`."""

    def figures(weights: Weights | None) -> Figures:
        ours, theirs = a.figures(weights), b.figures(weights)
        return {name: _minus(ours[name], theirs[name]) for name in ours}

    return figures


def doubts(positives: int, negatives: int) -> list[str]:
    """Say, in sentences for people, why figures on so few rows mean little."""
    if positives == negatives == 0:
        return ["no rows with a known label"]
    found = []
    if positives == 0 or negatives == 0:
        missing = "harmful" if positives == 0 else "harmless"
        found.append(f"no {missing} rows: what needs both classes is undefined")
    if 0 < positives < _ENOUGH:
        found.append(
            f"only {counted(positives, 'harmful row')}: recall is known to ± "
            f"{98 / positives**0.5:.0f} points at best"
        )
    if 0 < negatives < 100:
        found.append(
            f"only {counted(negatives, 'harmless row')}: one of them is already more "
            "than 1 % false positives"
        )
    return found


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _estimate(value: float | None, drawn: list[float | None]) -> Estimate:
    defined = [d for d in drawn if d is not None]
    if value is None or not defined:
        return Estimate(value)
    low, high = cast("list[float]", np.percentile(defined, (2.5, 97.5)).tolist())
    return Estimate(value, low, high)
