"""A Redis client with a small budget of time and circuit breakers: no caller waits for Redis."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Literal, Protocol, Self, TypeVar

import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NoConnection

from shieldgate.circuit_breaker import CircuitBreaker, State
from shieldgate.redis.urls import Client, client

T = TypeVar("T")
Use = Literal["redis_read", "redis_write"]

# What nobody waits for any more may still connect or read an answer, but not for ever.
_SOCKET_SECONDS = 1.0
_MAX_CONCURRENT = 32

_MEANWHILE = "each replica has its own scores and limits; Redis is tried again by itself"

_log = structlog.get_logger(__name__)


class RedisObserver(Protocol):
    """Sees how Redis fares."""

    def breaker(self, breaker: Use, state: State) -> None:
        """Take the new state of a breaker."""


class _Failed(Exception):
    """A command failed or took too long; the message is the reason, and holds no data."""


class RedisClient:
    """Runs commands on Redis; whatever goes wrong is None, never an error. `async with` opens it.

    `url` is as in `redis.urls`; a wrong one raises ConfigurationError. A caller waits for `seconds`
    at most. The command goes on without it, so that a connection
    that is slow to come about is there for the next caller, and no answer is left unread for
    another. Reading and writing have a circuit breaker each: a full Redis can still be read.
    """

    def __init__(self, url: str, *, seconds: float, observer: RedisObserver | None = None) -> None:
        socket_seconds = max(_SOCKET_SECONDS, seconds)
        self._client, self._close = client(
            url,
            socket_timeout=socket_seconds,
            socket_connect_timeout=socket_seconds,
            # Once, and at once: the server may have closed a connection that was idle.
            retry=Retry(NoBackoff(), 1, supported_errors=(NoConnection,)),
            # With RESP3, redis-py 8 hands out connections on which an old answer still waits.
            protocol=2,
        )
        self._seconds = seconds
        self._observer = observer
        self._breakers: dict[Use, CircuitBreaker] = {
            "redis_read": CircuitBreaker(changed=partial(self._changed, "redis_read")),
            "redis_write": CircuitBreaker(changed=partial(self._changed, "redis_write")),
        }
        self._failing: set[Use] = set()
        self._why = ""
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._running: set[asyncio.Task[object]] = set()
        self._open = False

    async def __aenter__(self) -> Self:
        """Begin to connect, so that the first caller need not wait; nobody waits for it here."""
        self._open = True
        for use in self._breakers:
            self._observe(use, "closed")
        self._start(self._ping())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give what is under way its time, then close all connections."""
        self._open = False
        if self._running:
            await asyncio.wait(self._running, timeout=self._seconds)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._close()

    async def ask(self, use: Use, command: Callable[[Client], Awaitable[T]]) -> T | None:
        """Run a command; None where it fails, is late, or Redis is being left alone."""
        breaker = self._breakers[use]
        if not self._open or breaker.retry_after():
            return None
        try:
            with breaker.watch(_Failed):
                return await self._within_time(command)
        except _Failed:
            return None

    def tell(
        self,
        command: Callable[[Client], Awaitable[object]],
        *,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a command that writes, without waiting for it; `lost` is called where it fails."""

        async def run() -> None:
            done = False

            async def write(client: Client) -> None:
                nonlocal done
                await command(client)
                done = True

            try:
                await self.ask("redis_write", write)
            finally:
                if not done:
                    lost()

        self._start(run())

    async def _ping(self) -> None:
        outcome = await self._run(lambda client: client.ping())
        if isinstance(outcome, _Failed):
            _log.warning("redis does not answer", why=str(outcome), meanwhile=_MEANWHILE)
        else:
            _log.info("redis answers")

    async def _within_time(self, command: Callable[[Client], Awaitable[T]]) -> T:
        task = self._start(self._run(command))
        done, _ = await asyncio.wait([task], timeout=self._seconds)
        outcome = task.result() if done else _Failed(f"no answer within {self._seconds:g} s")
        if isinstance(outcome, _Failed):
            self._why = str(outcome)
            raise outcome
        return outcome

    async def _run(self, command: Callable[[Client], Awaitable[T]]) -> T | _Failed:
        async with self._slots:
            try:
                return await command(self._client)
            except Exception as failure:
                # Any, because redis-py raises others than its own; its message may quote data.
                return _Failed(type(failure).__name__)

    def _start(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _changed(self, use: Use, state: State) -> None:
        self._observe(use, state)
        if state == "open" and use not in self._failing:
            self._failing.add(use)
            _log.warning("redis is left alone", use=use, why=self._why, meanwhile=_MEANWHILE)
        elif state == "closed":
            self._failing.discard(use)
            _log.info("redis answers again", use=use)

    def _observe(self, use: Use, state: State) -> None:
        if self._observer:
            self._observer.breaker(use, state)
