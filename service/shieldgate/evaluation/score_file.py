"""The file of margins: a header that says what they depend on, then one scored row a line.

Rows are appended as they are scored, so a run that was killed goes on where it stopped. Margins
are what is kept: thresholds and calibration come after, and never stale a file.
"""

import fcntl
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.files import write_result
from shieldgate.policy import Policy
from shieldgate.types import DIRECTIONS, Direction, Label

_TIMING = "timing.json"


@dataclass(frozen=True, slots=True)
class Header:
    """All that the margins and labels of a file depend on, and the policy book's version.

    `scorer` is the identity's name and `identity` its key. `guidelines` has the `wording_digest`
    of each policy; what else is in the `book`, such as thresholds, moves no margin. `options`
    holds what else decided which rows and labels are in the file.
    """

    dataset: str
    dataset_digest: str
    scorer: str
    identity: str
    template: str
    book: str
    guidelines: Mapping[str, str]
    policies: tuple[str, ...]
    protocol: str | None
    options: Mapping[str, Any]
    version: str

    def changes(self, other: "Header") -> list[str]:
        """List for people in what `other` differs, so that rows of both must not be mixed."""
        ours, theirs = (orjson.loads(orjson.dumps(header)) for header in (self, other))
        return [
            f"{key}: {ours[key]} -> {theirs[key]}"
            for key in ours
            if ours[key] != theirs[key] and key != "book"
        ]


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One row's margins, z_yes - z_no in logits by policy id, beside what is known of it.

    `row` is its place among the dataset's good rows, from 0. A policy that `labels` lacks is
    unknown, and so is a `harmful` of None. `groups` holds the values of the columns that figures
    are to be split by. `weight` says for how many rows it stands.
    """

    row: int
    id: str
    direction: Direction
    margins: Mapping[str, float]
    labels: Mapping[str, Label]
    harmful: Label | None
    groups: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0


def wording_digest(policy: Policy) -> str:
    """Identify what a policy asks of the scorer, in both directions."""
    words = "\0".join(policy.guidelines[direction] for direction in DIRECTIONS)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def read_scores(path: Path) -> tuple[Header, Iterator[ScoredRow]]:
    """Read a file of margins; the rows come one by one, in the order in which they were scored.

    A torn last line, as a killed run leaves it, is passed over. Raises ConfigurationError where
    the file can't be read or is something else.
    """
    try:
        with path.open("rb") as file:
            header = _header(file.readline(), path)
    except OSError as refused:
        raise ConfigurationError(
            f"{path}: can't be read: {refused.strerror}. 'shieldgate evaluate' writes such files."
        ) from refused
    return header, _rows(path)


@dataclass(frozen=True, slots=True)
class Timing:
    """How many rows the last run scored in how many seconds, beside its file of margins."""

    rows: int
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read what `write` wrote there, if anything."""
        try:
            return cls(**orjson.loads((folder / _TIMING).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write it; raise ConfigurationError."""
        write_result(folder / _TIMING, orjson.dumps(self).decode())

    @property
    def row_seconds(self) -> float:
        """Give the seconds a row."""
        return self.seconds / self.rows


class ScoreFile:
    """Appends scored rows to a file, and knows which rows it holds; a context manager.

    An existing file is continued if its header is the same, after a torn last line was cut off.
    """

    def __init__(self, path: Path, header: Header) -> None:
        """Take the file's path and the header of the run."""
        self.path = path
        self._header = header
        self._file: BinaryIO | None = None
        self._held = bytearray()  # a byte a row: a set of a million numbers has 60 times that

    def __enter__(self) -> Self:
        """Open the file for this process alone.

        Raises ConfigurationError when its header differs, another run is writing it, or it can't
        be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as refused:
            raise ConfigurationError(
                f"{self.path}: can't be written: {refused.strerror}. Choose another --out."
            ) from refused
        try:
            self._lock(self._file)
            self._resume(self._file)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None:
            # What could not be written was said; closing tries again, and closes all the same.
            with suppress(OSError):
                self._file.close()

    def __contains__(self, row: int) -> bool:
        """Tell whether a row was scored already."""
        return row < len(self._held) and self._held[row] == 1

    def __len__(self) -> int:
        """Count the rows."""
        return self._held.count(1)

    def append(self, rows: Iterable[ScoredRow]) -> None:
        """Write those rows that are not there yet, and hand them to the system at once.

        Raises ConfigurationError when the disk is full, or can't be written for another reason.
        """
        if self._file is None:
            raise RuntimeError("The file is not open.")
        fresh = [row for row in rows if row.row not in self]
        self._write(self._file, b"".join(orjson.dumps(row) + b"\n" for row in fresh))
        self._hold(fresh)

    def _write(self, file: BinaryIO, lines: bytes) -> None:
        try:
            file.write(lines)
            file.flush()
        except OSError as refused:
            raise ConfigurationError(
                f"{self.path}: can't be written any further: {refused.strerror}. Its {len(self):,} "
                "rows stay: make room, and the same command goes on from there."
            ) from refused

    def _hold(self, rows: Iterable[ScoredRow]) -> None:
        for row in rows:
            if row.row >= len(self._held):
                self._held.extend(bytes(row.row + 1 - len(self._held)))
            self._held[row.row] = 1

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"{self.path}: another run is writing it. Wait for it, or choose another --out."
            ) from None

    def _resume(self, file: BinaryIO) -> None:
        file.seek(0)
        first = file.readline()
        if not first.endswith(b"\n"):
            file.truncate(0)
            self._write(file, orjson.dumps({"header": asdict(self._header)}) + b"\n")
            return
        changes = _header(first, self.path).changes(self._header)
        if changes:
            raise ConfigurationError(
                f"{self.path} holds the scores of another run:\n  "
                + "\n  ".join(changes)
                + "\nChoose another --out, or remove the file."
            )
        self._hold(_rows(self.path))
        file.truncate(_end_of_last_line(file))


def _header(line: bytes, path: Path) -> Header:
    try:
        fields = orjson.loads(line)["header"]
        return Header(**{**fields, "policies": tuple(fields["policies"])})
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{path}: its first line is no header of scores. Give a scores.jsonl that "
            "'shieldgate evaluate' wrote."
        ) from None


def _rows(path: Path) -> Iterator[ScoredRow]:
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            if not line.endswith(b"\n"):
                return
            try:
                yield ScoredRow(**orjson.loads(line))
            except (ValueError, TypeError):
                raise ConfigurationError(
                    f"{path}:{number}: no scored row. The file is damaged: remove it, and score "
                    "again."
                ) from None


def _end_of_last_line(file: BinaryIO) -> int:
    """Find where the last whole line ends, reading backwards."""
    end = file.seek(0, 2)
    while end:
        start = max(0, end - 65_536)
        file.seek(start)
        last = file.read(end - start).rfind(b"\n")
        if last >= 0:
            return start + last + 1
        end = start
    return 0
