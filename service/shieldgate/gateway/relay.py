"""Relays a streamed answer: events of upstream in, judged pieces out."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import structlog

from shieldgate.dialects.interface import JsonObject, Piece, Refusal, StreamReader
from shieldgate.errors import ScoringError, ShieldgateError, Unscreenable, UpstreamError
from shieldgate.gateway.call import Call
from shieldgate.gateway.concurrency import together
from shieldgate.sse import Event
from shieldgate.streaming import Step, StreamGuard
from shieldgate.types import Exchange, Judged

# How much may wait for a caller who reads slowly, before upstream has to wait too.
_MOST_BYTES = 262_144

log = structlog.get_logger(__name__)


class SendBuffer:
    """Bytes on their way to the caller."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._closed = False
        self._filled = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.started = False
        """Whether anything of it was read, so that the status is sent."""
        self.failure: ShieldgateError | None = None
        """Why it was closed before its time, once all that is in it was read."""

    def write(self, data: bytes) -> None:
        """Add to what waits, unless it is closed; `writable` tells when to go on."""
        if self._closed or not data:
            return
        self._waiting += data
        self._filled.set()
        if len(self._waiting) > _MOST_BYTES:
            self._writable.clear()

    def close(self, failure: ShieldgateError | None = None) -> None:
        """Say that nothing more will come; of a failure before the status, nothing else is sent."""
        self.failure = failure
        if failure is not None and not self.started:
            self._waiting.clear()
        self._closed = True
        self._filled.set()

    async def writable(self) -> None:
        """Wait until the caller has read enough."""
        await self._writable.wait()

    async def read(self) -> bytes:
        """Wait for bytes and take all there are; none once it is empty and closed."""
        await self._filled.wait()
        data = bytes(self._waiting)
        self._waiting.clear()
        self.started |= bool(data)
        self._writable.set()
        if not self._closed:
            self._filled.clear()
        return data


class Relay:
    """One streamed answer, all its choices."""

    def __init__(self, call: Call, stream: StreamReader, buffer: SendBuffer) -> None:
        self._call = call
        self._stream = stream
        self._buffer = buffer
        self._choices: dict[int, _Choice] = {}
        self._reading: asyncio.Task[None] | None = None
        self._ended = False
        # What belongs to no choice, in the order in which it came, and how much of it has left.
        self._beside: list[Piece] = []
        self._beside_left = 0
        self.request_id: str | None = None
        self.reply: JsonObject | None = None
        """The whole reply, where the stream has repeated it, and all of it leaves."""

    async def run(self) -> None:
        """Relay until the end, or until no choice is left that may go on; close the buffer."""
        try:
            async with together() as group:
                self._reading = group.create_task(self._read(group))
        except ShieldgateError as failure:
            self._buffer.close(failure)
        else:
            self._buffer.close()

    @property
    def outputs(self) -> list[Judged]:
        """List the verdicts on the choices, as far as there are any."""
        return [judged for c in self._choices.values() if (judged := c.judged)]

    def closing(self, inputs: Sequence[Judged]) -> bytes:
        """Write what follows the choices."""
        rest = self._beside[self._beside_left :]
        return self._stream.closing(self._call.verdicts(inputs, self.outputs), rest)

    async def _read(self, group: asyncio.TaskGroup) -> None:
        call, dialect = self._call, self._call.dialect
        asked: float | None = perf_counter()
        async with call.upstream.stream(
            dialect.endpoint, self._stream.body, call.headers, self._is_end
        ) as upstream:
            self.request_id = upstream.request_id
            async for name, data in upstream.events:
                if asked is not None:
                    call.services.telemetry.phase("upstream", perf_counter() - asked)
                    asked = None
                for piece in self._pieces(name, data):
                    await self._dispatch(piece, group)
                if self._may_leave():
                    break
                await self._buffer.writable()
        for choice in self._choices.values():
            # What has come may still stop it; then it needs no end of the model's.
            if not choice.over:
                await choice.guard.caught_up()
        complete = self._ended or all(choice.over for choice in self._choices.values())
        if not self._choices or not complete:
            raise UpstreamError("Upstream cut the answer off.", code="upstream_cut_off")
        self._end()

    def _pieces(self, name: str, data: dict[str, Any]) -> Sequence[Piece]:
        try:
            return list(self._stream.read(name, data))
        except UpstreamError:
            raise
        except Exception as defect:
            # The status may be sent: an error has to end the stream, as for what makes no sense.
            log.exception("an event could not be read", dialect=self._call.dialect.name)
            raise UpstreamError(
                "Upstream streamed what could not be read.", code="upstream_invalid"
            ) from defect

    def _is_end(self, event: Event) -> bool:
        # Not every server gives a reason to finish before it.
        self._ended = self._call.dialect.is_end(event)
        return self._ended

    async def _dispatch(self, piece: Piece, group: asyncio.TaskGroup) -> None:
        if piece.choice is None:
            # Leaves with what comes after it, because it would overtake what is held back.
            self._beside.append(piece)
            return
        choice = self._choices.get(piece.choice)
        if choice is None:
            choice = _Choice(
                piece.choice,
                self._call,
                self._stream,
                self._buffer,
                release=self._release,
                on_stop=self._choice_stopped,
            )
            self._choices[piece.choice] = choice
            group.create_task(choice.run())
        await choice.feed(_Queued(piece, len(self._beside)))

    def _release(self, queued: "_Queued") -> None:
        """Send a piece of a choice, after what came before it and belongs to none."""
        for piece in (*self._beside[self._beside_left : queued.after], queued.piece):
            self._buffer.write(self._stream.release(piece))
            self.reply = piece.reply or self.reply
        self._beside_left = max(self._beside_left, queued.after)

    def _choice_stopped(self) -> None:
        """Leave upstream if no choice is left that may go on."""
        if self._reading is not None and self._may_leave():
            self._reading.cancel()
            self._reading = None
            self._end()

    def _may_leave(self) -> bool:
        """Tell whether the model still writes, and nothing that will be sent."""
        choices = self._choices.values()
        return (
            len(choices) == self._call.plan.choices
            and all(choice.over for choice in choices)
            and not all(choice.finished for choice in choices)
        )

    def _end(self) -> None:
        for choice in self._choices.values():
            choice.guard.end()


@dataclass(frozen=True, slots=True)
class _Queued:
    """A piece of a choice, and how many pieces that belong to none came before it."""

    piece: Piece
    after: int


class _Choice:
    """One choice: its guard, and what is sent of it."""

    def __init__(
        self,
        index: int,
        call: Call,
        stream: StreamReader,
        buffer: SendBuffer,
        *,
        release: Callable[[_Queued], None],
        on_stop: Callable[[], None],
    ) -> None:
        self._index = index
        self._call = call
        self._stream = stream
        self._buffer = buffer
        self._release = release
        self._on_stop = on_stop
        self._rules = call.rules["response"]
        self._unscreenable: ScoringError | None = None
        streaming = self._rules.profile.streaming
        self._annotates = streaming.mode == "async"
        self.finished = False
        self.guard: StreamGuard[_Queued] = StreamGuard(
            call.plan.context(index),
            streaming,
            self._judge,
            self._step,
            # What nothing can stop need not wait.
            hold=self._rules.profile.mode == "enforce" and not self._annotates,
            prefill=call.plan.prefill,
        )

    @property
    def judged(self) -> Judged | None:
        """Give the verdict on the choice, where there is one."""
        judged = self.guard.judged
        return judged and replace(judged, failure=self._unscreenable or judged.failure)

    @property
    def over(self) -> bool:
        """Tell whether nothing more of the model's is sent than what has come."""
        return self.finished or self.guard.stopped

    async def run(self) -> None:
        """Judge and send until the choice has ended; record the verdict."""
        try:
            await self.guard.run()
        finally:
            if judged := self.judged:
                self._call.services.screener.record(self.guard.exchange, judged, self._rules)

    async def feed(self, queued: _Queued) -> None:
        """Take the next piece of this choice."""
        piece = queued.piece
        self.finished |= piece.ends
        if piece.unscreenable:
            judged = self._call.unscreenable()
            self._unscreenable = judged.failure
            if judged.verdict.action.stops:
                self.guard.stop(judged)
        await self.guard.feed(queued, piece.texts, complete=piece.ends)

    async def _judge(self, exchange: Exchange) -> Judged:
        return await self._call.services.screener.judge(exchange, self._rules)

    def _step(self, step: Step[_Queued]) -> None:
        if step.held:
            self._call.services.telemetry.phase("held", step.held)
        for queued in step.pieces:
            self._release(queued)
        if step.judged is None:
            return
        if self._annotates:
            verdict = step.judged.verdict
            self._buffer.write(self._stream.annotation(self._index, verdict, step.start, step.end))
        if step.judged.verdict.action.stops:
            self._end(step.judged.failure)

    def _end(self, failure: ScoringError | None) -> None:
        if failure and not isinstance(failure, Unscreenable) and not self._buffer.started:
            # The status is still ours to choose, if nothing is read meanwhile.
            self._buffer.close(failure)
            raise failure
        refusal = Refusal.of(self._call.answer_profile)
        self._buffer.write(self._stream.ending(self._index, refusal))
        self._on_stop()
