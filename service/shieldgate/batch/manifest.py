"""What a run is to score, and by what: written before the first part, compared before going on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.row_files import Parquet
from shieldgate.evaluation.sources import RowFile
from shieldgate.evaluation.storage import Folder, find
from shieldgate.scoring import Identity
from shieldgate.version import __version__

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Part:
    """What one actor scores at a time: a file, or some row groups of a Parquet file.

    `size` and `modified`, in nanoseconds, are of the whole `file`, a path or URI. Row groups are
    from the first up to, not including, the second; None for the whole file.
    """

    file: str
    size: int
    modified: int
    row_groups: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that the scores of a folder depend on.

    The parts' scores lie in `part_name(number)`, by their place in `parts`. `guidelines` has the
    `wording_digest` of each policy. `identity` is None until an actor has loaded the scorer.
    """

    parts: Sequence[Part]
    policies: Sequence[str]
    guidelines: Mapping[str, str]
    book: str
    options: Mapping[str, Any]
    identity: Identity | None = None
    version: str = __version__

    @classmethod
    def read(cls, folder: Folder) -> "Manifest":
        """Read a folder's manifest; raise ConfigurationError where there is none."""
        try:
            if MANIFEST not in folder.names():
                raise KeyError(MANIFEST)
            with folder.file(MANIFEST).open("rb") as opened:
                fields = orjson.loads(opened.read())
            parts = [Part(**{**p, "row_groups": _pair(p["row_groups"])}) for p in fields["parts"]]
            identity = fields["identity"] and Identity(**fields["identity"])
            return cls(**{**fields, "parts": parts, "identity": identity})
        except (KeyError, TypeError, ValueError):
            raise ConfigurationError(
                f"{folder}: holds no manifest.json that 'shieldgate batch' wrote."
            ) from None

    def write(self, folder: Folder) -> None:
        """Write it to a folder; raise ConfigurationError."""
        folder.write(MANIFEST, orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n")

    def check_same(self, other: "Manifest", folder: Folder) -> None:
        """Raise ConfigurationError where scores of both must not lie in one folder.

        An identity that is not known yet differs from none.
        """
        ours, theirs = (orjson.loads(orjson.dumps(asdict(m))) for m in (self, other))
        changes = [
            f"{key}: {_short(key, ours[key])} -> {_short(key, theirs[key])}"
            for key in ours
            if ours[key] != theirs[key]
            and not (key == "identity" and None in (self.identity, other.identity))
        ]
        if changes:
            raise ConfigurationError(
                f"{folder} holds the scores of another run:\n  "
                + "\n  ".join(changes)
                + "\nChoose another --out, or remove the folder."
            )


def part_name(number: int) -> str:
    """Name the file of a part's scores."""
    return f"part-{number:05}.parquet"


def plan(files: Sequence[RowFile], rows: int) -> list[Part]:
    """Cut files into parts: Parquet into runs of row groups with `rows` rows or somewhat more.

    Other files are one part each. Raises ConfigurationError.
    """
    return [part for file in files for part in _parts(file, rows)]


def _parts(file: RowFile, rows: int) -> list[Part]:
    place = str(file.path.resolve() if isinstance(file.path, Path) else file.path)
    system, path = find(place)
    info = system.get_file_info(path)
    whole = Part(place, info.size, info.mtime_ns or 0)
    if not isinstance(file, Parquet):
        return [whole]
    parts, first, held = [], 0, 0
    counts = file.rows()
    for group, count in enumerate(counts, start=1):
        held += count
        if held >= rows or group == len(counts):
            parts.append(Part(place, whole.size, whole.modified, (first, group)))
            first, held = group, 0
    return parts


def _pair(given: Sequence[int] | None) -> tuple[int, int] | None:
    return (given[0], given[1]) if given else None


def _short(key: str, value: Any) -> str:
    """Write a value for people; parts are too many."""
    if key == "parts":
        return f"{len(value)} parts of {len({p['file'] for p in value})} files as they were then"
    if key == "identity":
        return "|".join(value.values())
    return str(value)
