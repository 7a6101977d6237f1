"""Labelled data: examples one by one, and what there is to say of them before they are scored."""

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import orjson

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.adapters import ADAPTERS
from shieldgate.evaluation.examples import Adapter, Example, Fields, RowError
from shieldgate.evaluation.row_files import BadRow, JsonLines, Record
from shieldgate.evaluation.sources import Source
from shieldgate.plural import counted
from shieldgate.types import Exchange

_SHOWN = 5  # bad rows that are listed; all are counted


@dataclass(frozen=True, slots=True)
class Row:
    """A good row: its place among them, from 0, its groups, and for how many rows it stands."""

    number: int
    id: str
    example: Example
    groups: dict[str, str]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Survey:
    """What one reading of a dataset found.

    `digest` is the sha256 of the file's content, or of the rows where there is no file.
    `harmful` and `labels` count values, as the data has them; `bad` lists the first bad rows of
    `bad_count`.
    """

    digest: str
    rows: int
    responses: int
    harmful: Counter[int | None]
    labels: dict[str, Counter[int]]
    duplicates: int
    bad_count: int
    bad: tuple[BadRow, ...]

    def notes(self) -> list[str]:
        """Say what a reader of the figures should know of the data."""
        notes = []
        if self.bad_count:
            places = ", ".join(f"{bad.place} ({bad.why})" for bad in self.bad)
            more = ", …" if self.bad_count > len(self.bad) else ""
            notes.append(
                f"{counted(self.bad_count, 'bad row was', 'bad rows were')} left out, in "
                f"{'line' if self.bad_count == 1 else 'lines'} {places}{more}"
            )
        if self.duplicates:
            notes.append(
                f"{counted(self.duplicates, 'row has', 'rows have')} an id that another row has too"
            )
        return notes

    def one_sided(self) -> list[str]:
        """Say before hours of scoring which figures the data can't give."""
        notes = []
        if bool(self.harmful[1]) != bool(self.harmful[0]):
            notes.append(f"no row is {'harmless' if self.harmful[1] else 'harmful'}")
        for value in (0, 1):
            only = [repr(name) for name, found in self.labels.items() if not found[1 - value]]
            if only:
                notes.append(f"wherever it is known, the label is {value}: {', '.join(only)}")
        return [f"{note}, so figures that need both are undefined" for note in notes]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled data as it is evaluated.

    `groups` names columns by whose values figures are to be split. Only the first `limit` good
    rows count, all where it is None. `as_response` judges each text as a response to an empty
    prompt. `weight` names the column that says for how many rows each one stands.
    """

    source: Source
    adapter: Adapter
    groups: tuple[str, ...] = ()
    limit: int | None = None
    as_response: bool = False
    weight: str | None = None

    def rows(self) -> Iterator[Row]:
        """Read the good rows, in bounded memory; raise ConfigurationError."""
        return islice((row for row in self.read() if isinstance(row, Row)), self.limit)

    def texts(self, rows: Collection[int]) -> dict[int, Exchange]:
        """Look up what was judged in some rows, by reading the data again."""
        wanted = set(rows)
        found: dict[int, Exchange] = {}
        for row in self.rows():
            if row.number in wanted:
                found[row.number] = row.example.exchange
                if len(found) == len(wanted):
                    break
        return found

    def survey(self, *, strict: bool = False) -> Survey:
        """Read the data once, and sum it up; memory grows by 8 bytes a row.

        Raises ConfigurationError when the data can't be read or holds nothing to evaluate, and
        with `strict` at the first bad row.
        """
        content = hashlib.sha256()
        ids = array("Q")
        responses = bad_count = 0
        harmful: Counter[int | None] = Counter()
        labels: dict[str, Counter[int]] = {}
        bad: list[BadRow] = []
        for row in self.read():
            if isinstance(row, BadRow):
                if strict:
                    raise ConfigurationError(f"{self.source.name}:{row.place}: {row.why}.")
                bad_count += 1
                bad += [row] if len(bad) < _SHOWN else []
                continue
            example = row.example
            ids.append(_hash(row.id))
            harmful[example.harmful] += 1
            responses += example.exchange.response is not None
            for name, value in example.labels.items():
                labels.setdefault(name, Counter())[value] += 1
            weight = [row.weight] if self.weight else []
            content.update(orjson.dumps([row.id, example, row.groups, *weight]))
            if len(ids) == self.limit:
                break
        if not labels and not harmful[0] and not harmful[1]:
            raise ConfigurationError(self._nothing(len(ids), bad_count, bad))
        if bad_count > len(ids):
            raise ConfigurationError(self._mostly_bad(len(ids), bad_count, bad))
        return Survey(
            digest=self.source.digest() or content.hexdigest(),
            rows=len(ids),
            responses=responses,
            harmful=harmful,
            labels=dict(sorted(labels.items())),
            duplicates=_repeated(ids),
            bad_count=bad_count,
            bad=tuple(bad),
        )

    def is_reviewed(self) -> bool:
        """Tell whether its rows are those of a review, which chose them by chance and weight."""
        if not isinstance(self.source, JsonLines):
            return False
        first = next((r for r in self.source.records() if isinstance(r, Record)), None)
        return first is not None and {"weight", "chosen"} <= first.fields.keys()

    def read(self) -> Iterator[Row | BadRow]:
        """Read all rows, good and bad, in bounded memory; raise ConfigurationError."""
        number = 0
        for record in self.source.records():
            if isinstance(record, BadRow):
                yield record
                continue
            try:
                examples = list(self.adapter.read(record.fields))
                groups = {column: _group(record.fields, column) for column in self.groups}
                weight = _weight(record.fields, self.weight) if self.weight else 1.0
            except RowError as refused:
                yield BadRow(record.line, str(refused), file=record.file)
                continue
            for example in examples:
                turned = _as_response(example) if self.as_response else example
                yield Row(number, example.id or record.place, turned, groups, weight)
                number += 1

    def _nothing(self, rows: int, bad_count: int, bad: Sequence[BadRow]) -> str:
        """Say why there is nothing to evaluate, and which adapter fits the columns."""
        if rows:
            why = f"of its {counted(rows, 'row')} none has a label"
        elif bad:
            why = f"of its {counted(bad_count, 'row')} none can be used; {_first(bad)}"
        else:
            why = "it holds no rows"
        columns = self._columns()
        mend = self._adapter_for(columns)
        if not mend and columns:
            names = ", ".join(sorted(columns))
            mend = f"Its columns are {names}: name yours, as in --map prompt=COLUMN."
        return f"{self.source.name}: {why}. {mend or 'Give a file with labelled rows.'}"

    def _mostly_bad(self, rows: int, bad_count: int, bad: Sequence[BadRow]) -> str:
        """Say that figures would be of the few rows that are left, and why the others aren't."""
        return (
            f"{self.source.name}: {bad_count:,} of its {rows + bad_count:,} rows can't be used, so "
            f"that figures would be of the lesser part; {_first(bad)}. "
            f"{self._adapter_for(self._columns()) or 'Mend them, or leave them out of the file.'}"
        )

    def _columns(self) -> set[str]:
        first = next((r for r in self.source.records() if isinstance(r, Record)), None)
        return set(first.fields) if first else set()

    def _adapter_for(self, columns: set[str]) -> str:
        """Say which other adapter fits the columns; nothing where none does."""
        fitting = (a for a in ADAPTERS.values() if a is not self.adapter and a.columns <= columns)
        name = next((adapter.name for adapter in fitting), "")
        return name and f"Its columns look like those of {name}: add --adapter {name}."


def _first(bad: Sequence[BadRow]) -> str:
    return f"line {bad[0].place} {bad[0].why}"


def _as_response(example: Example) -> Example:
    return replace(example, exchange=Exchange("", example.exchange.prompt))


def _group(fields: Fields, column: str) -> str:
    if column not in fields:
        raise RowError(f"has no column {column!r}")
    return str(fields[column])


def _weight(fields: Fields, column: str) -> float:
    if column not in fields:
        raise RowError(f"has no column {column!r}")
    try:
        weight = float(fields[column])
    except (TypeError, ValueError):
        weight = 0.0
    if not 0 < weight < math.inf:
        raise RowError(f"{column!r} is no number above 0")
    return weight


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest())


def _repeated(ids: "array[int]") -> int:
    """Count the ids that came before."""
    return len(ids) - len(np.unique(np.frombuffer(ids, dtype=np.uint64)))
