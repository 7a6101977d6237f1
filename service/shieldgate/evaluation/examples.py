"""What records become, and how their columns are read."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shieldgate.evaluation.label_rules import number
from shieldgate.types import Exchange, Label

Fields = Mapping[str, Any]


class RowError(Exception):
    """A record can't be used; says why, without its text."""


@dataclass(frozen=True, slots=True)
class Example:
    """What is judged, and what its labels say; a label that is missing is unknown.

    `labels` is keyed by the dataset's words, which `labels.Labelling` turns into policies.
    """

    exchange: Exchange
    id: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    harmful: Label | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """Reads the records of one dataset; `columns` are those by which it is recognised.

    `read` gives the examples of a record, and raises RowError.
    """

    name: str
    columns: frozenset[str]
    read: Callable[[Fields], Iterable[Example]]


def cell(fields: Fields, column: str) -> Any:
    """Take a value, or None where it is missing, which pandas writes as NaN."""
    value = fields.get(column)
    return None if isinstance(value, float) and math.isnan(value) else value


def text(fields: Fields, column: str) -> str:
    """Take a text that may be empty; raise RowError."""
    value = fields.get(column)
    if not isinstance(value, str):
        raise RowError(
            f"{column!r} is not text" if column in fields else f"has no column {column!r}"
        )
    return value


def prompt(fields: Fields, column: str) -> str:
    """Take a text to be judged by itself; raise RowError where it is empty."""
    value = text(fields, column)
    if not value.strip():
        raise RowError(f"{column!r} is empty")
    return value


def exchange(fields: Fields, asked: str, answered: str | None) -> Exchange:
    """Take a prompt, or a response, where there is one, with its prompt; raise RowError."""
    if answered is None or cell(fields, answered) is None:
        return Exchange(prompt(fields, asked))
    response = text(fields, answered)
    return Exchange(text(fields, asked), response)


def identifier(fields: Fields, column: str) -> str | None:
    """Take an id, whatever it is written as; None where there is none."""
    given = cell(fields, column)
    return None if given is None else str(given)


def label(fields: Fields, column: str) -> Label | None:
    """Read a label; what is missing or empty is unknown. Raises RowError for anything else."""
    value = cell(fields, column)
    if value is None or value == "":
        return None
    known = _LABELS.get(str(value).strip().casefold())
    if known is None:
        soft = ""
        if 0 < (number(value) or 0) < 1:
            soft = f"; the rule '{column}>=0.5' in --map makes a label of such numbers"
        raise RowError(f"{column!r} is neither 0 nor 1{soft}")
    return known


_LABELS: Mapping[str, Label] = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1),
    **dict.fromkeys(("0", "0.0", "false", "no"), 0),
}


def word(fields: Fields, column: str, words: Mapping[str, Label]) -> Label | None:
    """Read a label that is written as a word."""
    value = cell(fields, column)
    if value is None or value == "":
        return None
    if value not in words:
        raise RowError(f"{column!r} is none of {', '.join(words)}")
    return words[value]


def known_labels(labels: Mapping[str, Label | None]) -> dict[str, Label]:
    """Leave out what is unknown."""
    return {name: value for name, value in labels.items() if value is not None}


def either(a: Label | None, b: Label | None) -> Label | None:
    """Join two labels: 1 where one is, 0 where both are, else unknown."""
    if 1 in (a, b):
        return 1
    return None if None in (a, b) else 0
