"""Where labelled data lies: files and hub datasets in, records out, one at a time."""

import fnmatch
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

from shieldgate.errors import ConfigurationError, first_line, needed
from shieldgate.evaluation.row_files import BadRow, Csv, Json, JsonLines, Parquet, Record
from shieldgate.evaluation.storage import RemoteFile, find, is_uri, reached

RowFile = JsonLines | Json | Csv | Parquet

_MAGIC = re.compile(r"[*?\[]")
_HUB = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?"
    r"(?::(?P<split>[\w.\[\]%:+-]+))?(?:@(?P<revision>[\w./-]+))?"
)


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
    """Find the source that `given` names.

    It is a file, by its suffix; a folder or a pattern of them, here or in object storage; or
    `hf://owner/name`. Raises ConfigurationError when there is none, or its format is unknown.
    """
    if given.startswith("hf://"):
        found = _HUB.fullmatch(given)
        if not found:
            raise ConfigurationError(
                f"{given}: write hf://owner/name, and after it /config, :split and @revision "
                "where they are needed, as in hf://lmsys/toxic-chat/toxicchat0124:test"
            )
        return HubDataset(given, **found.groupdict())
    shards = list_shards(given)
    one = len(shards) == 1 and shards[0].path.name == PurePosixPath(given).name
    return shards[0] if one else Shards(given, tuple(shards))


def list_shards(given: str) -> list[RowFile]:
    """Find the files that a file's name, a folder or a pattern such as `rows/*.parquet` names.

    They come in the order of their names. Raises ConfigurationError when there is none.
    """
    files = _remote_files(given) if is_uri(given) else _local_files(given)
    if not files:
        empty = Path(given).expanduser().is_dir()
        why = "there is no file in it" if empty else "there is no such file"
        raise ConfigurationError(
            f"{given}: {why}. Give a file of labelled rows, a folder or a pattern of them, or "
            "hf://owner/name."
        )
    return [_by_suffix(file) for file in files]


def row_file(place: str) -> RowFile:
    """Take one file by its path or URI, whatever it is called; raise ConfigurationError."""
    return _by_suffix(RemoteFile(place) if is_uri(place) else Path(place))


def _local_files(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and _visible(file))
    if path.is_file() or not _MAGIC.search(given):
        return [path] if path.is_file() else []
    found = map(Path, glob.glob(str(path)))  # noqa: PTH207 - Path's own takes no absolute pattern
    return sorted(file for file in found if file.is_file())


def _remote_files(given: str) -> list[RemoteFile]:
    from pyarrow.fs import FileSelector, FileType  # noqa: PLC0415 - `find` says what is missing

    above, _, name = given.rpartition("/")
    pattern = name if _MAGIC.search(name) else None
    folder = above if pattern else given.rstrip("/")
    system, path = find(folder)
    with reached(given):
        if system.get_file_info(path).type == FileType.File:
            return [RemoteFile(given)]
        infos = system.get_file_info(FileSelector(path, allow_not_found=True))
    files = [RemoteFile(f"{folder}/{info.base_name}") for info in infos if info.is_file]
    return sorted(
        (f for f in files if _visible(f) and fnmatch.fnmatchcase(f.name, pattern or "*")), key=str
    )


def _visible(file: Path | RemoteFile) -> bool:
    """Leave out what Spark and others put beside the rows, such as _SUCCESS."""
    return not file.name.startswith((".", "_"))


def _by_suffix(path: Path | RemoteFile) -> RowFile:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    suffix = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    if suffix not in _KINDS or (packed and suffix == ".parquet"):
        raise ConfigurationError(
            f"{path}: the format is told by the suffix, and "
            f"{f'{path.suffix} is not known' if path.suffix else 'there is none'}. "
            f"Known: {', '.join(_KINDS)}, all but the last with .gz, too. Of a folder with other "
            "files give a pattern, in quotes: 'rows/*.jsonl'."
        )
    return _KINDS[suffix](path)


_KINDS: Mapping[str, type[RowFile]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": Json,
    ".csv": Csv,
    ".tsv": Csv,
    ".parquet": Parquet,
}


@dataclass(frozen=True, slots=True)
class Shards:
    """Files that are one dataset, in their order."""

    name: str
    files: tuple[RowFile, ...]

    def digest(self) -> None:
        """Say that there is no one file."""

    def records(self) -> Iterator[Record | BadRow]:
        """Read file after file."""
        for file in self.files:
            for record in file.records():
                yield replace(record, file=file.name)


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
            reason = first_line(refused)
            raise ConfigurationError(
                f"{self.name}: {reason} Check the name, the config, the split (default: test) and "
                "the connection; a gated dataset needs HF_TOKEN."
            ) from refused
