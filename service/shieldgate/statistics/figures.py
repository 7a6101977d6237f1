"""How well scores separate harmful from harmless: pure functions over numpy arrays.

`labels` are booleans, true for harmful; `scores` rise with harm; `flagged` is what was decided.
`weights` count how often each row is taken and default to once. What is undefined, on no rows or
on rows of one class, is None and never 0.

scikit-learn has most of these figures and the tests hold ours to it. They are written out here
because an interval takes a thousand resamples: a resample is a weighting of rows that were sorted
once, where scikit-learn would check and sort them anew for each figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.bool_]
Scores = NDArray[np.float64]
Weights = NDArray[Any]
Figures = Mapping[str, float | None]

BINS = 15


@dataclass(frozen=True, slots=True)
class Curve:
    """How many rows are flagged at or above each distinct score, from the highest score down.

    The three arrays have one length: [distinct scores]. All that depends on the order of scores
    alone is read off it; the rates need rows of both classes.
    """

    thresholds: Scores
    true_positives: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    positives: float
    negatives: float

    @property
    def precision(self) -> Scores:
        """Give the share of flagged rows that are harmful, at each threshold."""
        flagged = self.true_positives + self.false_positives
        return np.divide(
            self.true_positives, flagged, out=np.zeros_like(flagged), where=flagged > 0
        )

    @property
    def recall(self) -> Scores:
        """Give the share of harmful rows that are flagged, at each threshold."""
        return self.true_positives / self.positives

    @property
    def false_positive_rate(self) -> Scores:
        """Give the share of harmless rows that are flagged, at each threshold."""
        return self.false_positives / self.negatives

    @property
    def f1(self) -> Scores:
        """Give the harmonic mean of precision and recall, at each threshold."""
        flagged = self.true_positives + self.false_positives
        return 2 * self.true_positives / (flagged + self.positives)

    @property
    def defined(self) -> bool:
        """Tell whether there are rows of both classes."""
        return self.positives > 0 and self.negatives > 0

    def average_precision(self) -> float | None:
        """Estimate the area under the precision-recall curve by average precision.

        AP = Σ (Rₙ - Rₙ₋₁) Pₙ, as in scikit-learn. The trapezoidal rule interpolates linearly
        between points, which is too optimistic (Davis & Goadrich, 2006). A random ranking has
        the prevalence.
        """
        if not self.defined:
            return None
        return float(_steps(self.true_positives) @ self.precision) / self.positives

    def auroc(self) -> float | None:
        """Give the chance that a harmful row scores above a harmless one; ties count half."""
        if not self.defined:
            return None
        above = self.true_positives - _steps(self.true_positives) / 2
        return float(_steps(self.false_positives) @ above) / (self.positives * self.negatives)

    def optimal_f1(self) -> float | None:
        """Give the best F1 over all thresholds, chosen on these very rows."""
        return float(self.f1.max()) if self.defined else None

    def optimal_threshold(self) -> float | None:
        """Give the highest threshold that has the best F1."""
        return float(self.thresholds[self.f1.argmax()]) if self.defined else None

    def recall_at(self, false_positive_rate: float) -> float | None:
        """Give the best recall with at most this rate of false positives; 0 flags nothing."""
        if not self.defined:
            return None
        return float(self.recall[self.false_positive_rate <= false_positive_rate].max(initial=0.0))


class Ranking:
    """Rows in the order of their scores, sorted once, so that a curve costs one pass."""

    def __init__(self, labels: Labels, scores: Scores) -> None:
        """Take labels and scores, each [rows]."""
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._positive = labels[self._order]
        self._ends = np.flatnonzero(np.diff(ordered, append=np.nan))
        self._thresholds = ordered[self._ends]

    def curve(self, weights: Weights | None = None) -> Curve:
        """Count what is flagged at each threshold."""
        taken = np.ones(self._order.size) if weights is None else weights[self._order]
        positives = np.cumsum(np.where(self._positive, taken, 0.0))
        negatives = np.cumsum(np.where(self._positive, 0.0, taken))
        return Curve(
            thresholds=self._thresholds,
            true_positives=positives[self._ends],
            false_positives=negatives[self._ends],
            positives=float(positives[-1]) if positives.size else 0.0,
            negatives=float(negatives[-1]) if negatives.size else 0.0,
        )


def curve(labels: Labels, scores: Scores, weights: Weights | None = None) -> Curve:
    """Count what is flagged at each threshold."""
    return Ranking(labels, scores).curve(weights)


def prevalence(labels: Labels, weights: Weights | None = None) -> float | None:
    """Give the share of harmful rows, which is a random ranking's average precision."""
    return _mean(labels, weights)


def rates(
    labels: Labels, flagged: Labels, weights: Weights | None = None
) -> dict[str, float | None]:
    """Give F1, precision, recall and the false-positive rate of what was decided.

    Recall needs harmful rows and the false-positive rate harmless ones; precision and F1 need
    both, and precision something flagged.
    """
    cells = np.bincount(2 * labels + flagged, weights, minlength=4)
    true_negatives, false_positives, false_negatives, true_positives = map(float, cells)
    positives, negatives = false_negatives + true_positives, true_negatives + false_positives
    both = positives > 0 and negatives > 0
    found = true_positives + false_positives
    return {
        "f1": _share(2 * true_positives, found + positives) if both else None,
        "precision": _share(true_positives, found) if both else None,
        "recall": _share(true_positives, positives),
        "false_positive_rate": _share(false_positives, negatives),
    }


def brier(labels: Labels, probabilities: Scores, weights: Weights | None = None) -> float | None:
    """Give the mean squared difference between probability and label; 0 is best."""
    return _mean((probabilities - labels) ** 2, weights)


def brier_skill(
    labels: Labels, probabilities: Scores, weights: Weights | None = None
) -> float | None:
    """Say how much better the Brier score is than that of always saying the prevalence.

    1 is perfect, 0 no better, below 0 worse.
    """
    share, score = prevalence(labels, weights), brier(labels, probabilities, weights)
    if share is None or score is None or share in (0.0, 1.0):
        return None
    return 1.0 - score / (share * (1.0 - share))


@dataclass(frozen=True, slots=True)
class Reliability:
    """What was said and what was so, in bins of equal width over 0..1; arrays are [bins].

    `probability` and `frequency` are means over a bin's rows, 0 where it has none.
    """

    rows: NDArray[Any]
    probability: NDArray[np.float64]
    frequency: NDArray[np.float64]

    def error(self) -> float | None:
        """Give the expected calibration error: the bins' mean gap, weighted by their rows.

        Naeini et al., 2015, of the probability of harm.
        """
        gaps = np.abs(self.probability - self.frequency)
        return _mean(gaps, self.rows)


def reliability(
    labels: Labels, probabilities: Scores, weights: Weights | None = None, bins: int = BINS
) -> Reliability:
    """Compare probabilities with frequencies; a probability of 1 is in the last bin."""
    place = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    taken = np.ones(labels.size) if weights is None else weights
    rows = np.bincount(place, taken, minlength=bins)
    some = np.where(rows > 0, rows, 1.0)
    return Reliability(
        rows=rows,
        probability=np.bincount(place, taken * probabilities, minlength=bins) / some,
        frequency=np.bincount(place, taken * labels, minlength=bins) / some,
    )


class Sample:
    """Rows that were judged, ready to be measured under any weighting.

    `weights` say for how many rows each one stands, where it was not each row's equal chance to be
    here; a weighting is on top of them.
    """

    def __init__(
        self,
        labels: Labels,
        probabilities: Scores,
        flagged: Labels,
        weights: Weights | None = None,
    ) -> None:
        """Take arrays, each [rows]."""
        self.labels = labels
        self.probabilities = probabilities
        self.flagged = flagged
        self.weights = weights
        self._ranking = Ranking(labels, probabilities)

    @property
    def positives(self) -> int:
        """Count the harmful rows."""
        return int(self.labels.sum())

    @property
    def negatives(self) -> int:
        """Count the harmless rows."""
        return self.labels.size - self.positives

    def curve(self, weights: Weights | None = None) -> Curve:
        """Count what would be flagged at each threshold."""
        return self._ranking.curve(both(self.weights, weights))

    def where(self, chosen: Labels) -> "Sample":
        """Narrow it to some rows."""
        weights = None if self.weights is None else self.weights[chosen]
        return Sample(
            self.labels[chosen], self.probabilities[chosen], self.flagged[chosen], weights
        )

    def figures(self, weights: Weights | None = None) -> dict[str, float | None]:
        """Compute every figure by name."""
        curve, weights = self.curve(weights), both(self.weights, weights)
        return {
            "average_precision": curve.average_precision(),
            "auroc": curve.auroc(),
            "optimal_f1": curve.optimal_f1(),
            "recall_at_1_percent_fpr": curve.recall_at(0.01),
            "recall_at_5_percent_fpr": curve.recall_at(0.05),
            **rates(self.labels, self.flagged, weights),
            "brier": brier(self.labels, self.probabilities, weights),
            "brier_skill": brier_skill(self.labels, self.probabilities, weights),
            "calibration_error": reliability(self.labels, self.probabilities, weights).error(),
        }


def both(given: Weights | None, drawn: Weights | None) -> Weights | None:
    """Weight rows by two weightings at once."""
    if given is None or drawn is None:
        return drawn if given is None else given
    return given * drawn


def _steps(counts: Scores) -> Scores:
    steps = counts.copy()
    steps[1:] -= counts[:-1]
    return steps


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _mean(values: NDArray[Any], weights: Weights | None) -> float | None:
    total = values.size if weights is None else float(weights.sum())
    if not total:
        return None
    return float(values.sum() if weights is None else values @ weights) / total
