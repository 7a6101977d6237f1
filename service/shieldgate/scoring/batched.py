"""Dynamic batching: callers who wait at the same time share a forward pass."""

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol, Self

import structlog

from shieldgate.errors import Overloaded, ScorerUnavailable, ShieldgateError
from shieldgate.policy import Policy
from shieldgate.scoring.interfaces import Engine
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange, Score

log = structlog.get_logger(__name__)


class BatchObserver(Protocol):
    """Sees how the batcher fares."""

    def tokenised(self, tokens: int) -> None:
        """Take how many tokens the scoring of a text takes."""

    def phase(self, phase: Literal["tokenise", "queue", "forward"], seconds: float) -> None:
        """Take how long a text was in a phase that has just ended; called by its caller's task."""

    def queued(self, pieces: int) -> None:
        """Take the number of pieces that wait for a forward pass."""

    def forward(self, seconds: float, tokens: int, pieces: int) -> None:
        """Take the duration and size of a forward pass."""


@dataclass(slots=True)
class _Waiting:
    work: Pack
    done: asyncio.Future[list[float]]
    began: float = 0.0
    """When its forward pass began, by perf_counter."""


class Batched:
    """Makes a blocking engine an OpenScorer; an async context manager.

    Two threads tokenise (`Engine.prepare`), `passes` compute (`Engine.forward`), and all else
    happens on the event loop; on a GPU one batch is laid out while another computes. A forward
    pass takes pieces in the order they came, up to `max_batch_tokens` (and always one); those
    whose caller has left are skipped. At most `max_waiting` calls are in here at once, further
    ones get Overloaded, and so does at once who could not be done within `max_seconds`, because
    of those before.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch_tokens: int,
        max_waiting: int,
        max_seconds: float = math.inf,
        passes: int = 1,
        observer: BatchObserver | None = None,
    ) -> None:
        self.engine = engine
        self._budget = max_batch_tokens
        self._max_waiting = max_waiting
        self._max_seconds = max_seconds
        self._observer = observer
        self._calls = 0
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._seconds_per_token = 0.0
        self._computed = 0  # tokens of the passes under way
        self._started = 0.0  # when the first of them began, or the one before it ended
        self._free = asyncio.Semaphore(passes)
        self._loop_task: asyncio.Task[None] | None = None
        self._tokenising = ThreadPoolExecutor(2, "tokenise")
        self._computing = ThreadPoolExecutor(passes, "forward")
        self.identity = engine.identity

    async def __aenter__(self) -> Self:
        """Start the loop that runs the forward passes."""
        self._loop_task = asyncio.create_task(self._run(), name="batcher")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Fail what is queued, wait for the forward pass under way, and stop."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
            self._loop_task = None
        while self._queue:
            self._fail(self._queue.popleft())
        await asyncio.to_thread(self._close_threads)

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange; raise Overloaded, ScorerUnavailable or ConfigurationError."""
        if self._loop_task is None:
            raise ScorerUnavailable("The scorer is closed.")
        if self._calls >= self._max_waiting:
            raise Overloaded(max(1.0, self._seconds_ahead()))
        self._calls += 1
        try:
            loop = asyncio.get_running_loop()
            began = perf_counter()
            prepared = await loop.run_in_executor(
                self._tokenising, self.engine.prepare, exchange, policies
            )
            waiting = [_Waiting(work, loop.create_future()) for work in prepared.work]
            self._check_wait(sum(work.tokens for work in prepared.work))
            self._enqueue(waiting)
            queued = perf_counter()
            try:
                margins = await asyncio.gather(*(w.done for w in waiting))
            finally:
                for w in waiting:
                    w.done.cancel()
            self._observe_phases(began, queued, waiting)
            return prepared.scores(margins)
        except (ShieldgateError, asyncio.CancelledError):
            raise
        except Exception as failure:
            log.exception("tokenisation failed")
            raise ScorerUnavailable("The text could not be tokenised.") from failure
        finally:
            self._calls -= 1

    async def check(self, policies: Iterable[Policy]) -> None:
        """Raise ConfigurationError where a guideline leaves no room for the text to be judged."""
        if self._loop_task is None:
            raise ScorerUnavailable("The scorer is closed.")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._tokenising, self.engine.check_policies, policies)

    def _check_wait(self, tokens: int) -> None:
        """Raise Overloaded for what comes too late; never for the first, to renew the estimate."""
        ahead = self._seconds_ahead()
        if ahead and ahead + tokens * self._seconds_per_token > self._max_seconds:
            raise Overloaded(max(1.0, ahead))

    def _enqueue(self, waiting: Sequence[_Waiting]) -> None:
        if self._loop_task is None:  # closed while this caller's text was tokenised
            raise ScorerUnavailable("The scorer is closed.")
        self._queue.extend(waiting)
        self._arrived.set()
        self._observe_queue()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as passes:
            while True:
                await self._arrived.wait()
                await self._free.acquire()
                batch = self._next_batch()
                self._observe_queue()
                if batch:
                    passes.create_task(self._pass(batch), name="forward pass")
                else:
                    self._free.release()

    async def _pass(self, batch: Sequence[_Waiting]) -> None:
        """Run one forward pass, and tell those who wait."""
        work = [w.work for w in batch]
        tokens = sum(w.tokens for w in work)
        began = perf_counter()
        self._started = self._started if self._computed else began
        self._computed += tokens
        for waiter in batch:
            waiter.began = began
        try:
            margins = await asyncio.get_running_loop().run_in_executor(
                self._computing, self.engine.forward, work
            )
            for waiter, found in zip(batch, margins, strict=True):
                if not waiter.done.done():
                    waiter.done.set_result(found)
        except asyncio.CancelledError:
            for waiter in batch:
                self._fail(waiter)
            raise
        except Exception:
            log.exception("forward pass failed", pieces=len(batch))
            for waiter in batch:
                self._fail(waiter)
        # Passes compute one after the other: what came before this one's turn isn't its own time.
        now = perf_counter()
        self._measure(now - self._started, tokens, len(work))
        self._computed -= tokens
        self._started = now
        self._free.release()

    def _next_batch(self) -> list[_Waiting]:
        """Take what fits one forward pass off the queue, skipping those whose caller has left."""
        batch: list[_Waiting] = []
        tokens = 0
        while self._queue:
            waiter = self._queue[0]
            if not waiter.done.done():
                tokens += waiter.work.tokens
                if batch and tokens > self._budget:
                    break
                batch.append(waiter)
            self._queue.popleft()
        if not self._queue:
            self._arrived.clear()
        return batch

    def _measure(self, seconds: float, tokens: int, pieces: int) -> None:
        recent = seconds / tokens
        before = self._seconds_per_token or recent
        self._seconds_per_token = 0.8 * before + 0.2 * recent
        if self._observer:
            self._observer.forward(seconds, tokens, pieces)

    def _observe_phases(self, began: float, queued: float, waiting: Sequence[_Waiting]) -> None:
        if self._observer:
            last = max((w.began for w in waiting), default=queued)
            self._observer.tokenised(sum(w.work.tokens for w in waiting))
            self._observer.phase("tokenise", queued - began)
            self._observer.phase("queue", last - queued)
            self._observer.phase("forward", perf_counter() - last)

    def _observe_queue(self) -> None:
        if self._observer:
            self._observer.queued(len(self._queue))

    def _seconds_ahead(self) -> float:
        """Estimate when all that is here now will have been worked off."""
        queued = sum(w.work.tokens for w in self._queue if not w.done.done())
        seconds = queued * self._seconds_per_token
        if self._computed:
            # Who takes longer than expected is expected to be done.
            expected = self._computed * self._seconds_per_token
            seconds += max(0.0, expected - (perf_counter() - self._started))
        return seconds

    def _fail(self, waiter: _Waiting) -> None:
        if not waiter.done.done():
            waiter.done.set_exception(ScorerUnavailable("The scorer failed or was closed."))

    def _close_threads(self) -> None:
        # Not cancelled, or callers who wait for a thread would see a cancellation of nobody's.
        self._tokenising.shutdown(wait=True)
        self._computing.shutdown(wait=True, cancel_futures=True)
