"""Files of rows: JSON, delimited values and Parquet in, records out, one at a time."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shieldgate.errors import ConfigurationError, needed
from shieldgate.evaluation.delimited import read_values
from shieldgate.evaluation.json_list import items
from shieldgate.evaluation.storage import RemoteFile
from shieldgate.evaluation.text_lines import LONGEST_LINE, lines, not_utf8, opened

if TYPE_CHECKING:
    from pyarrow import parquet


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where a record begins: its line or number, from 1; and its file, if there are several."""

    line: int
    file: str = field(default="", kw_only=True)

    @property
    def place(self) -> str:
        """Write it for people."""
        return f"{self.file}:{self.line}" if self.file else str(self.line)


@dataclass(frozen=True, slots=True)
class Record(_Placed):
    """The columns of one record."""

    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow(_Placed):
    """A record that can't be used, and why; never its text."""

    why: str


@dataclass(frozen=True, slots=True)
class _File:
    path: Path | RemoteFile

    @property
    def name(self) -> str:
        """Name it by its file."""
        return self.path.name

    def digest(self) -> str:
        """Digest the file's content; what is compressed counts as it was before."""
        with opened(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class JsonLines(_File):
    """One JSON object a line."""

    def records(self) -> Iterator[Record | BadRow]:
        """Read the lines; those that hold no JSON object are bad rows."""
        with opened(self.path) as file:
            for number, line in lines(file, self.path):
                if line is None:
                    yield BadRow(number, f"is longer than {LONGEST_LINE:,} bytes")
                elif line.strip():
                    yield self._record(number, line)

    def _record(self, number: int, line: bytes) -> Record | BadRow:
        # The standard library's parser, which keeps long numbers and reads the NaN that it writes.
        try:
            fields = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
            if b"\\u" in line:
                json.dumps(fields, ensure_ascii=False).encode()
        except (ValueError, RecursionError, _Repeated) as refused:
            return BadRow(number, _why(refused))
        if not isinstance(fields, dict):
            return BadRow(number, "is not a JSON object")
        return Record(number, fields)


@dataclass(frozen=True, slots=True)
class Json(_File):
    """A list of JSON objects, or, as many name such files, one object a line."""

    def records(self) -> Iterator[Record | BadRow]:
        """Read the objects; what is none is a bad row."""
        with opened(self.path) as file:
            listed = items(file, self.path)
            for number, item in enumerate(listed or (), start=1):
                yield JsonLines(self.path)._record(number, item)
        if listed is None:
            yield from JsonLines(self.path).records()


@dataclass(frozen=True, slots=True)
class Csv(_File):
    """Values under a line of column names, parted by commas, semicolons or tabs."""

    def records(self) -> Iterator[Record | BadRow]:
        """Read the records; those that can't be read or have too many columns are bad rows."""
        with opened(self.path) as file:
            tabs = ".tsv" in map(str.lower, self.path.suffixes)
            values = read_values(lines(file, self.path), "\t" if tabs else None)
            line, columns = next(values, (1, []))
            if isinstance(columns, str):
                raise ConfigurationError(f"{self.path}:{line}: {columns}. Mend the file here.")
            # Those without a name can't be asked for, so that they may be many.
            _refuse_repeated(self.path, filter(None, columns))
            for line, found in values:
                if isinstance(found, str):
                    yield BadRow(line, found)
                elif len(found) == len(columns):
                    yield Record(line, dict(zip(columns, found, strict=True)))
                elif found:
                    yield BadRow(line, f"has {len(found)} columns instead of {len(columns)}")


@dataclass(frozen=True, slots=True)
class Parquet(_File):
    """A Parquet file, or its `row_groups` from the first up to, not including, the second."""

    row_groups: tuple[int, int] | None = None

    def records(self) -> Iterator[Record | BadRow]:
        """Read the records in small batches."""
        with self._parquet() as file:
            _refuse_repeated(self.path, (column.path for column in file.schema))
            first, end = self.row_groups or (0, file.num_row_groups)
            number = sum(file.metadata.row_group(group).num_rows for group in range(first))
            maps = [f.name for f in file.schema_arrow if str(f.type).startswith("map<")]
            for batch in file.iter_batches(batch_size=256, row_groups=range(first, end)):
                for fields in batch.to_pylist():
                    number += 1
                    try:
                        objects = {m: fields[m] and _object(fields[m]) for m in maps}
                    except _Repeated as twice:
                        yield BadRow(number, _why(twice))
                        continue
                    texts = {name: _text(value) for name, value in fields.items()}
                    yield Record(number, texts | objects)

    def rows(self) -> list[int]:
        """Count the rows of each of its row groups."""
        with self._parquet() as file:
            groups = range(file.num_row_groups)
            return [file.metadata.row_group(group).num_rows for group in groups]

    @contextmanager
    def _parquet(self) -> "Iterator[parquet.ParquetFile]":
        with needed("Reading Parquet", "eval"):
            import pyarrow as arrow  # noqa: PLC0415
            from pyarrow import parquet  # noqa: PLC0415
        try:
            with self.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
                yield file
        except OSError as refused:
            raise ConfigurationError(
                f"{self.path}: can't be read: {refused.strerror}."
            ) from refused
        except arrow.ArrowException as refused:
            raise ConfigurationError(
                f"{self.path}: not a whole Parquet file. Fetch it again."
            ) from refused


def _refuse_repeated(path: Path | RemoteFile, columns: Iterable[str]) -> None:
    if twice := _repeated(columns):
        raise ConfigurationError(f"{path}: two columns are named {twice}. Rename or remove one.")


def _why(error: Exception) -> str:
    """Say why a line can't be read, without its text."""
    match error:
        case _Repeated():
            why = f"has {error} twice"
        case UnicodeDecodeError():
            why = not_utf8(error.object)
        case UnicodeEncodeError():
            why = "holds half of a pair of surrogates"
        case json.JSONDecodeError():
            why = f"is not JSON: {error.msg} at character {error.pos + 1}"
        case RecursionError():
            why = "is nested too deeply"
        case _:
            why = "holds a number that is too long"
    return why


class _Repeated(Exception):
    """A key stands twice, quoted here, and either value may be meant."""


def _text(value: Any) -> Any:
    """Read bytes as the text that they are, if they are any; images stay bytes."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    pairs = [(_text(key), value) for key, value in pairs]
    if twice := _repeated(key for key, _ in pairs):
        raise _Repeated(twice)
    return dict(pairs)


def _repeated(names: Iterable[str]) -> str | None:
    """Quote the first name that came before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return repr(name[:64])
        seen.add(name)
    return None
