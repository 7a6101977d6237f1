"""Continuous batching: requests that are served at the same time share each step of the model."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Self

import structlog

from shieldgate.errors import GeneratorBusy, GeneratorFailed
from shieldgate.worker.detokenizer import Detokenizer
from shieldgate.worker.generation import Delta, FinishReason, GenerationRequest

if TYPE_CHECKING:  # it imports torch
    from shieldgate.worker.generator import GemmaGenerator, TokenSequence

# A device that is gone fails each step; a request that is too much for it fails one or two.
_MAX_FAILED_STEPS = 3

log = structlog.get_logger(__name__)


class Job:
    """A request in the queue or under way; iterate over its deltas once."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.cancelled = False
        self._deltas: asyncio.Queue[Delta | GeneratorFailed] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Give the deltas as they come, until each choice has ended; raise GeneratorFailed."""
        unfinished = self.request.choices
        while unfinished:
            delta = await self._deltas.get()
            if isinstance(delta, GeneratorFailed):
                raise delta
            unfinished -= delta.finish is not None
            yield delta

    def put(self, delta: Delta | GeneratorFailed) -> None:
        """Hand out what comes next."""
        self._deltas.put_nowait(delta)

    def cancel(self) -> None:
        """End it before the model's next step; does nothing where it has ended."""
        self.cancelled = True


@dataclass(frozen=True, slots=True)
class _RunningChoice:
    index: int
    sequence: "TokenSequence"
    out: Detokenizer
    job: Job


class Scheduler:
    """Puts a generator behind a queue; an async context manager.

    At most `max_running` texts are written at a time and `max_queued` wait for room, in the
    order they came. Cancelled ones are dropped before the next step of the model. A failed
    step fails those in it and who waits; after several in a row it gives up.
    """

    def __init__(self, generator: "GemmaGenerator", *, max_running: int, max_queued: int) -> None:
        self.generator = generator
        self._max_running = max_running
        self._max_queued = max_queued
        self._waiting: deque[Job] = deque()
        self._running: list[_RunningChoice] = []
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

    def submit(self, request: GenerationRequest) -> Job:
        """Queue a request; raise GeneratorBusy or GeneratorFailed.

        Its choices must not be more than `max_running`. Whoever submits must cancel the job.
        """
        if self._loop_task is None or self._loop_task.done():
            raise GeneratorFailed("The generator is closed.")
        waiting = sum(job.request.choices for job in self._waiting if not job.cancelled)
        room = self._max_running + self._max_queued - len(self._running) - waiting
        if request.choices > room:
            raise GeneratorBusy(retry_after=1)
        job = Job(request)
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
            sequences = [choice.sequence for choice in self._running]
            try:
                new = await loop.run_in_executor(self._computing, self.generator.step, sequences)
            except Exception:
                log.exception("generation failed", texts=len(sequences))
                self._fail()
                failed += 1
                if failed == _MAX_FAILED_STEPS:
                    raise
                continue
            failed = 0
            self._running = [
                choice
                for choice, tokens in zip(self._running, new, strict=True)
                if not tokens or self._emit(choice, tokens) is None
            ]

    def _admit(self) -> None:
        """Drop what was cancelled, and begin what there is room for."""
        self._running = [choice for choice in self._running if not choice.job.cancelled]
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        while self._waiting:
            job = self._waiting[0]
            if len(self._running) + job.request.choices > self._max_running:
                break
            self._running += self._begin(job)
            self._waiting.popleft()

    def _begin(self, job: Job) -> list[_RunningChoice]:
        request = job.request
        seeds = SystemRandom() if request.seed is None else Random(request.seed)  # noqa: S311
        sequences = self.generator.begin(
            request.prompt,
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            seeds=[seeds.getrandbits(63) for _ in range(request.choices)],
        )
        return [
            _RunningChoice(index, sequence, Detokenizer(self.generator.decode, request.stop), job)
            for index, sequence in enumerate(sequences)
        ]

    def _emit(self, choice: _RunningChoice, tokens: Sequence[int]) -> FinishReason | None:
        """Pass new tokens on as text; tells why the choice ends, if it does."""
        sequence, out = choice.sequence, choice.out
        text = out.push(tokens)
        finish: FinishReason | None = None
        if out.stopped or self.generator.ends(tokens[-1]):
            finish = "stop"
        elif len(sequence.tokens) == sequence.max_length:
            finish = "length"
        if finish:
            text += out.flush()
            log.debug(
                "generated",
                prompt_tokens=sequence.prompt,
                tokens=len(sequence.tokens) - sequence.prompt,
                forwards=sequence.forwards,
                finish=finish,
            )
        choice.job.put(Delta(choice.index, text, len(tokens), finish))
        return finish

    def _fail(self) -> None:
        for job in {*(choice.job for choice in self._running), *self._waiting}:
            job.put(GeneratorFailed("The generator failed or was closed."))
        self._running = []
        self._waiting.clear()
