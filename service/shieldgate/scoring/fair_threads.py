"""Threads at which callers take turns, and where short work never waits for long work."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shieldgate.errors import ScorerUnavailable
from shieldgate.scoring import turn
from shieldgate.scoring.fair_queue import FairQueue

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Job(Generic[T]):
    """Work for a thread, of a size in units of one's own; `done` gets what comes of it."""

    caller: str
    size: int
    long: bool
    work: Callable[[], T]
    done: "asyncio.Future[T]"


class FairThreads:
    """Two threads for blocking work of callers.

    Work that is `long` has one of them at a time, and the next free one, so that neither kind
    waits for more than one piece of the other. What is in the background leaves one of them free.
    For one event loop.
    """

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(2, name)
        self._free = 2
        self._long_is_free = True
        self._waiting: dict[bool, FairQueue[Job[Any]]] = {True: FairQueue(), False: FairQueue()}

    def submit(
        self, caller: str, size: int, work: Callable[[], T], *, long: bool = False
    ) -> Job[T]:
        """Do work in its caller's turn; `size` is of all that it takes time for."""
        long = long and caller != turn.BACKGROUND  # which is never next
        # What were for free would always be next, and all at once.
        job = Job(caller, max(1, size), long, work, asyncio.get_running_loop().create_future())
        self._waiting[long].put(job)
        self._start()
        return job

    def withdraw(self, job: Job[Any]) -> None:
        """Leave work out that nobody waits for any more, unless it has begun."""
        job.done.cancel()
        self._waiting[job.long].drop([job])

    def close(self) -> None:
        """Block until what has begun is done."""
        self._threads.shutdown(wait=True)

    def fail_waiting(self) -> None:
        """Fail what has not begun."""
        for queue in self._waiting.values():
            for job in (waiting := list(queue)):
                if not job.done.done():
                    job.done.set_exception(ScorerUnavailable("The scorer is closed."))
            queue.drop(waiting)

    def _start(self) -> None:
        while self._free:
            long = bool(self._long_is_free and self._waiting[True])
            queue = self._waiting[long]
            if not (queue.of_callers or (queue and self._free == 2)):
                return
            # Of no budget but the first, which always fits.
            (job,) = queue.take(0)
            self._free -= 1
            self._long_is_free &= not long
            self._begin(job)

    def _begin(self, job: Job[Any]) -> None:
        loop = job.done.get_loop()

        def ended(thread: "ThreadFuture[Any]") -> None:
            loop.call_soon_threadsafe(self._ended, job, thread)

        self._threads.submit(job.work).add_done_callback(ended)

    def _ended(self, job: Job[Any], thread: "ThreadFuture[Any]") -> None:
        self._free += 1
        self._long_is_free |= job.long
        if not job.done.done():
            if failure := thread.exception():
                job.done.set_exception(failure)
            else:
                job.done.set_result(thread.result())
        self._start()
