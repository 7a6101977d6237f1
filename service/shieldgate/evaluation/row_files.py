"""Files of rows: JSON lines, CSV and Parquet in, records out, one at a time."""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shieldgate.errors import ConfigurationError, needed
from shieldgate.evaluation.storage import RemoteFile

if TYPE_CHECKING:
    from pyarrow import parquet

_LONGEST_LINE = 16 * 1024 * 1024


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
        with _opened(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class JsonLines(_File):
    """One JSON object a line."""

    def records(self) -> Iterator[Record | BadRow]:
        """Read the lines; those that hold no JSON object are bad rows."""
        with _opened(self.path) as file:
            for number, line in _lines(file):
                if line is None:
                    yield BadRow(number, f"is longer than {_LONGEST_LINE:,} bytes")
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
class Csv(_File):
    """Comma-separated values under a line of column names."""

    def records(self) -> Iterator[Record | BadRow]:
        """Read the records; those with another number of columns are bad rows."""
        with _opened(self.path) as file:
            reader = csv.reader(_text(file, self.path), strict=True)
            try:
                columns = next(reader, [])
                # Those without a name can't be asked for, so that they may be many.
                _refuse_repeated(self.path, filter(None, columns))
                while True:
                    line = reader.line_num + 1
                    values = next(reader, None)
                    if values is None:
                        return
                    if len(values) == len(columns):
                        yield Record(line, dict(zip(columns, values, strict=True)))
                    elif values:
                        yield BadRow(line, f"has {len(values)} columns instead of {len(columns)}")
            except csv.Error as refused:
                raise ConfigurationError(
                    f"{self.path}:{reader.line_num}: not CSV: {refused}. Mend the file here."
                ) from None


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
            for batch in file.iter_batches(batch_size=256, row_groups=range(first, end)):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(number, fields)

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
            why = "is not UTF-8"
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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


@contextmanager
def _opened(path: Path | RemoteFile) -> Iterator[BufferedIOBase]:
    """Open a file for reading, decompressed; what breaks while it is read is said in a sentence."""
    try:
        with path.open("rb") as file:
            yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as refused:
        raise ConfigurationError(
            f"{path}: the compressed file is damaged or ends early. Fetch it again."
        ) from refused
    except OSError as refused:
        raise ConfigurationError(
            f"{path}: can't be read: {refused.strerror or refused}."
        ) from refused


def _lines(file: BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
    """Give lines with their numbers; None stands for one that is too long to be held."""
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) < _LONGEST_LINE or line.endswith(b"\n"):
            yield number, line
            continue
        while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def _text(file: BufferedIOBase, path: Path | RemoteFile) -> Iterator[str]:
    for number, line in _lines(file):
        if line is None:
            raise ConfigurationError(f"{path}:{number}: is longer than {_LONGEST_LINE:,} bytes.")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path}:{number}: is not UTF-8. Save it as UTF-8.") from None
