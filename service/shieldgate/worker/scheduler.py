"""Requests that are served at the same time share each step of the model."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Self

import structlog

from shieldgate.errors import GeneratorBusy, GeneratorFailed
from shieldgate.worker.order import Delta, Finish, Order
from shieldgate.worker.text import TextOut

if TYPE_CHECKING:  # it imports torch
    from shieldgate.worker.generator import GemmaGenerator, Writing

# A device that is gone fails each step; a request that is too much for it fails one or two.
_HOPELESS = 3

log = structlog.get_logger(__name__)


class Job:
    """An order in the queue or under way; iterate over its deltas once."""

    def __init__(self, order: Order) -> None:
        """Take what was ordered."""
        self.order = order
        self.left = False
        self._deltas: asyncio.Queue[Delta | GeneratorFailed] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Give the deltas as they come, until each choice has ended; raise GeneratorFailed."""
        unfinished = self.order.choices
        while unfinished:
            delta = await self._deltas.get()
            if isinstance(delta, GeneratorFailed):
                raise delta
            unfinished -= delta.finish is not None
            yield delta

    def put(self, delta: Delta | GeneratorFailed) -> None:
        """Hand out what comes next."""
        self._deltas.put_nowait(delta)

    def leave(self) -> None:
        """End the writing before the model's next step; does nothing where it has ended."""
        self.left = True


@dataclass(frozen=True, slots=True)
class _Choice:
    index: int
    writing: "Writing"
    out: TextOut
    job: Job


class Scheduler:
    """Puts a generator behind a queue; an async context manager.

    At most `max_running` texts are written at a time and `max_queued` wait for room, in the
    order they came. Those that were left are dropped before the next step of the model. A failed
    step fails those in it and who waits; after several in a row it gives up.
    """

    def __init__(self, generator: "GemmaGenerator", *, max_running: int, max_queued: int) -> None:
        """Take the generator and the limits; `async with` starts and closes."""
        self.generator = generator
        self._max_running = max_running
        self._max_queued = max_queued
        self._waiting: deque[Job] = deque()
        self._running: list[_Choice] = []
        self._arrived = asyncio.Event()
        self._computing = ThreadPoolExecutor(1, "generate")
        self._loop_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the loop that runs the steps."""
        self._loop_task = asyncio.create_task(self._run(), name="scheduler")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Fail what is under way or waits, and stop after the present step."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
            self._loop_task = None
        self._fail()
        await asyncio.to_thread(self._computing.shutdown)

    async def broken(self) -> None:
        """Wait until it gives up, and raise what made it."""
        if self._loop_task is not None:
            await asyncio.shield(self._loop_task)

    def submit(self, order: Order) -> Job:
        """Queue an order; raise GeneratorBusy or GeneratorFailed.

        Its choices must not be more than `max_running`. Whoever submits must leave the job.
        """
        if self._loop_task is None or self._loop_task.done():
            raise GeneratorFailed("The generator is closed.")
        waiting = sum(job.order.choices for job in self._waiting if not job.left)
        room = self._max_running + self._max_queued - len(self._running) - waiting
        if order.choices > room:
            raise GeneratorBusy(retry_after=1)
        job = Job(order)
        self._waiting.append(job)
        self._arrived.set()
        return job

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failed = 0
        while True:
            self._admit()
            if not self._running:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            writings = [choice.writing for choice in self._running]
            try:
                new = await loop.run_in_executor(self._computing, self.generator.step, writings)
            except Exception:
                log.exception("generation failed", texts=len(writings))
                self._fail()
                failed += 1
                if failed == _HOPELESS:
                    raise
                continue
            failed = 0
            self._running = [
                choice
                for choice, tokens in zip(self._running, new, strict=True)
                if not tokens or self._hand_out(choice, tokens) is None
            ]

    def _admit(self) -> None:
        """Drop what was left, and begin what there is room for."""
        self._running = [choice for choice in self._running if not choice.job.left]
        self._waiting = deque(job for job in self._waiting if not job.left)
        while self._waiting:
            job = self._waiting[0]
            if len(self._running) + job.order.choices > self._max_running:
                break
            self._running += self._begin(job)
            self._waiting.popleft()

    def _begin(self, job: Job) -> list[_Choice]:
        order = job.order
        seeds = SystemRandom() if order.seed is None else Random(order.seed)  # noqa: S311
        writings = self.generator.begin(
            order.prompt,
            most=order.most,
            sampling=order.sampling,
            seeds=[seeds.getrandbits(63) for _ in range(order.choices)],
        )
        return [
            _Choice(index, writing, TextOut(self.generator.decode, order.stops), job)
            for index, writing in enumerate(writings)
        ]

    def _hand_out(self, choice: _Choice, tokens: Sequence[int]) -> Finish | None:
        """Pass new tokens on as text; tells why the choice ends, if it does."""
        writing, out = choice.writing, choice.out
        text = out.push(tokens)
        finish: Finish | None = None
        if out.stopped or self.generator.ends(tokens[-1]):
            finish = "stop"
        elif len(writing.tokens) == writing.end:
            finish = "length"
        if finish:
            text += out.finish()
            log.debug(
                "generated",
                prompt_tokens=writing.prompt,
                tokens=len(writing.tokens) - writing.prompt,
                forwards=writing.forwards,
                finish=finish,
            )
        choice.job.put(Delta(choice.index, text, len(tokens), finish))
        return finish

    def _fail(self) -> None:
        for job in {*(choice.job for choice in self._running), *self._waiting}:
            job.put(GeneratorFailed("The generator failed or was closed."))
        self._running = []
        self._waiting.clear()
