"""Every error shieldgate raises on purpose.

    ShieldgateError
    ├── ConfigurationError      a setting or file is wrong; the start stops, a reload is refused
    │   ├── PolicyError         policy files, with file, line, key, value and the mend
    │   └── ModelError          a checkpoint can't be loaded or can't be a scorer
    ├── UnknownName             a caller named a policy or profile that does not exist
    ├── UnknownKey              a request without an API key of this server
    ├── NotAllowed              a key that may not do this
    ├── LimitReached            a key has used up what it may; try again after `retry_after` seconds
    ├── ExceedsLimit            a request holds more than its key may send in a minute
    ├── GeneratorBusy           the worker's queue is full; try again after `retry_after` seconds
    ├── GeneratorFailed         the worker's model failed or was closed
    ├── UpstreamError           the model behind the gateway refused, failed or made no sense
    ├── StoreFailed             the database of kept texts failed; no judged request notices
    ├── NothingKept             labels were asked of a server that keeps no texts
    ├── TextGone                a kept text was to be labelled that is no longer kept
    ├── TextTaken               a kept text was to be labelled that somebody else was asked about
    └── ScoringError            no score could be had; the profile's `on_failure` decides
        ├── Unscreenable        an answer holds what no scorer here can read
        ├── UnsupportedLanguage the scorer is not said to know the text's language
        ├── TooLong             the text takes more time than any may
        ├── Overloaded          the queue is full; try again after `retry_after` seconds
        └── ScorerUnavailable   not loaded yet, closed, failed, or past its deadline

Messages are for people and never contain text that was to be judged.
"""

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class ShieldgateError(Exception):
    """Base of all errors raised on purpose."""


class ConfigurationError(ShieldgateError):
    """A setting, file or model is wrong, and the message says how to mend it."""


def first_line(error: object) -> str:
    """Give as much of another library's error as fits into a message of ours."""
    return str(error).strip().split("\n")[0][:300]


@contextmanager
def needed(for_what: str, extra: str) -> Iterator[None]:
    """Turn an import that fails into a ConfigurationError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"{for_what} needs {missing.name}, which is not installed. "
            f"Run: {_pip()} install 'shieldgate[{extra}]'"
        ) from missing


def _pip() -> str:
    """Name the pip of this environment, which need not be the one that the shell finds."""
    found = shutil.which("pip")
    here = found and Path(found).parent == Path(sys.executable).parent
    return "pip" if here else f"{shlex.quote(sys.executable)} -m pip"


class FileProblem(NamedTuple):
    """What is wrong on one line of a file, and how to mend it."""

    file: Path
    line: int
    what: str

    def __str__(self) -> str:
        """Write it as compilers do, so that editors find the place."""
        return f"{self.file}:{self.line}: {self.what}"


class PolicyError(ConfigurationError):
    """A policy book can't be built from its files; `problems` are those that have a place."""

    def __init__(self, message: str, problems: Sequence[FileProblem] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class ModelError(ConfigurationError):
    """A checkpoint can't be loaded, or can't serve as a scorer."""


class UnknownName(ShieldgateError):
    """A caller asked for a policy or profile that the book doesn't hold."""


class UnknownKey(ShieldgateError):
    """A request bears no API key of this server."""


class NotAllowed(ShieldgateError):
    """A caller's key does not allow what it asks for."""


class LimitReached(ShieldgateError):
    """A caller has used up what its key allows."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        """Take a sentence, and how many seconds the caller should wait."""
        super().__init__(message)
        self.retry_after = retry_after


class ExceedsLimit(ShieldgateError):
    """A request holds more than a caller's key may ever send at once, so that it can't wait."""


class UpstreamError(ShieldgateError):
    """The model behind the gateway refused, failed, or made no sense.

    `status` and `code` are for the caller: upstream's own where it answered with an error, else
    502, or 504 for a time-out. `request_id` is upstream's. `body` is the object `error` of its
    reply; it may quote the caller, so it goes to the caller and nowhere else. `retry_after` is in
    seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        code: str = "upstream_error",
        request_id: str | None = None,
        body: Mapping[str, object] | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Take a sentence of ours that quotes nothing."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.body = body
        self.retry_after = retry_after

    def without_words(self) -> "UpstreamError":
        """Give the same error with nothing in it that upstream has worded."""
        return UpstreamError(
            str(self),
            status=self.status,
            request_id=self.request_id,
            retry_after=self.retry_after,
        )


class GeneratorBusy(ShieldgateError):
    """The worker's queue is full."""

    def __init__(self, retry_after: float) -> None:
        """Say how many seconds the caller should wait."""
        super().__init__("The generator's queue is full.")
        self.retry_after = retry_after


class GeneratorFailed(ShieldgateError):
    """The worker's model failed or was closed."""


class StoreFailed(ShieldgateError):
    """The database of kept texts can't be reached, or refused."""


class NothingKept(ShieldgateError):
    """Labels are of kept texts, and this server keeps none."""


class TextGone(ShieldgateError):
    """A text is no longer kept, and what was said of it is not kept either."""

    def __init__(self) -> None:
        """Say why that may be."""
        super().__init__(
            "This text is no longer kept: it expired, made room for others, or was forgotten. "
            "Nothing was labelled."
        )


class TextTaken(ShieldgateError):
    """Somebody else was asked about a text since, whose answers stay."""

    def __init__(self) -> None:
        """Say what became of it."""
        super().__init__(
            "Meanwhile somebody else was asked about this text, and their labels stay. Nothing was "
            "changed."
        )


class ScoringError(ShieldgateError):
    """No score could be had for an exchange; `code` says so to a caller whose text passed."""

    code = "moderation_unavailable"


class Unscreenable(ScoringError):
    """An answer holds what no scorer here can read, such as audio."""

    code = "unscreenable"


class UnsupportedLanguage(ScoringError):
    """A text seems to be in a language that the scorer is not said to know; the profile refuses."""

    code = "unsupported_language"

    def __init__(self, which: str, language: str | None) -> None:
        """Say `which` text it is, and in what language, as an ISO 639 code."""
        super().__init__(
            f"The {which}, or a part of it, seems to be in a language ({language}) that the scorer "
            "is not said to know, and is refused for that."
        )


class TooLong(ScoringError):
    """A text takes more time than any may have, or the texts of a request together do."""


class Overloaded(ScoringError):
    """The scorer's queue is full."""

    def __init__(self, retry_after: float) -> None:
        """Say how many seconds the caller should wait."""
        super().__init__("The scorer's queue is full.")
        self.retry_after = retry_after


class ScorerUnavailable(ScoringError):
    """The scorer is not loaded, is closed, failed, or did not answer in time."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Take a sentence, and how many seconds the caller should wait, where that is known."""
        super().__init__(message)
        self.retry_after = retry_after
