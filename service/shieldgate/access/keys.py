"""Who may call: API keys, of which the file knows only digests, each bound to a profile."""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from shieldgate.access.rate_limits import RateLimit
from shieldgate.errors import ConfigurationError
from shieldgate.policy import PolicyBook, changes
from shieldgate.yaml_document import Document, reason, suggest

log = structlog.get_logger(__name__)

NAME = r"^[A-Za-z0-9._-]{1,64}$"

_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Key:
    """What one key allows.

    `admin` keys may read the figures and decisions of all callers, and those that may `explain` ask
    which words carried a score, which costs as much as many scores.
    """

    name: str
    profile: str
    allowed: RateLimit
    admin: bool = False
    explain: bool = False


class Keys:
    """The keys of one file, a snapshot."""

    def __init__(self, keys: Mapping[str, Key]) -> None:
        """Take the keys by the hexadecimal digits of their SHA-256."""
        # An index that needs no secrecy, so that the secret part is compared once, in full.
        self._known = {
            bytes.fromhex(d)[:_INDEX_BYTES]: (bytes.fromhex(d), key) for d, key in keys.items()
        }

    def __len__(self) -> int:
        """Count the keys."""
        return len(self._known)

    @property
    def profiles(self) -> dict[str, str]:
        """Give the profiles that keys are bound to, each with the name of such a key."""
        return {key.profile: key.name for _, key in self._known.values()}

    def find(self, secret: str) -> Key | None:
        """Find what a key allows, in a time that tells nothing about the keys there are."""
        given = digest(secret)
        known, key = self._known.get(given[:_INDEX_BYTES], (bytes(len(given)), None))
        return key if hmac.compare_digest(given, known) else None


def new_key() -> str:
    """Make a key: 256 random bits, so that a plain SHA-256 keeps it secret."""
    return f"sg-{secrets.token_urlsafe(32)}"


def digest(secret: str) -> bytes:
    """Digest a key as the file has it, in bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


class KeyEntry(BaseModel):
    """What the file says of one key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    profile: Annotated[str, StringConstraints(min_length=1)]
    admin: bool = False
    explain: bool = False
    requests_per_minute: int | None = Field(None, ge=1)
    texts_per_minute: int | None = Field(None, ge=1)
    characters_per_minute: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1)


_Name = Annotated[str, StringConstraints(pattern=NAME)]
_ENTRIES = TypeAdapter(dict[_Name, KeyEntry])


def load_keys(path: Path, book: PolicyBook) -> Keys:
    """Read a file of keys; raise ConfigurationError with one line for each problem.

    A line reads `file:line: key: why; mend`, and quotes no value, which might be an API key.
    """
    document = Document(path)
    document.read()
    entries: dict[str, KeyEntry] = {}
    if document.readable:
        try:
            entries = _ENTRIES.validate_python(document.content)
        except ValidationError as refused:
            for error in refused.errors(include_url=False, include_input=False):
                document.refuse(error["loc"], _why(error), quote=False)
    keys: dict[str, Key] = {}
    for name, entry in entries.items():
        if entry.profile not in book.profiles:
            why = f"no profile has this name; {suggest(entry.profile, book.profiles)}"
            document.refuse((name, "profile"), why, quote=False)
        if entry.sha256 in keys:
            why = f"{keys[entry.sha256].name!r} has the same key; make another one"
            document.refuse((name, "sha256"), why, quote=False)
        limits = entry.model_dump(exclude={"sha256", "profile", "admin", "explain"})
        allowed = RateLimit(name, **limits)
        keys[entry.sha256] = Key(name, entry.profile, allowed, entry.admin, entry.explain)
    if problems := document.report():
        raise ConfigurationError("\n".join(problems))
    return Keys(keys)


_LIMIT = "must be a whole number from 1 on; leave it out for no limit"
_MUST = {
    "sha256": "must be the 64 hexadecimal digits that 'shieldgate keys new' writes",
    "profile": "must be the name of a profile",
    "admin": "must be true or false",
    "explain": "must be true or false",
    "requests_per_minute": _LIMIT,
    "texts_per_minute": _LIMIT,
    "characters_per_minute": _LIMIT,
    "concurrent": _LIMIT,
    "[key]": "a name has at most 64 letters, digits, dots, dashes and underscores",
}


def _why(error: ErrorDetails) -> str:
    if error["type"] in ("extra_forbidden", "missing"):
        return reason(error, KeyEntry.model_fields)
    field = str(error["loc"][-1]) if error["loc"] else ""
    return _MUST.get(field, "must hold lines as 'shieldgate keys new' writes them")


class LiveKeys:
    """Holds the keys in force, which are read again when their file changes."""

    def __init__(
        self,
        path: Path,
        book: Callable[[], PolicyBook],
        *,
        refused: Callable[[bool], None] = lambda refused: None,
    ) -> None:
        """Load the first keys; raise ConfigurationError, because there are no old ones to keep.

        `book` gives the policy book in force; `refused` is told after each reload whether the
        file was.
        """
        self.path = path
        self._book = book
        self._refused = refused
        self.current = load_keys(path, book())
        self._reloading = asyncio.Lock()

    async def reload(self) -> None:
        """Read the file again; a bad one keeps the old keys in force and is logged."""
        async with self._reloading:
            await self._reload()

    async def _reload(self) -> None:
        try:
            book = None
            while book is not self._book():  # else its profiles may have changed meanwhile
                book = self._book()
                keys = await asyncio.to_thread(load_keys, self.path, book)
        except ConfigurationError as refused:
            self._refused(True)
            log.error("keys_refused", kept=len(self.current), why=str(refused))
            return
        self.current = keys
        self._refused(False)
        log.info("keys_replaced", keys=len(self.current))

    async def watch(self) -> None:
        """Reload whenever the file changes, until cancelled."""
        async for _ in changes(self.path.parent, lambda name: name == self.path.name):
            await self.reload()
