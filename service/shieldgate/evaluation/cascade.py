"""Finds where a cheap scorer may decide for another one, from the scores of both on the same rows.

What counts is that the decisions stay those of the second scorer; labels are not needed. Of the
texts that it finds to violate a policy, at most a given share may be passed by the first, and of
the others at most that share may be flagged: two limits that hold however rare harm is in traffic.
"""

import io
import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.decisions import policies, reworded
from shieldgate.evaluation.score_columns import ScoreColumns
from shieldgate.evaluation.writeback import one_line
from shieldgate.policy import PolicyBook
from shieldgate.scoring.cascade import (
    Band,
    Sure,
    guideline_digest,
    load_cascade,
    thresholds_in_force,
)
from shieldgate.statistics import CONFIDENCE, Estimate, clopper_pearson, upper_bound
from shieldgate.types import Direction
from shieldgate.version import __version__

FOLDS = 5

Margins = NDArray[np.float64]
Rows = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CascadeOptions:
    """`most_changed` is the share of decisions, of either kind, that may change; in 0..1.

    With `may_flag` the first scorer may flag texts, too, and not only pass them: what it flags
    wrongly counts against all that is harmless, which in traffic is nearly all.
    """

    most_changed: float
    may_flag: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FittedBand:
    """A band, and how it does on rows that it wasn't found on.

    Each fifth of the rows is judged by the band that the other four give. `asked` is the share of
    rows that go to the second scorer. `lost` is the share of its violations that the first one
    passes, `added` the share of the others that the first one flags, with 95 % intervals.
    """

    policy: str
    direction: Direction
    band: Band
    rows: int
    violations: int
    asked: float
    lost: Estimate
    added: Estimate


@dataclass(frozen=True, slots=True)
class Unsure:
    """A policy and direction in which the second scorer is always asked, and why."""

    policy: str
    direction: Direction
    why: str


@dataclass(frozen=True, slots=True)
class CascadeFit:
    """What was found for all policies.

    `asked` is the share of rows of which the second scorer judges any policy, held out, and
    `questions` the share of (row, policy) that it judges.
    """

    bands: Sequence[FittedBand | Unsure]
    asked: float
    questions: float


def fit_cascade(
    first: ScoreColumns,
    second: ScoreColumns,
    book: PolicyBook,
    options: CascadeOptions,
    *,
    today: date,
) -> CascadeFit:
    """Find the bands for each policy and direction that both scored.

    The thresholds are those of all profiles of the book: a decision is changed where it is under
    any of them. Raises ConfigurationError where the scores aren't of the same rows and guidelines.
    """
    _check_same(first, second, book)
    folds = np.random.default_rng(options.seed).permutation(second.rows.size) % FOLDS
    asked: list[tuple[Rows, Rows]] = []
    found: list[FittedBand | Unsure] = []
    for policy in policies(second, book):
        for direction in second.directions():
            here = second.of(direction)
            here &= ~np.isnan(first.margins[policy.id]) & ~np.isnan(second.margins[policy.id])
            thresholds = thresholds_in_force(book, policy, direction, second.header.scorer)
            pairs = _Pairs(
                first.margins[policy.id][here].astype(np.float64),
                second.margins[policy.id][here].astype(np.float64),
                thresholds,
            )
            fit, held_out = _fit(pairs, folds[here], policy.id, direction, options)
            unsure = np.zeros(here.size, np.bool_)
            unsure[here] = held_out
            asked.append((here, unsure))
            if isinstance(fit, FittedBand):
                band = fit.band.model_copy(
                    update={
                        "guideline": guideline_digest(policy.guidelines[direction]),
                        "provenance": _provenance(fit, second, options, today),
                    }
                )
                fit = replace(fit, band=band)
            found.append(fit)
    scored = np.logical_or.reduce([here for here, _ in asked])
    any_asked = np.logical_or.reduce([unsure for _, unsure in asked])
    return CascadeFit(
        found,
        asked=float(any_asked[scored].mean()),
        questions=sum(int(u.sum()) for _, u in asked) / sum(int(h.sum()) for h, _ in asked),
    )


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Margins of both scorers on the same rows, and the second's thresholds; arrays are [rows]."""

    first: Margins
    second: Margins
    thresholds: tuple[float, float]

    @property
    def violated(self) -> Rows:
        """Tell what the second scorer flags under some threshold in force."""
        return self.second >= self.thresholds[0]

    @property
    def passed(self) -> Rows:
        """Tell what it passes under some threshold in force."""
        return self.second < self.thresholds[1]

    def where(self, chosen: Rows) -> "_Pairs":
        return _Pairs(self.first[chosen], self.second[chosen], self.thresholds)


def _fit(
    pairs: _Pairs,
    folds: NDArray[np.int64],
    policy: str,
    direction: Direction,
    options: CascadeOptions,
) -> tuple[FittedBand | Unsure, Rows]:
    """Find a band; gives it with the rows that go to the second scorer, held out."""
    size = pairs.first.size
    safe, harmful = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    for fold in range(FOLDS):
        inside = folds == fold
        from_others = _band(pairs.where(~inside), options)
        safe |= inside & _below(pairs, from_others)
        harmful |= inside & _above(pairs, from_others)
    asked = ~(safe | harmful)
    violations = int(pairs.violated.sum())
    if asked.all():
        # With fewer, not even none lost would show that the limit is kept.
        needed = math.log(1 - CONFIDENCE) / math.log1p(-options.most_changed) * FOLDS / (FOLDS - 1)
        why = "the first scorer is sure of no text"
        if violations < needed:
            why = f"it takes {needed:.0f} violations to know better, and there are {violations}"
        return Unsure(policy, direction, why), asked
    lost, added = safe & pairs.violated, harmful & pairs.passed
    fitted = FittedBand(
        policy,
        direction,
        _band(pairs, options),
        rows=size,
        violations=violations,
        asked=float(asked.mean()),
        lost=clopper_pearson(int(lost.sum()), violations),
        added=clopper_pearson(int(added.sum()), int(pairs.passed.sum())),
    )
    return fitted, asked


def _band(pairs: _Pairs, options: CascadeOptions) -> Band:
    """Find the ends between which the second scorer is asked, and what counts beyond them.

    The share that changes falls as an end moves out, so the furthest in at which its upper bound
    is within the limit keeps it with that confidence (Bates et al., 2021, arXiv 2101.02703).
    """
    low = _end(pairs.first[pairs.violated], options.most_changed)
    high = -_end(-pairs.first[pairs.passed], options.most_changed) if options.may_flag else math.inf
    if low > high:
        low = high = (low + high) / 2
    lowest, highest = (round(threshold, 4) for threshold in pairs.thresholds)
    sides = {}
    # Rounded outwards. What counts is the middle of what the second scorer says of such texts.
    safe = pairs.second[(pairs.first < low) & ~pairs.violated]
    if safe.size:
        margin = min(math.floor(np.median(safe) * 1e3) / 1e3, lowest - 1e-3)
        sides["safe"] = Sure(beyond=math.floor(low * 1e4) / 1e4, margin=margin)
    harmful = pairs.second[(pairs.first > high) & ~pairs.passed]
    if harmful.size:
        margin = max(math.ceil(np.median(harmful) * 1e3) / 1e3, highest + 1e-3)
        sides["harmful"] = Sure(beyond=math.ceil(high * 1e4) / 1e4, margin=margin)
    return Band(guideline="", thresholds=(lowest, highest), **sides)


def _end(margins: Margins, most: float) -> float:
    """Give the highest margin below which, with confidence, at most the share `most` lies."""
    within = bisect(range(margins.size), most, key=lambda hits: upper_bound(hits, margins.size))
    return float(np.sort(margins)[within - 1]) if within else -math.inf


def _below(pairs: _Pairs, band: Band) -> Rows:
    return np.less(pairs.first, band.safe.beyond if band.safe else -math.inf)


def _above(pairs: _Pairs, band: Band) -> Rows:
    return np.greater(pairs.first, band.harmful.beyond if band.harmful else math.inf)


def _check_same(first: ScoreColumns, second: ScoreColumns, book: PolicyBook) -> None:
    a, b = first.header, second.header
    if (a.dataset_digest, a.policies) != (b.dataset_digest, b.policies) or not np.array_equal(
        first.rows, second.rows
    ):
        raise ConfigurationError(
            f"The scores of {a.scorer} and {b.scorer} are of different rows or policies: "
            f"{first.rows.size:,} of {a.dataset} and {second.rows.size:,} of {b.dataset}. Run "
            "'shieldgate evaluate' with the same data and options for both."
        )
    if not second.rows.size:
        raise ConfigurationError(f"There are no scores of {b.scorer} yet.")
    if a.scorer == b.scorer:
        raise ConfigurationError(f"Both files have scores of {a.scorer}; a cascade takes two.")
    changed = sorted({*reworded(a, book), *reworded(b, book)})
    if changed:
        raise ConfigurationError(
            f"The guidelines of {', '.join(changed)} were reworded since they were scored. Score "
            "again with both."
        )


def _provenance(
    fit: FittedBand, second: ScoreColumns, options: CascadeOptions, today: date
) -> dict[str, object]:
    return {
        "most_changed": options.most_changed,
        "held_out": {
            "asked": round(fit.asked, 4),
            "lost": _plain(fit.lost),
            "added": _plain(fit.added),
        },
        "rows": fit.rows,
        "violations": fit.violations,
        "dataset": second.header.dataset,
        "dataset_digest": second.header.dataset_digest,
        "date": today.isoformat(),
        "shieldgate": __version__,
    }


def _plain(estimate: Estimate) -> dict[str, object]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "share": rounded(estimate.value),
        "interval": [rounded(estimate.low), rounded(estimate.high)],
    }


def write_cascade(
    path: Path, first_model: str | None, scorers: tuple[str, str], fit: CascadeFit
) -> str:
    """Write a cascade as YAML; what `path` says of the first scorer stays, but for a new model.

    Raises ConfigurationError where `path` holds something else.
    """
    yaml = YAML()
    yaml.width = 1000
    first = CommentedMap(model=scorers[0].partition("@")[0])
    if path.exists():
        load_cascade(path)
        first = yaml.load(path)["first"]
    if first_model is not None:
        first["model"] = first_model
    bands: dict[str, dict[Direction, Any]] = {}
    for one in fit.bands:
        if isinstance(one, FittedBand):
            entry = one.band.model_dump(mode="json", exclude_none=True)
            bands.setdefault(one.policy, {})[one.direction] = {
                key: one_line(value) for key, value in entry.items() if key != "provenance"
            } | {"provenance": {k: one_line(v) for k, v in entry["provenance"].items()}}
    out = io.StringIO()
    yaml.dump({"first": first, "scorers": one_line(list(scorers)), "bands": bands}, out)
    return out.getvalue()
