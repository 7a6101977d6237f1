"""Several servers of one scorer: texts that begin alike go to the same one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import structlog

from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.scoring.remote.connection import Connection, NothingSpent
from shieldgate.scoring.remote.engine import EngineApi
from shieldgate.scoring.remote.observer import RemoteObserver

_FAILURES = 3  # in a row, after which a server is left out
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0  # seconds between looks at one that is left out

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Replica:
    """A server; `api` is how it is asked, and None until it was examined."""

    connection: Connection
    api: EngineApi | None = None
    failures: int = 0
    looking: asyncio.Task[None] | None = None


class Replicas:
    """Chooses by rendezvous hashing; an async context manager.

    A server that can't be reached, or fails three times in a row, is left out. It is examined in
    the background, and texts go to it again when `examine` finds that it is what it was.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        examine: Callable[[Connection], Awaitable[EngineApi]],
        observer: RemoteObserver | None = None,
    ) -> None:
        self._replicas = [Replica(connection) for connection in connections]
        self._examine = examine
        self._observer = observer

    async def open(self) -> None:
        """Examine all; raise ConfigurationError, or ScorerUnavailable where none is there."""
        failures = []
        for replica in self._replicas:
            try:
                replica.api = await self._examine(replica.connection)
                self._tell(replica)
            except ScorerUnavailable as failure:
                failures.append(failure)
        if len(failures) == len(self._replicas):
            raise failures[0]
        for replica in self._replicas:
            if replica.api is None:
                self._leave_out(replica)

    async def close(self) -> None:
        """Stop looking at servers that are left out."""
        looking = [replica.looking for replica in self._replicas if replica.looking]
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    @property
    def available(self) -> bool:
        """Tell whether there is one that is not left out."""
        return any(replica.api for replica in self._replicas)

    def choose(self, key: bytes) -> tuple[Replica, EngineApi]:
        """Find the server for texts that begin so, and how it is asked.

        Raises ScorerUnavailable where none is left.
        """
        there = [(replica, replica.api) for replica in self._replicas if replica.api]
        if not there:
            names = ", ".join(replica.connection.name for replica in self._replicas)
            raise NothingSpent(f"No server of the scorer is there: {names}.", retry_after=1.0)
        return max(there, key=lambda pair: _weight(pair[0].connection.root, key))

    def answered(self, replica: Replica) -> None:
        """Forget a server's failures."""
        replica.failures = 0

    def failed(self, replica: Replica, failure: ScorerUnavailable, *, gone: bool) -> None:
        """Count a failure; a server that is `gone` is left out at once."""
        log.warning("server failed", server=replica.connection.name, why=str(failure))
        replica.failures += 1
        if replica.api and (gone or replica.failures >= _FAILURES):
            self._leave_out(replica)

    def _leave_out(self, replica: Replica) -> None:
        log.warning("server left out", server=replica.connection.name)
        replica.api = None
        self._tell(replica)
        replica.looking = asyncio.create_task(self._until_back(replica), name="left out")

    async def _until_back(self, replica: Replica) -> None:
        pause, why = _FIRST_PAUSE, ""
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                replica.api = await self._examine(replica.connection)
            except ScorerUnavailable:
                continue
            except ConfigurationError as wrong:
                if str(wrong) != why:
                    why = str(wrong)
                    log.error("server stays left out", server=replica.connection.name, why=why)
                continue
            replica.failures = 0
            log.info("server is back", server=replica.connection.name)
            self._tell(replica)
            return

    def _tell(self, replica: Replica) -> None:
        if self._observer:
            self._observer.replica(replica.connection.name, replica.api is not None)


def _weight(server: str, key: bytes) -> bytes:
    """Draw a server's weight for a key (rendezvous hashing, Thaler and Ravishankar 1996)."""
    return blake2b(server.encode(), key=blake2b(key).digest(), digest_size=8).digest()
