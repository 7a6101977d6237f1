"""Dynamic batching: callers who wait at the same time share a forward pass, and take turns."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Literal, Protocol, Self

import structlog

from shieldgate.errors import Overloaded, ScorerUnavailable, ShieldgateError, TooLong
from shieldgate.policy import Policy
from shieldgate.scoring import turn
from shieldgate.scoring.fair_queue import FairQueue
from shieldgate.scoring.fair_threads import FairThreads
from shieldgate.scoring.interfaces import Engine, Prepared
from shieldgate.scoring.pace import Pace
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange, Score

# Characters from which on tokenising takes long enough for others to wait.
_LONG = 10_000

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


@dataclass(eq=False, slots=True)
class _Waiting:
    caller: str
    work: Pack
    done: asyncio.Future[list[float]]
    began: float = 0.0
    """When its forward pass began, by perf_counter."""
    seconds: float = 0.0
    """Its part of the time that pass took."""

    @property
    def size(self) -> int:
        return self.work.tokens


@dataclass(eq=False, slots=True)
class _Call:
    """A call that has a place, and what it is waiting for."""

    caller: str
    awaited: list[asyncio.Future[Any]] = field(default_factory=list)

    def refuse(self, why: Overloaded) -> None:
        for future in self.awaited:
            if not future.done():
                future.set_exception(why)


class Batched:
    """Makes a blocking engine an OpenScorer; an async context manager.

    Two threads tokenise (`Engine.prepare`), `passes` compute (`Engine.forward`), and all else
    happens on the event loop; on a GPU one batch is laid out while another computes.

    Callers (`turn.caller`) take turns, by tokens. A forward pass takes up to `max_batch_tokens`,
    and no more than it computes in `max_pass_seconds`, as far as is known; of one caller it takes
    no more than its share while others wait. One piece it takes always, which nobody can cut: a
    window of the context. So who has little to be scored waits for one pass under way and is in
    the next one, however much others have. Those whose caller has left are skipped. What is in the
    background (`turn.BACKGROUND`) is computed one piece at a time while no caller waits, needs no
    place, and counts in no estimate. `gate` is awaited before each pass.

    At most `max_waiting` calls are in here at once. A further one takes the place of the last one
    of the caller who has most, else it gets Overloaded; and so does at once who could not be done
    by its `turn.deadline` or within `max_seconds`, because of others before. What takes more than
    `max_seconds` by itself, alone or with what its request already sent, gets TooLong.
    """

    available = True

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch_tokens: int,
        max_waiting: int,
        max_seconds: float = math.inf,
        max_pass_seconds: float = math.inf,
        passes: int = 1,
        observer: BatchObserver | None = None,
        gate: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.engine = engine
        self.pace = Pace()
        self._gate = gate
        self._budget = max_batch_tokens
        self._max_waiting = max_waiting
        self._max_seconds = max_seconds
        self._max_pass_seconds = max_pass_seconds
        self._observer = observer
        self._calls: dict[_Call, None] = {}
        self._queue: FairQueue[_Waiting] = FairQueue()
        self._arrived = asyncio.Event()
        self._free = asyncio.Semaphore(passes)
        self._loop_task: asyncio.Task[None] | None = None
        self._tokenising = FairThreads("tokenise")
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
        for waiter in self._queue:
            self._fail(waiter)
        self._tokenising.fail_waiting()
        await asyncio.to_thread(self._close_threads)

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange; raise ScoringError or ConfigurationError."""
        if self._loop_task is None:
            raise ScorerUnavailable("The scorer is closed.")
        call = self._take_place(turn.caller.get())
        try:
            began = perf_counter()
            prepared = await self._prepare(call, exchange, policies)
            waiting = self._enqueue(call, prepared)
            queued = perf_counter()
            try:
                margins = await asyncio.gather(*call.awaited)
            finally:
                for w in waiting:
                    w.done.cancel()
                self._queue.drop([w for w in waiting if not w.began])
            turn.count(sum(w.work.tokens for w in waiting), sum(w.seconds for w in waiting))
            if call.caller != turn.BACKGROUND:
                self._observe_phases(began, queued, waiting)
            return prepared.scores(margins)
        except (ShieldgateError, asyncio.CancelledError):
            raise
        except Exception as failure:
            log.exception("tokenisation failed")
            raise ScorerUnavailable("The text could not be tokenised.") from failure
        finally:
            self._calls.pop(call, None)

    async def check(self, policies: Iterable[Policy]) -> None:
        """Raise ConfigurationError where a guideline leaves no room for the text to be judged."""
        if self._loop_task is None:
            raise ScorerUnavailable("The scorer is closed.")
        policies = list(policies)
        size = sum(len(text) for policy in policies for text in policy.guidelines.values())
        work = partial(self.engine.check_policies, policies)
        await self._tokenising.submit(turn.caller.get(), size, work).done

    def _take_place(self, caller: str) -> _Call:
        """Take a caller in; raise Overloaded where there is no place and none to be taken."""
        if caller == turn.BACKGROUND:
            return _Call(caller)
        if len(self._calls) >= self._max_waiting:
            held = Counter(call.caller for call in self._calls)
            most = max(held, key=held.__getitem__)
            full = Overloaded(max(1.0, self._seconds_ahead(caller)))
            if held[most] <= held[caller] + 1:
                raise full
            last = next(call for call in reversed(self._calls) if call.caller == most)
            del self._calls[last]
            last.refuse(full)
        call = _Call(caller)
        self._calls[call] = None
        return call

    async def _prepare(
        self, call: _Call, exchange: Exchange, policies: Sequence[Policy]
    ) -> Prepared:
        """Tokenise in turn; raise TooLong and Overloaded where the characters alone tell."""
        characters = exchange.characters
        if characters > _LONG:
            rate = self.pace.where_many
            most = self._max_seconds / rate if rate else math.inf
            if rate and (least := self.engine.least_tokens(exchange, most)) > most:
                raise self._too_long("The text takes more than", least)
            if rate:
                self._check_turn(call.caller, least)
        # An empty text takes time, too: that of the guidelines.
        size = characters + sum(len(policy.guidelines[exchange.direction]) for policy in policies)
        work = partial(self.engine.prepare, exchange, policies)
        job = self._tokenising.submit(call.caller, size, work, long=characters > _LONG)
        call.awaited = [job.done]
        try:
            return await job.done
        finally:
            self._tokenising.withdraw(job)

    def _enqueue(self, call: _Call, prepared: Prepared) -> list[_Waiting]:
        """Queue what was tokenised; raise TooLong, Overloaded, or ScorerUnavailable."""
        if self._loop_task is None:  # closed while this caller's text was tokenised
            raise ScorerUnavailable("The scorer is closed.")
        self._check_time(call.caller, prepared)
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(call.caller, work, loop.create_future()) for work in prepared.work]
        call.awaited = [w.done for w in waiting]
        for waiter in waiting:
            self._queue.put(waiter)
        self._arrived.set()
        self._observe_queue()
        return waiting

    def _check_time(self, caller: str, prepared: Prepared) -> None:
        """Raise TooLong for what could never be done in time, Overloaded for what can't be now.

        Never for what is one piece and the first, so that the estimate is renewed.
        """
        tokens = sum(work.tokens for work in prepared.work)
        together = tokens
        if deadline := turn.deadline.get():
            deadline.tokens += tokens
            together = deadline.tokens
        rate = self.pace.where_many
        if len(prepared.work) > 1 and tokens * rate > self._max_seconds:
            raise self._too_long("The text takes", tokens)
        if together > tokens and together * rate > self._max_seconds:
            raise self._too_long("The texts of this request take", together)
        self._check_turn(caller, tokens)

    def _check_turn(self, caller: str, tokens: int) -> None:
        """Raise Overloaded for what comes too late; never for the first, or in the background."""
        if caller == turn.BACKGROUND:
            return
        deadline = turn.deadline.get()
        most = min(self._max_seconds, deadline.left if deadline else math.inf)
        ahead = self._seconds_ahead(caller, tokens)
        if ahead and ahead + tokens * self.pace.per_token > most:
            raise Overloaded(max(1.0, ahead))

    def _too_long(self, what: str, tokens: int) -> TooLong:
        seconds = tokens * self.pace.where_many
        return TooLong(
            f"{what} {tokens:,} tokens, which is about {seconds:,.0f} seconds of this server's "
            f"time, and at most {self._max_seconds:g} are spent. Send less at once."
        )

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as passes:
            while True:
                await self._arrived.wait()
                await self._free.acquire()
                if self._gate:
                    await self._gate()
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
        began = self.pace.begin(tokens)
        for waiter in batch:
            waiter.began = began
        try:
            margins = await asyncio.get_running_loop().run_in_executor(
                self._computing, self.engine.forward, work
            )
            for waiter, found in zip(batch, margins, strict=True):
                waiter.seconds = self.pace.spent(began) * waiter.size / tokens
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
        seconds = self.pace.end(tokens, telling=batch[0].caller != turn.BACKGROUND)
        if self._observer:
            self._observer.forward(seconds, tokens, len(work))
        self._free.release()

    def _next_batch(self) -> list[_Waiting]:
        """Take one forward pass off the queue."""
        budget: float = self._budget
        if self.pace.per_token:
            budget = min(budget, self._max_pass_seconds / self.pace.per_token)
        batch = [waiter for waiter in self._queue.take(budget) if not waiter.done.done()]
        if not self._queue:
            self._arrived.clear()
        return batch

    def _observe_phases(self, began: float, queued: float, waiting: Sequence[_Waiting]) -> None:
        if self._observer:
            last = max((w.began for w in waiting), default=queued)
            self._observer.tokenised(sum(w.work.tokens for w in waiting))
            self._observer.phase("tokenise", queued - began)
            self._observer.phase("queue", last - queued)
            self._observer.phase("forward", perf_counter() - last)

    def _observe_queue(self) -> None:
        if self._observer:
            self._observer.queued(self._queue.of_callers)

    def _seconds_ahead(self, caller: str, tokens: int = 0) -> float:
        """Estimate how long it takes until so many tokens of a caller have their turn."""
        return self._queue.ahead(caller, tokens) * self.pace.per_token + self.pace.left()

    def _fail(self, waiter: _Waiting) -> None:
        if not waiter.done.done():
            waiter.done.set_exception(ScorerUnavailable("The scorer failed or was closed."))

    def _close_threads(self) -> None:
        self._tokenising.close()
        self._computing.shutdown(wait=True, cancel_futures=True)
