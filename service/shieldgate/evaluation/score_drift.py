"""Compares the scores of decisions with those of calibration, by policy, direction and scorer."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import kstwo

from shieldgate.drift import ALPHA, Drift, ScoreHistogram, State, bin_of, compare, in_parts
from shieldgate.evaluation.decision_records import DecisionRecord
from shieldgate.policy import Calibration, PolicyBook
from shieldgate.statistics import Estimate, upper_bound
from shieldgate.types import Direction

# How much more often, or less often, texts are to be flagged for it to matter by itself.
_FACTOR = 1.5


class Key(NamedTuple):
    """What scores are kept apart by."""

    scorer: str
    policy: str
    direction: Direction


@dataclass(slots=True)
class _Scores:
    bins: Counter[int] = field(default_factory=Counter)
    flagged: int = 0


class CollectedScores:
    """The scores of decisions; `first` and `last` say of which time, where that is known.

    All final verdicts count, those on texts that were stopped and those from a cache too: they are
    what a threshold has to do with. Of one text that came often the scores are known once, so
    `worth` says how many texts of their own they are worth.
    """

    def __init__(self, book: PolicyBook) -> None:
        self._book = book
        self._scores: dict[Key, _Scores] = defaultdict(_Scores)
        self._texts: dict[tuple[str, Direction], Counter[str]] = defaultdict(Counter)
        self.decisions = 0
        self.unjudged = 0
        self.first: datetime | None = None
        self.last: datetime | None = None

    def add(self, record: DecisionRecord) -> None:
        """Count a decision."""
        self.decisions += 1
        if at := record.timestamp:
            self.first, self.last = min(self.first or at, at), max(self.last or at, at)
        judged = {policy: found.margin for policy, found in record.policies.items() if found}
        self.unjudged += not judged
        for policy, margin in judged.items():
            key = Key(record.scorer, policy, record.direction)
            scores = self._scores[key]
            scores.bins[bin_of(margin)] += 1
            fitted = self.calibration(key)
            scores.flagged += bool(fitted and fitted.probability(margin) >= fitted.threshold)
        if judged and record.prompt_digest:
            # Half of each is enough to tell texts apart.
            digest = record.prompt_digest[:16] + (record.response_digest or "")[:16]
            self._texts[record.scorer, record.direction][digest] += 1

    def calibration(self, key: Key) -> Calibration | None:
        """Find what was fitted for these scores."""
        policy = self._book.policies.get(key.policy)
        return policy.calibration(key.scorer, key.direction) if policy else None

    def worth(self, scorer: str, direction: Direction) -> float:
        """Give n / Σ c², for texts that came c times each and n times together (Kish, 1965)."""
        counts = np.fromiter(self._texts[scorer, direction].values(), np.float64)
        return float(counts.sum() / (counts**2).sum()) if counts.size else 1.0

    def compared(self) -> Iterator["ScoreDrift"]:
        """Compare all of them, in the order of policies."""
        for key, scores in sorted(self._scores.items()):
            yield _compared(
                key, scores, self.calibration(key), self.worth(key.scorer, key.direction)
            )

    def histogram(self, key: Key, of: str) -> ScoreHistogram:
        """Give the scores as what is to be expected from now on."""
        worth = self.worth(key.scorer, key.direction)
        bins = self._scores[key].bins
        return ScoreHistogram.made({n: round(count * worth, 2) for n, count in bins.items()}, of)


Flags = Literal["more", "less"]


@dataclass(frozen=True, slots=True)
class ScoreDrift:
    """What became of the scores of a policy in one direction.

    They are `scores` in number, of `worth` as many texts of their own. What follows is None where
    nothing is `expected`; `of` says what is, where it isn't the calibration's own rows. `index` and
    the test are None also where there are too few of either. `statistic` is Kolmogorov's and
    Smirnov's, the largest difference of both cumulative shares. `flagged` is the share at or above
    the calibrated threshold, and `then` what it was among those expected, each with its 95 %
    interval.
    """

    key: Key
    scores: int
    worth: float
    expected: float | None = None
    of: str = ""
    index: Drift | None = None
    statistic: float | None = None
    p_value: float | None = None
    then: Estimate | None = None
    flagged: Estimate | None = None
    flags: Flags | None = None

    @property
    def state(self) -> State | None:
        """Say in a word how far the scores have moved."""
        return self.index.state if self.index else None

    @property
    def alarming(self) -> bool:
        """Tell whether somebody should do something."""
        return self.state == "drifted" or self.flags is not None


def _compared(key: Key, scores: _Scores, fitted: Calibration | None, worth: float) -> ScoreDrift:
    number = scores.bins.total()
    found = ScoreDrift(key, number, number * worth)
    if fitted is None or fitted.scores is None:
        return found
    reference = fitted.scores
    bins = {at: count * worth for at, count in scores.bins.items()}
    index = compare(reference, in_parts(bins, reference.cuts()))
    before = reference.share_from(fitted.margin(fitted.threshold))
    shares = ((before, reference.rows), (scores.flagged / number, number * worth))
    then, now = (Estimate(share, *_bounds(share, rows, 0.95)) for share, rows in shares)
    found = replace(
        found, expected=reference.rows, of=reference.of, index=index, then=then, flagged=now
    )
    if index is None:
        return found
    statistic, p_value = kolmogorov_smirnov(reference.bins(), bins)
    return replace(found, statistic=statistic, p_value=p_value, flags=_flags(*shares))


def kolmogorov_smirnov(
    expected: Mapping[int, float], seen: Mapping[int, float]
) -> tuple[float, float]:
    """Test whether counts by bin come of one distribution; gives the statistic and its p-value.

    It is that of `scipy.stats.ks_2samp` on the bins, with the asymptotic p-value. Scores of one bin
    are tied, which makes the p-value too large rather than too small.
    """
    at = sorted(expected.keys() | seen.keys())
    both = np.array([[counts.get(n, 0.0) for n in at] for counts in (expected, seen)])
    m, n = both.sum(axis=1)
    shares = np.cumsum(both, axis=1) / both.sum(axis=1, keepdims=True)
    statistic = float(np.abs(shares[0] - shares[1]).max())
    return statistic, float(kstwo.sf(statistic, np.round(m * n / (m + n))))


def _bounds(share: float, rows: float, confidence: float) -> tuple[float, float]:
    """Bound a share of so many rows from both sides, as `clopper_pearson` does."""
    trials = max(1, round(rows))
    hits, one_sided = round(share * trials), (1 + confidence) / 2
    low = 1 - upper_bound(trials - hits, trials, one_sided)
    return low, upper_bound(hits, trials, one_sided)


def _flags(then: tuple[float, float], now: tuple[float, float]) -> Flags | None:
    """Say whether texts are flagged more often by half, or less so, and not by chance."""
    (least, most), (low, high) = (_bounds(*one, 1 - ALPHA) for one in (then, now))
    if low > most and now[0] >= _FACTOR * then[0]:
        return "more"
    if high < least and then[0] >= _FACTOR * now[0]:
        return "less"
    return None
