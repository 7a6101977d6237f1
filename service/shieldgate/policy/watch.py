"""The policy book in force, which can be replaced while it is being read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import structlog
from watchfiles import Change, awatch

from shieldgate.errors import ShieldgateError, UnknownName
from shieldgate.policy.book import PolicyBook
from shieldgate.policy.load import SUFFIXES, Draft, load_book, load_texts, shipped_policies
from shieldgate.policy.model import Policy

_log = structlog.get_logger(__name__)

# How often it is looked whether the directory is still the one that is watched.
_LOOK_SECONDS = 1.0


class LiveBook:
    """Holds the book in force; whoever keeps `current` for a request keeps one snapshot.

    `last_error` is why the last reload was refused, None when the files and the book agree.
    `bound` gives the profiles that must stay, each with who is bound to it. `check` is awaited with
    the policies of a new book, and raises where the loaded scorer can't judge by them.
    """

    def __init__(
        self,
        path: Path | None,
        book: PolicyBook,
        *,
        profile: str = "default",
        refused: Callable[[bool], None] = lambda refused: None,
    ) -> None:
        """Take the path that `book` was loaded from; None means the shipped files.

        A book without `profile`, which callers get who name none, is refused. `refused` is told
        after each reload whether the files were.
        """
        self.path = path or shipped_policies()
        self._profile = profile
        self._refused = refused
        self.current = book
        self.last_error: str | None = None
        self.bound: Callable[[], Mapping[str, str]] = dict
        self.check: Callable[[Iterable[Policy]], Awaitable[None]] | None = None
        self._reloading = asyncio.Lock()

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        *,
        profile: str = "default",
        refused: Callable[[bool], None] = lambda refused: None,
    ) -> "LiveBook":
        """Load the first book; raise PolicyError, because there is no old one to keep."""
        return cls(path, load_book(path), profile=profile, refused=refused)

    async def reload(self) -> None:
        """Read the files again and swap the book; a bad one keeps the old one and is logged."""
        async with self._reloading:
            await self._reload()

    async def read(self, draft: Draft | None = None) -> PolicyBook:
        """Read the book as its files are now, with a `draft` among them, and let all be.

        Raises ShieldgateError where a reload would refuse it.
        """
        book = await asyncio.to_thread(load_book, self.path, draft)
        book.profile(self._profile)
        self._check_bound(book)
        if self.check:
            await self.check(book.policies.values())
        return book

    async def texts(self) -> dict[str, str]:
        """Read what the files say now, by their names; raise PolicyError where they are refused."""
        return await asyncio.to_thread(load_texts, self.path)

    async def _reload(self) -> None:
        try:
            book = await self.read()
        except ShieldgateError as refused:
            self.last_error = str(refused)
            self._refused(True)
            _log.error("policies_refused", kept=self.current.version, why=self.last_error)
            return
        self._refused(False)
        if self.last_error or book.version != self.current.version:
            _log.info("policies_replaced", old=self.current.version, new=book.version)
        self.last_error = None
        self.current = book

    async def watch(self) -> None:
        """Reload whenever a policy file changes, until cancelled.

        The directory is watched rather than its files, so editors that replace a file and
        Kubernetes, which swaps a ConfigMap's links, are both noticed. Where the system can't
        watch, that is logged, and `reload` is all there is.
        """
        directory = self.path if self.path.is_dir() else self.path.parent
        async for _ in changes(directory, self._concerns):
            await self.reload()

    def _concerns(self, name: str) -> bool:
        return name == self.path.name or name.endswith(SUFFIXES)

    def _check_bound(self, book: PolicyBook) -> None:
        for profile, who in self.bound().items():
            if profile not in book.profiles:
                raise UnknownName(
                    f"The profile {profile!r} is gone, to which the API key {who!r} is bound. "
                    "Bind the key to another profile first."
                )


async def changes(directory: Path, concerns: Callable[[str], bool]) -> AsyncIterator[None]:
    """Yield whenever a file changes in a directory whose name `concerns`, until cancelled.

    Another directory that takes its place is a change, and is followed from then on. Where the
    system can't watch, that is logged, and it ends.
    """
    whole = str(directory.absolute())  # noqa: ASYNC240 - it asks the disk for nothing

    def matters(_: Change, path: str) -> bool:
        name = Path(path).name
        # "..data" is the link that Kubernetes swaps.
        return name == "..data" or concerns(name) or path == whole

    anew = False
    while True:
        watched = _identity(directory)
        if watched is None:
            await asyncio.sleep(_LOOK_SECONDS)
            anew = True
            continue
        following = awatch(
            whole,
            watch_filter=matters,
            recursive=False,
            rust_timeout=int(1000 * _LOOK_SECONDS),
            yield_on_timeout=True,
        )
        try:
            async for found in following:  # which is empty where nothing came
                # What was removed may come back with the same number.
                gone = _identity(directory) != watched or any(path == whole for _, path in found)
                if found or gone or anew:
                    yield
                anew = False
                if gone:
                    break
        except (OSError, RuntimeError) as refused:  # as which the watcher reports its own failures
            if _identity(directory) is not None:
                _log.error("files_not_watched", path=str(directory), why=str(refused))
                return
        anew = True


def _identity(directory: Path) -> tuple[int, int] | None:
    """Tell which directory bears a name now; None where none does."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
