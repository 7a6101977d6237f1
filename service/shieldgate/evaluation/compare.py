"""Two scorers, or two wordings of the policies, on the same rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.decisions import decide_columns
from shieldgate.evaluation.files import write_result
from shieldgate.evaluation.score_columns import ScoreColumns
from shieldgate.evaluation.score_file import Header
from shieldgate.policy import PolicyBook
from shieldgate.statistics import (
    Estimate,
    Labels,
    Sample,
    Scores,
    bootstrap,
    clopper_pearson,
    difference,
)
from shieldgate.types import Direction


@dataclass(frozen=True, slots=True)
class Pair:
    """Figures of `a`, of `b`, and a - b with paired intervals, on rows that both scored.

    `same` is the share of rows that both flag or neither does. `only_a` and `only_b` count the
    rows that one side alone flags: harmful ones, and harmless. `moved` is how much higher b's
    probabilities are: the mean, and the 5th, 50th and 95th percentile.
    """

    direction: Direction
    policy: str | None
    rows: int
    harmful: int
    a: Mapping[str, float | None]
    b: Mapping[str, float | None]
    difference: Mapping[str, Estimate]
    same: Estimate
    only_a: tuple[int, int]
    only_b: tuple[int, int]
    moved: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, and a pair for each direction and policy that both have."""

    a: Header
    b: Header
    pairs: Sequence[Pair]

    def write(self, path: Path) -> None:
        """Write the figures as JSON; raise ConfigurationError."""
        write_result(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def compare(
    a: ScoreColumns,
    b: ScoreColumns,
    books: tuple[PolicyBook, PolicyBook],
    profile: str,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Comparison:
    """Compare two files of scores, each under its book's profile of that name.

    Raises ConfigurationError where they aren't of the same rows and labels, and UnknownName
    where a book lacks the profile.
    """
    if a.header.dataset_digest != b.header.dataset_digest:
        raise ConfigurationError(
            f"{a.header.dataset} and {b.header.dataset} differ in content, so their scores can't "
            "be paired. Score the same file twice."
        )
    ours, theirs = (
        {(j.direction, j.policy): j for j in decide_columns(columns, book, book.profile(profile))}
        for columns, book in zip((a, b), books, strict=True)
    )
    pairs = []
    for key in ours.keys() & theirs.keys():
        direction, policy = key
        one, other = ours[key].sample, theirs[key].sample
        rows = a.rows[ours[key].at]
        same = np.array_equal(rows, b.rows[theirs[key].at])
        if not same or not np.array_equal(one.labels, other.labels):
            raise ConfigurationError(
                f"The two files have other rows or labels for {policy or 'all policies'} "
                f"({direction}). Finish both runs, with the same --limit and --sample."
            )
        pairs.append(
            Pair(
                direction=direction,
                policy=policy,
                rows=rows.size,
                harmful=one.positives,
                a=one.figures(),
                b=other.figures(),
                difference=bootstrap(
                    difference(one, other), rows.size, seed=seed, resamples=resamples
                ),
                same=clopper_pearson(int((one.flagged == other.flagged).sum()), rows.size),
                only_a=_by_label(one, one.flagged & ~other.flagged),
                only_b=_by_label(one, other.flagged & ~one.flagged),
                moved=_moved(other.probabilities - one.probabilities),
            )
        )
    pairs.sort(key=lambda pair: (pair.direction, pair.policy or ""))
    return Comparison(a.header, b.header, pairs)


def _by_label(sample: Sample, rows: Labels) -> tuple[int, int]:
    return int((rows & sample.labels).sum()), int((rows & ~sample.labels).sum())


def _moved(differences: Scores) -> dict[str, float]:
    if not differences.size:
        return {}
    places = np.percentile(differences, (5, 50, 95)).tolist()
    return {"mean": float(differences.mean())} | dict(
        zip(("p5", "p50", "p95"), places, strict=True)
    )
