"""Where labelled data lies: files and hub datasets in, records out, one at a time."""

import csv
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Protocol, cast

from shieldgate.errors import ConfigurationError, needed

_LONGEST_LINE = 16 * 1024 * 1024

_HUB = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?"
    r"(?::(?P<split>[\w.\[\]%:+-]+))?(?:@(?P<revision>[\w./-]+))?"
)


@dataclass(frozen=True, slots=True)
class Record:
    """The columns of one record; `line` is where it begins, or its number, from 1."""

    line: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that can't be used, where it stands, and why; never its text."""

    line: int
    why: str


class Source(Protocol):
    """Labelled data that can be read from the start any number of times."""

    @property
    def name(self) -> str:
        """Name it for people."""
        ...

    def records(self) -> Iterator[Record | BadRow]:
        """Read it, in bounded memory; raise ConfigurationError when it can't be read on."""
        ...

    def digest(self) -> str | None:
        """Digest its content as it was published, or None where there is no such file."""
        ...


def open_source(given: str) -> Source:
    """Find the source that `given` names: a file, by its suffix, or `hf://owner/name`.

    Raises ConfigurationError when there is none, or its format is unknown.
    """
    if given.startswith("hf://"):
        found = _HUB.fullmatch(given)
        if not found:
            raise ConfigurationError(
                f"{given}: write hf://owner/name, and after it /config, :split and @revision "
                "where they are needed, as in hf://lmsys/toxic-chat/toxicchat0124:test"
            )
        return HubDataset(given, **found.groupdict())
    path = Path(given).expanduser()
    if not path.is_file():
        raise ConfigurationError(
            f"{given}: there is no such file. Give a file of labelled rows, or hf://owner/name."
        )
    suffix = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    kinds: dict[str, type[JsonLines] | type[Csv] | type[Parquet]] = {
        ".jsonl": JsonLines,
        ".jsonl.gz": JsonLines,
        ".csv": Csv,
        ".csv.gz": Csv,
        ".parquet": Parquet,
    }
    if suffix not in kinds:
        raise ConfigurationError(
            f"{given}: the format is told by the suffix, and {suffix or 'none'} is not known. "
            f"Known: {', '.join(kinds)}."
        )
    return kinds[suffix](path)


@dataclass(frozen=True, slots=True)
class Records:
    """Rows that are in memory."""

    rows: Sequence[Mapping[str, Any]]
    name: str = "rows"

    def digest(self) -> None:
        """Say that there is no file."""

    def records(self) -> Iterator[Record | BadRow]:
        """Give the rows."""
        return (Record(number, fields) for number, fields in enumerate(self.rows, start=1))


@dataclass(frozen=True, slots=True)
class _File:
    path: Path

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
    """A Parquet file; needs pyarrow."""

    def records(self) -> Iterator[Record | BadRow]:
        """Read the records in small batches."""
        with needed("Reading Parquet", "eval"):
            import pyarrow as arrow  # noqa: PLC0415
            from pyarrow import parquet  # noqa: PLC0415
        try:
            with parquet.ParquetFile(self.path) as file:
                _refuse_repeated(self.path, (column.path for column in file.schema))
                number = 0
                for batch in file.iter_batches(batch_size=256):
                    for fields in batch.to_pylist():
                        number += 1
                        yield Record(number, fields)
        except arrow.ArrowException as refused:
            raise ConfigurationError(
                f"{self.path}: not a whole Parquet file. Fetch it again."
            ) from refused


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset of the Hugging Face Hub, streamed; needs the `datasets` library."""

    name: str
    repository: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def digest(self) -> None:
        """Say that there is no one file."""

    def records(self) -> Iterator[Record | BadRow]:
        """Stream the records."""
        with needed("Reading datasets of the hub", "eval"):
            import datasets  # noqa: PLC0415
        try:
            stream = datasets.load_dataset(
                self.repository,
                self.config,
                split=self.split or "test",
                revision=self.revision,
                streaming=True,
            )
            for number, fields in enumerate(stream, start=1):
                yield Record(number, cast(Mapping[str, Any], fields))
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as refused:
            reason = str(refused).strip().split("\n")[0][:300]
            raise ConfigurationError(
                f"{self.name}: {reason} Check the name, the config, the split (default: test) and "
                "the connection; a gated dataset needs HF_TOKEN."
            ) from refused


def _refuse_repeated(path: Path, columns: Iterable[str]) -> None:
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
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file for reading, decompressed; what breaks while it is read is said in a sentence."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as refused:
        raise ConfigurationError(
            f"{path}: the compressed file is damaged or ends early. Fetch it again."
        ) from refused
    except OSError as refused:
        raise ConfigurationError(f"{path}: can't be read: {refused.strerror}.") from refused


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


def _text(file: BufferedIOBase, path: Path) -> Iterator[str]:
    for number, line in _lines(file):
        if line is None:
            raise ConfigurationError(f"{path}:{number}: is longer than {_LONGEST_LINE:,} bytes.")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path}:{number}: is not UTF-8. Save it as UTF-8.") from None
