"""The file of labelled rows, each on the disk as soon as something is known of it."""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.files import replace_file
from shieldgate.review.candidates import Key
from shieldgate.review.rows import Row, line


class LabelledFile:
    """Rows of labels, one JSON object a line; a context manager, which has the file for itself.

    What was put last is written anew as it grows; the rows before it stay as they are. Whatever
    stops the program, at most the labels of the text that was being written are lost.
    """

    def __init__(self, path: Path) -> None:
        """Take the file's path; it is made when the first row is put."""
        self.path = path
        self._file: BinaryIO | None = None
        self._rows: dict[Key, Row] = {}
        self._last: tuple[Key, ...] = ()
        self._last_at = 0

    def __enter__(self) -> Self:
        """Read what is there.

        Raises ConfigurationError where it is something else, another session has it, or it can't
        be written.
        """
        try:
            if self.path.exists():
                self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    @property
    def rows(self) -> Sequence[Row]:
        """Give all rows."""
        return list(self._rows.values())

    def row(self, key: Key) -> Row | None:
        """Give the row of a text, where it has one."""
        return self._rows.get(key)

    def put(self, rows: Sequence[Row]) -> None:
        """Write rows, in place of those of the same texts; those without labels are taken away.

        They are on the disk when it returns. Raises ConfigurationError where they can't be.
        """
        keys = tuple(map(_key, rows))
        try:
            if keys != self._last:
                if not self._rows.keys().isdisjoint(keys):
                    self._write_anew(lambda key, row: key not in keys)
                self._last, self._last_at = keys, self._opened().seek(0, os.SEEK_END)
            file = self._opened()
            content = b"".join(line(row) for row in rows if row["labels"])
            # Whatever stops this leaves a line without an end, which is cut off; writing over the
            # line would leave a mixture of both.
            file.seek(file.truncate(self._last_at))
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as refused:
            raise self._refused(refused) from refused
        for key, row in zip(keys, rows, strict=True):
            if row["labels"]:
                self._rows[key] = row
            else:
                self._rows.pop(key, None)

    def remove(self, which: Callable[[Row], bool]) -> int:
        """Take rows away for good; gives how many. Raises ConfigurationError."""
        before = len(self._rows)
        if any(map(which, self._rows.values())):
            try:
                self._write_anew(lambda key, row: not which(row))
            except OSError as refused:
                raise self._refused(refused) from refused
        return before - len(self._rows)

    def _write_anew(self, keep: Callable[[Key, Row], bool]) -> None:
        self._rows = {key: row for key, row in self._rows.items() if keep(key, row)}
        self._last = ()
        replace_file(self.path, b"".join(map(line, self._rows.values())))
        if self._file:
            self._file.close()
        self._open()

    def _opened(self) -> BinaryIO:
        return self._file or self._open()

    def _open(self) -> BinaryIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Texts of people stand in it.
            number = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as refused:
            raise self._refused(refused) from refused
        self._file = os.fdopen(number, "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"{self.path}: another review is writing it. Choose another --out."
            ) from None
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]  # a torn last line was never confirmed
        self._rows = dict(map(self._read, enumerate(whole.splitlines(), start=1)))
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        return self._file

    def _read(self, numbered: tuple[int, bytes]) -> tuple[Key, Row]:
        number, written = numbered
        try:
            row = json.loads(written)
            if isinstance(row["labels"], dict) and isinstance(row["prompt"], str):
                return _key(row), {**row, "weight": float(row["weight"])}
        except (ValueError, KeyError, TypeError):
            pass
        raise ConfigurationError(f"{self.path}:{number}: no row of a review. Choose another --out.")

    def _refused(self, refused: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path}: can't be written: {refused.strerror}. What was labelled before stays; "
            "the same command goes on from there."
        )


def _key(row: Row) -> Key:
    return Key(row["source"], row["id"], row.get("row"))
