"""Scored rows as numpy columns: about 50 bytes a row, so a million rows fit anywhere."""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shieldgate.evaluation.score_file import Header, ScoredRow, read_scores
from shieldgate.types import DIRECTIONS, Direction

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Categorical:
    """A column of few distinct texts: `codes` [rows] index `values`; -1 where a row has none."""

    values: tuple[str, ...]
    codes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """All rows of a file of scores, in the dataset's order; every array is [rows].

    `margins` and `labels` are by policy id: a margin is NaN where it was not scored, a label is 0
    or 1, and -1 where unknown; so is `harmful`. `direction` indexes DIRECTIONS. `weights` are None
    where each row stands for itself.
    """

    header: Header
    rows: NDArray[np.int64]
    direction: NDArray[np.int8]
    margins: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int8]]
    harmful: NDArray[np.int8]
    groups: Mapping[str, Categorical]
    weights: NDArray[np.float64] | None = None

    def of(self, direction: Direction) -> NDArray[np.bool_]:
        """Tell which rows judge this direction."""
        return np.equal(self.direction, DIRECTIONS.index(direction))

    def directions(self) -> tuple[Direction, ...]:
        """List the directions that have rows."""
        return tuple(d for d in DIRECTIONS if self.of(d).any())


def read_columns(path: Path) -> ScoreColumns:
    """Read a file of scores; raise ConfigurationError where it is none."""
    return to_columns(*read_scores(path))


def to_columns(header: Header, scored: Iterable[ScoredRow]) -> ScoreColumns:
    """Gather rows into columns, holding one row at a time beside them."""
    rows, direction, harmful, weights = array("q"), array("b"), array("b"), array("d")
    margins = {policy: array("f") for policy in header.policies}
    labels = {policy: array("b") for policy in header.policies}
    groups: dict[str, _Codes] = {}
    for count, row in enumerate(scored):
        rows.append(row.row)
        direction.append(DIRECTIONS.index(row.direction))
        harmful.append(UNKNOWN if row.harmful is None else row.harmful)
        weights.append(row.weight)
        for policy in header.policies:
            margins[policy].append(row.margins.get(policy, np.nan))
            labels[policy].append(row.labels.get(policy, UNKNOWN))
        for name in row.groups.keys() - groups.keys():
            groups[name] = _Codes(count)
        for name, codes in groups.items():
            codes.append(row.groups.get(name))
    # A file is in the order of scoring, which is by length here and not there.
    order = np.argsort(np.array(rows, np.int64), kind="stable")
    return ScoreColumns(
        header=header,
        rows=np.array(rows, np.int64)[order],
        direction=np.array(direction, np.int8)[order],
        margins={policy: np.array(column, np.float32)[order] for policy, column in margins.items()},
        labels={policy: np.array(column, np.int8)[order] for policy, column in labels.items()},
        harmful=np.array(harmful, np.int8)[order],
        groups={
            name: Categorical(codes.values, np.array(codes.codes, np.int32)[order])
            for name, codes in groups.items()
        },
        weights=np.array(weights)[order] if any(weight != 1.0 for weight in weights) else None,
    )


class _Codes:
    """Texts as they come, each distinct one kept once."""

    def __init__(self, missing: int) -> None:
        """Start after `missing` rows that lacked the column."""
        self._known: dict[str, int] = {}
        self.codes = array("i", [UNKNOWN]) * missing

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(self._known)

    def append(self, value: str | None) -> None:
        self.codes.append(
            UNKNOWN if value is None else self._known.setdefault(value, len(self._known))
        )
