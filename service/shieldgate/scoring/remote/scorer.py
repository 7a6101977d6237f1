"""A scorer whose model an engine elsewhere runs: prompts are made here, margins are read there."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import perf_counter

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from shieldgate.errors import Overloaded, ScorerUnavailable, ShieldgateError
from shieldgate.policy import Policy
from shieldgate.scoring import turn
from shieldgate.scoring.interfaces import Identity
from shieldgate.scoring.pack import Pack
from shieldgate.scoring.prompts import PromptBuilder
from shieldgate.scoring.remote.connection import Busy, Connection, NothingSpent
from shieldgate.scoring.remote.engine import Prompt
from shieldgate.scoring.remote.observer import RemoteObserver
from shieldgate.scoring.remote.replicas import Replicas
from shieldgate.types import Exchange, Score

ATTEMPTS = 4
_LONGEST_WAIT = 5.0  # seconds
_BACKOFF = wait_random_exponential(multiplier=0.1, max=1.0)

# So many characters of an answer choose its server, so that a growing one stays where it began.
_BEGINNING = 32


class RemoteScorer:
    """Asks engines for margins; an OpenScorer.

    At most `max_waiting` calls are in here at once, further ones get Overloaded. A request is sent
    again only where a server did nothing with it; whoever is cancelled hangs up.
    """

    def __init__(
        self,
        identity: Identity,
        prompts: PromptBuilder,
        replicas: Replicas,
        *,
        max_waiting: int,
        observer: RemoteObserver | None = None,
    ) -> None:
        self.identity = identity
        self._prompts = prompts
        self._replicas = replicas
        self._max_waiting = max_waiting
        self._observer = observer
        self._calls = 0
        self._waiting = 0
        self._tokenising = ThreadPoolExecutor(2, "tokenise")

    @property
    def available(self) -> bool:
        """Tell whether a server is there."""
        return self._replicas.available

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange; raise Overloaded, ScorerUnavailable or ConfigurationError."""
        if self._calls >= self._max_waiting:
            raise Overloaded(1.0)
        self._calls += 1
        try:
            began = perf_counter()
            prepared = await asyncio.get_running_loop().run_in_executor(
                self._tokenising, self._prompts.prepare, exchange, policies
            )
            asked = perf_counter()
            key = _key(exchange)
            async with asyncio.TaskGroup() as windows:
                tasks = [
                    windows.create_task(self._margins(work, b"%d %s" % (number, key)))
                    for number, work in enumerate(prepared.work)
                ]
            tokens = sum(work.tokens for work in prepared.work)
            turn.count(tokens, perf_counter() - asked)
            if self._observer:
                self._observer.tokenised(tokens)
                self._observer.phase("tokenise", asked - began)
                self._observer.phase("forward", perf_counter() - asked)
            return prepared.scores([task.result() for task in tasks])
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            if isinstance(first, ScorerUnavailable):  # by the name that records know
                raise ScorerUnavailable(str(first), retry_after=first.retry_after) from None
            if isinstance(first, ShieldgateError):
                raise first from None
            raise
        finally:
            self._calls -= 1

    async def check(self, policies: Iterable[Policy]) -> None:
        """Raise ConfigurationError where a guideline leaves no room for the text to be judged."""
        await asyncio.get_running_loop().run_in_executor(
            self._tokenising, self._prompts.check, policies
        )

    def close(self) -> None:
        """End the threads that tokenise."""
        self._tokenising.shutdown(wait=True)

    async def _margins(self, work: Pack, key: bytes) -> list[float]:
        """Ask about a window under all its policies."""
        prompts = [[*work.trunk, *branch] for branch in work.branches]
        margins: list[float] = []
        replica, api = self._replicas.choose(key)
        # All of its requests together, or others would take the place of what they share.
        async with self._turn_at(replica.connection):
            for part in api.turns(prompts, len(work.trunk)):
                # One for each request: tenacity keeps the state of an attempt in the object.
                retrying = AsyncRetrying(
                    stop=stop_after_attempt(ATTEMPTS),
                    wait=_pause,
                    retry=retry_if_exception_type(NothingSpent),
                    reraise=True,
                )
                try:
                    margins += await retrying(self._ask, part, key)
                except Busy as last:
                    raise Overloaded(last.retry_after or 1.0) from None
        return margins

    async def _ask(self, prompts: Sequence[Prompt], key: bytes) -> list[float]:
        """Send one request to the server that is for it."""
        replica, api = self._replicas.choose(key)
        try:
            readings = await api.read(replica.connection, prompts)
        except Busy:
            raise
        except ScorerUnavailable as failure:
            gone = isinstance(failure, NothingSpent)
            self._replicas.failed(replica, failure, gone=gone)
            raise
        self._replicas.answered(replica)
        return [one.margin for one in readings]

    @asynccontextmanager
    async def _turn_at(self, connection: Connection) -> AsyncIterator[None]:
        place = connection.turn
        self._count_waiting(1)
        try:
            await place.acquire()
        finally:
            self._count_waiting(-1)
        try:
            yield
        finally:
            place.release()

    def _count_waiting(self, more: int) -> None:
        self._waiting += more
        if self._observer:
            self._observer.queued(self._waiting)


def _key(exchange: Exchange) -> bytes:
    """Take what chooses a text's server: the same for an answer and what it grows into."""
    beginning = (exchange.response or "")[:_BEGINNING]
    return "\0".join((exchange.direction, exchange.prompt, beginning)).encode(
        "utf-8", "surrogatepass"
    )


def _pause(state: RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    told = failure.retry_after if isinstance(failure, NothingSpent) else None
    return min(told, _LONGEST_WAIT) if told else _BACKOFF(state)
