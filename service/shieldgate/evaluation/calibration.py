"""Turns scores with labels into thresholds, for the scorer that they came from."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from shieldgate.drift import ScoreHistogram, bin_of
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.decisions import policies, probabilities, reworded
from shieldgate.evaluation.score_columns import UNKNOWN, ScoreColumns
from shieldgate.plural import counted
from shieldgate.policy import Calibration, Policy, PolicyBook
from shieldgate.statistics import (
    Curve,
    Estimate,
    Labels,
    Weights,
    bootstrap,
    both,
    curve,
    rates,
    reliability,
)
from shieldgate.types import Direction
from shieldgate.version import __version__

FOLDS = 5

Aim = Literal["optimal-f1", "fpr", "recall", "precision"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a threshold is to achieve; `level` lies in 0..1 and means nothing for optimal-f1."""

    aim: Aim
    level: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `optimal-f1`, `fpr=0.01`, `recall=0.95`, `precision=0.9`; raise ValueError."""
        if text == "optimal-f1":
            return cls("optimal-f1")
        aim, _, level = text.partition("=")
        if aim not in get_args(Aim) or not 0 < float(level) < 1:
            raise ValueError(text)
        return cls(cast("Aim", aim), float(level))

    def __str__(self) -> str:
        """Write the target as `parse` reads it."""
        return self.aim if self.aim == "optimal-f1" else f"{self.aim}={self.level:g}"

    @property
    def figure(self) -> str:
        """Name the figure that tells how far it was achieved."""
        return {"optimal-f1": "f1", "fpr": "false_positive_rate"}.get(self.aim, self.aim)

    @property
    def cost(self) -> str:
        """Name the figure that pays for it."""
        return "false_positive_rate" if self.aim == "recall" else "recall"

    def choose(self, curve: Curve) -> int:
        """Choose a point of a curve; of those that will do, the one that errs least otherwise.

        Raises _ImpossibleError where none will do.
        """
        match self.aim:
            case "optimal-f1":
                return int(curve.f1.argmax())
            case "recall":
                return int(np.argmax(curve.recall >= self.level))
            case "fpr":
                fits = np.flatnonzero(curve.false_positive_rate <= self.level)
                best = f"the highest score alone gives {curve.false_positive_rate[0]:.3g}"
            case "precision":
                fits = np.flatnonzero(curve.precision >= self.level)
                best = f"the highest precision is {curve.precision.max():.3g}"
        if not fits.size:
            raise _ImpossibleError(f"no threshold gives {self}: {best}")
        return int(fits[-1])


@dataclass(frozen=True, slots=True)
class Fitted:
    """A calibration; how it does on the rows it was made from, and on rows it never saw.

    `achieved` and `held_out` are of the target's figure; `cost`, held out, is of the one that pays
    for it: the false-positive rate where the target is recall, else recall. `flagged` is the share
    of all rows that are flagged, held out. What is held out is cross-validated: each fifth of the
    rows is judged by what was made from the other four. `errors` are the expected calibration
    errors, held out, before and after a fit of temperature and bias.
    """

    policy: str
    direction: Direction
    before: Calibration
    calibration: Calibration
    achieved: Estimate
    held_out: Estimate
    cost: Estimate
    flagged: float
    rows: int
    harmful: int
    errors: tuple[float | None, float | None] | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A policy and direction that nothing was made for, and why."""

    policy: str
    direction: Direction
    why: str


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How calibrations are made; with `fit`, temperature and bias are made anew too."""

    target: Target
    fit: bool = False
    seed: int = 0


def calibrate(
    columns: ScoreColumns,
    book: PolicyBook,
    options: CalibrationOptions,
    *,
    today: date,
    only: Sequence[str] = (),
) -> Iterator[Fitted | Skipped]:
    """Make a calibration for each policy and direction that has rows, for the scores' scorer.

    `only` names policies; none means all of the scores. Raises ConfigurationError where a name
    is unknown, or where the book's guidelines aren't those that were scored.
    """
    wanted = only or columns.header.policies
    unknown = set(wanted) - set(columns.header.policies)
    if unknown:
        raise ConfigurationError(
            f"There are no scores of {', '.join(sorted(unknown))}. The file has scores of "
            f"{', '.join(columns.header.policies)}."
        )
    changed = [policy for policy in reworded(columns.header, book) if policy in wanted]
    if changed:
        raise ConfigurationError(
            f"The guidelines of {', '.join(changed)} were reworded since they were scored, so "
            "these margins answer another question. Score again, or name other policies."
        )
    for policy in policies(columns, book):
        for direction in columns.directions() if policy.id in wanted else ():
            rows = _Rows.of(columns, policy.id, direction)
            try:
                fitted = _fit(rows, policy, direction, columns.header.scorer, options)
            except _ImpossibleError as why:
                yield Skipped(policy.id, direction, str(why))
            else:
                provenance = _provenance(fitted, columns, options, today)
                yield replace(
                    fitted, calibration=replace(fitted.calibration, provenance=provenance)
                )


class _ImpossibleError(Exception):
    """Nothing can be made from these rows; the message says why."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows with a known label; the arrays are [rows]. Without `weights`, each is one row."""

    margins: NDArray[np.float32]
    labels: Labels
    weights: NDArray[np.float64] | None

    @classmethod
    def of(cls, columns: ScoreColumns, policy: str, direction: Direction) -> "_Rows":
        margins, labels = columns.margins[policy], columns.labels[policy]
        known = columns.of(direction) & (labels != UNKNOWN) & ~np.isnan(margins)
        weights = None if columns.weights is None else columns.weights[known]
        return cls(margins[known], labels[known] == 1, weights)

    def where(self, chosen: Labels) -> "_Rows":
        weights = None if self.weights is None else self.weights[chosen]
        return _Rows(self.margins[chosen], self.labels[chosen], weights)


def _fit(
    rows: _Rows, policy: Policy, direction: Direction, scorer: str, options: CalibrationOptions
) -> Fitted:
    labels = rows.labels
    harmful = int(labels.sum())
    for kind, count in (("harmful", harmful), ("harmless", labels.size - harmful)):
        if count < FOLDS:
            raise _ImpossibleError(
                f"{counted(count, 'row is', 'rows are') if count else 'no row is'} known to be "
                f"{kind}; it takes {FOLDS} to hold some of them out"
            )
    before = policy.calibration(scorer, direction) or Calibration(policy.thresholds[direction])
    made = _made(rows, before, options)
    unseen = np.empty(labels.size)
    flagged = np.empty(labels.size, np.bool_)
    for fold in _folds(labels, options.seed):
        from_others = _made(rows.where(~fold), before, options)
        unseen[fold] = probabilities(rows.margins[fold], from_others)
        flagged[fold] = unseen[fold] >= from_others.threshold
    seen = probabilities(rows.margins, made) >= made.threshold
    return Fitted(
        policy=policy.id,
        direction=direction,
        before=before,
        calibration=replace(made, scores=_histogram(rows)),
        achieved=_estimate(rows, seen, options.target.figure, options.seed),
        held_out=_estimate(rows, flagged, options.target.figure, options.seed),
        cost=_estimate(rows, flagged, options.target.cost, options.seed),
        flagged=float(np.average(flagged, weights=rows.weights)),
        rows=labels.size,
        harmful=harmful,
        errors=(
            reliability(labels, probabilities(rows.margins, before), rows.weights).error(),
            reliability(labels, unseen, rows.weights).error(),
        )
        if options.fit
        else None,
    )


def _made(rows: _Rows, before: Calibration, options: CalibrationOptions) -> Calibration:
    scale = fit_sigmoid(rows.margins, rows.labels, rows.weights) if options.fit else before
    found = curve(rows.labels, probabilities(rows.margins, scale), rows.weights)
    point = options.target.choose(found)
    below = found.thresholds[point + 1] if point + 1 < found.thresholds.size else 0.0
    return Calibration(
        _roundest(float(below), float(found.thresholds[point])), scale.temperature, scale.bias
    )


def fit_sigmoid(
    margins: NDArray[Any], labels: Labels, weights: Weights | None = None
) -> Calibration:
    """Fit temperature and bias by maximum likelihood; the threshold is 0.5.

    The labels are softened as Platt (1999) does, so that the maximum exists even where a margin
    separates the classes. Newton's method, with steps halved until they help (Lin, Lin & Weng,
    2007).
    """
    x = np.stack([margins.astype(np.float64), np.ones(labels.size)])
    taken = np.ones(labels.size) if weights is None else weights / weights.mean()
    positives = int(labels.sum())
    negatives = labels.size - positives
    soft = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(at: NDArray[np.float64]) -> float:
        z = at @ x
        return float(taken @ (np.logaddexp(0, z) - soft * z))

    at = np.array([0.0, math.log((positives + 1) / (negatives + 1))])
    for _ in range(100):
        p = 0.5 * (1 + np.tanh(at @ x / 2))
        slope = x @ (taken * (p - soft))
        step = np.linalg.solve((x * (taken * p * (1 - p))) @ x.T + 1e-12 * np.eye(2), slope)
        while np.abs(step).max() > 1e-9 and loss(at - step) > loss(at):
            step /= 2
        at = at - step
        if np.abs(step).max() <= 1e-9:
            break
    if at[0] < 1e-6:
        raise _ImpossibleError("the margins don't rise with harm, so no temperature fits them")
    return Calibration(0.5, float(f"{1 / at[0]:.5g}"), float(f"{at[1]:.5g}"))


def _histogram(rows: _Rows) -> ScoreHistogram:
    """Count margins; rows with weights as so many as a sample of equal weights is worth (Kish)."""
    weights = np.ones(rows.labels.size) if rows.weights is None else rows.weights
    scale = float(weights.sum() / (weights**2).sum())
    counts: dict[int, float] = defaultdict(float)
    for margin, weight in zip(rows.margins, weights, strict=True):
        counts[bin_of(float(margin))] += float(weight) * scale
    return ScoreHistogram.made({number: round(count, 2) for number, count in counts.items()})


def _folds(labels: Labels, seed: int) -> Iterator[Labels]:
    """Deal the rows of each class out evenly and at random."""
    random = np.random.default_rng(seed)
    fold = np.empty(labels.size, np.int8)
    for rows in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        fold[random.permutation(rows)] = np.arange(rows.size) % FOLDS
    return (fold == number for number in range(FOLDS))


def _roundest(below: float, at: float) -> float:
    """Give the number with the fewest digits that flags `at` and passes `below`."""
    middle = (below + at) / 2
    for digits in range(1, 17):
        rounded = float(f"{middle:.{digits}g}")
        if below < rounded <= at:
            return rounded
    return at


def _estimate(rows: _Rows, flagged: Labels, figure: str, seed: int) -> Estimate:
    def measure(drawn: Weights | None) -> dict[str, float | None]:
        return {"": rates(rows.labels, flagged, both(rows.weights, drawn))[figure]}

    return bootstrap(measure, rows.labels.size, seed=seed)[""]


def _provenance(
    fitted: Fitted, columns: ScoreColumns, options: CalibrationOptions, today: date
) -> Mapping[str, object]:
    header, figure = columns.header, options.target.figure
    found: dict[str, object] = {
        "target": str(options.target),
        "achieved": _plain(figure, fitted.achieved),
        "held_out": _plain(figure, fitted.held_out),
    }
    if fitted.errors:
        before, after = map(_rounded, fitted.errors)
        found["calibration_error"] = {"before": before, "held_out": after}
    elif (fitted.before.temperature, fitted.before.bias) != (1.0, 0.0):
        source = fitted.before.provenance
        found["temperature_and_bias"] = source.get("temperature_and_bias") or {
            key: source[key] for key in ("dataset", "dataset_digest", "date") if key in source
        }
    return found | {
        "rows": fitted.rows,
        "harmful": fitted.harmful,
        "dataset": header.dataset,
        "dataset_digest": header.dataset_digest,
        **({"weight": weight} if (weight := header.options.get("weight")) else {}),
        "identity": header.identity,
        "date": today.isoformat(),
        "shieldgate": __version__,
    }


def _plain(figure: str, estimate: Estimate) -> dict[str, object]:
    interval = [_rounded(estimate.low), _rounded(estimate.high)]
    return {figure: _rounded(estimate.value), "interval": interval}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
