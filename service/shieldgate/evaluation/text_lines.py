"""Files of text as lines of UTF-8, whatever they were compressed by or written in."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.storage import RemoteFile

LONGEST_LINE = 16 * 1024 * 1024

Opened = io.BufferedReader | gzip.GzipFile
Line = tuple[int, bytes | None]
"""A line with its number, from 1; None stands for one that is too long to be held."""


@contextmanager
def opened(path: Path | RemoteFile) -> Iterator[Opened]:
    """Open a file for reading, decompressed; what breaks while it is read is said in a sentence."""
    try:
        with path.open("rb") as file:
            yield gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as refused:
        raise ConfigurationError(
            f"{path}: the compressed file is damaged or ends early. Fetch it again."
        ) from refused
    except OSError as refused:
        raise ConfigurationError(
            f"{path}: can't be read: {refused.strerror or refused}."
        ) from refused


def lines(file: Opened, path: Path | RemoteFile) -> Iterator[Line]:
    """Give the lines of a file, UTF-8 or not; raise ConfigurationError."""
    text, number = as_utf8(file), 0
    try:
        while line := text.readline(LONGEST_LINE):
            number += 1
            if len(line) < LONGEST_LINE or line.endswith(b"\n"):
                yield number, line
                continue
            while (rest := text.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}:{number + 1}: is not whole UTF-16.") from None


def not_utf8(data: bytes) -> str:
    """Say of what can't be read as UTF-8 what it seems to be, and how to mend it."""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "is not UTF-8"
    return (
        "is not UTF-8, but perhaps Windows-1252; to convert it, save it as 'CSV UTF-8', or run "
        "iconv -f WINDOWS-1252 -t UTF-8"
    )


def as_utf8(file: Opened) -> Opened:
    """Give a file as it is, but UTF-16, known by the mark that Excel writes, as UTF-8."""
    if file.peek(2).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return io.BufferedReader(_Recoded(file))
    return file


class _Recoded(io.RawIOBase):
    def __init__(self, utf16: Opened) -> None:
        self._file = utf16
        self._decoder = codecs.getincrementaldecoder("utf-16")()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        data = b"more"
        while data and not self._ready:
            data = self._file.read(64 * 1024)
            self._ready = self._decoder.decode(data, final=not data).encode()
        size = min(len(into), len(self._ready))
        into[:size], self._ready = self._ready[:size], self._ready[size:]
        return size
