"""Files wherever pyarrow reads them: here, or in object storage such as s3:// and gs://."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from shieldgate.errors import ConfigurationError, first_line, needed
from shieldgate.evaluation.files import replace_file

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_uri(given: str) -> bool:
    """Tell whether this names something by its scheme, and not a path."""
    return _SCHEME.match(given) is not None


@contextmanager
def reached(place: str) -> Iterator[None]:
    """Say in a sentence why a place can't be read or written."""
    with needed("Reading object storage", "eval"):
        from pyarrow import ArrowException  # noqa: PLC0415
    try:
        yield
    except (OSError, ArrowException) as refused:
        code = getattr(refused, "errno", None)
        if code and not is_uri(place):  # pyarrow's own words would name the path once more
            raise ConfigurationError(f"{place}: {os.strerror(code)}.") from refused
        reason = first_line(refused)
        raise ConfigurationError(
            f"{place}: {reason} Check the name, the credentials and the connection."
        ) from refused


def find(place: str) -> "tuple[FileSystem, str]":
    """Find the filesystem of a URI or an absolute path, and the path in it.

    Raises ConfigurationError.
    """
    with reached(place):
        from pyarrow.fs import FileSystem  # noqa: PLC0415

        # A name in storage may hold what a URI may not, such as a blank.
        system, path = FileSystem.from_uri(quote(place, safe=":/@") if is_uri(place) else place)
    return system, path


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in object storage, with as much of a Path's shape as reading one takes."""

    uri: str

    def __str__(self) -> str:
        """Name it in full."""
        return self.uri

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.uri)

    @property
    def name(self) -> str:
        """Give the last part of its name."""
        return self._path.name

    @property
    def suffix(self) -> str:
        """Give the last ending of its name."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """Give all endings of its name."""
        return self._path.suffixes

    def open(self, _mode: Any = "rb") -> io.BufferedReader:
        """Open it for reading; raise ConfigurationError."""
        system, path = find(self.uri)
        with reached(self.uri):
            return io.BufferedReader(system.open_input_file(path), 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder whose files appear whole or not at all; it is made when the first one is written."""

    place: str

    @classmethod
    def at(cls, given: str) -> "Folder":
        """Take a URI or a path."""
        given = given.removeprefix("file://")
        return cls(given if is_uri(given) else str(Path(given).expanduser().resolve()))

    def __str__(self) -> str:
        """Name it in full."""
        return self.place

    def names(self) -> set[str]:
        """List its files; none where there is no such folder. Raises ConfigurationError."""
        system, path = find(self.place)
        with reached(self.place):
            from pyarrow.fs import FileSelector  # noqa: PLC0415

            infos = system.get_file_info(FileSelector(path, allow_not_found=True))
        return {info.base_name for info in infos if info.is_file}

    def file(self, name: str) -> Path | RemoteFile:
        """Name one of its files."""
        joined = f"{self.place.rstrip('/')}/{name}"
        return RemoteFile(joined) if is_uri(self.place) else Path(joined)

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file in one step; raise ConfigurationError."""
        file = self.file(name)
        with reached(str(file)):
            if isinstance(file, Path):
                file.parent.mkdir(parents=True, exist_ok=True)
                replace_file(file, content)
                return
            system, path = find(file.uri)
            # An object is there once it was written whole.
            with system.open_output_stream(path) as out:
                out.write(content)
