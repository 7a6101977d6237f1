"""Relays a streamed answer: chunks of upstream in, judged events out."""

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from shieldgate.errors import ScoringError, ShieldgateError, Unscreenable, UpstreamError
from shieldgate.gateway import blocks
from shieldgate.gateway.call import Call
from shieldgate.gateway.services import Judged, together
from shieldgate.openai.chat import answer, envelope
from shieldgate.streaming import Guard, Step
from shieldgate.types import Exchange, Verdict

# How much may wait for a caller who reads slowly, before upstream has to wait too.
_MOST_BYTES = 262_144

_ENVELOPE = ("id", "object", "created", "model", "system_fingerprint", "service_tier")


class Outbox:
    """Bytes on their way to the caller."""

    def __init__(self) -> None:
        """Start empty."""
        self._waiting = bytearray()
        self._closed = False
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.taken = False
        """Whether anything of it is on its way, and so the status."""
        self.failure: ShieldgateError | None = None
        """Why it was closed before its time, once all that is in it was taken."""

    def put(self, data: bytes) -> None:
        """Add to what waits, unless it is closed; `room` tells when to go on."""
        if self._closed:
            return
        self._waiting += data
        self._filled.set()
        if len(self._waiting) > _MOST_BYTES:
            self._room.clear()

    def close(self, failure: ShieldgateError | None = None) -> None:
        """Say that nothing more will come; of a failure before the status, nothing else is told."""
        self.failure = failure
        if failure is not None and not self.taken:
            self._waiting.clear()
        self._closed = True
        self._filled.set()

    async def room(self) -> None:
        """Wait until the caller has read enough."""
        await self._room.wait()

    async def take(self) -> bytes:
        """Wait for bytes and take all there are; none once it is empty and closed."""
        await self._filled.wait()
        taken = bytes(self._waiting)
        self._waiting.clear()
        self.taken |= bool(taken)
        self._room.set()
        if not self._closed:
            self._filled.clear()
        return taken


class Relay:
    """One streamed answer, all its choices."""

    def __init__(self, call: Call, outbox: Outbox) -> None:
        """Take the request, and where events go."""
        self._call = call
        self._outbox = outbox
        self._choices: dict[int, _Choice] = {}
        self._reading: asyncio.Task[None] | None = None
        self._last: list[dict[str, Any]] = []
        # Our worker can count on the way, so that the count is there when it is left early.
        self._counts = call.services.worker is not None and call.asks_for_usage
        self._usage: Any = None
        self.envelope: dict[str, Any] = {}
        self.request_id: str | None = None

    async def run(self) -> None:
        """Relay until the end, or until no choice is left that may go on; close the outbox."""
        try:
            async with together() as group:
                self._reading = group.create_task(self._read(group))
        except ShieldgateError as failure:
            self._outbox.close(failure)
        else:
            self._outbox.close()

    @property
    def outputs(self) -> list[Judged]:
        """List the verdicts on the choices, as far as there are any."""
        return [judged for c in self._choices.values() if (judged := c.judged)]

    def last_words(self, inputs: Sequence[Judged]) -> bytes:
        """Write what follows the choices: the verdicts if they matter, the usage, the end."""
        last = self._last
        counted = any(chunk.get("usage") for chunk in last)
        if self._usage and not counted and self._call.asks_for_usage:
            last = [*last, {**self.envelope, "choices": [], "usage": self._usage}]
        if moderation := self._call.moderation(inputs, self.outputs):
            last = [{**self.envelope, "choices": [], **moderation}, *last]
        return b"".join(map(blocks.event, last)) + blocks.END

    async def _read(self, group: asyncio.TaskGroup) -> None:
        call, body = self._call, self._call.body
        asked: float | None = perf_counter()
        if self._counts:
            options = {**body["stream_options"], "continuous_usage_stats": True}
            body = {**body, "stream_options": options}
        async with call.upstream.stream(call.surface.path, body, call.headers) as stream:
            self.request_id = stream.request_id
            async for chunk in stream.chunks:
                if asked is not None:
                    call.services.telemetry.phase("upstream", perf_counter() - asked)
                    asked = None
                await self._take(chunk, group)
                if self._may_leave():
                    break
                await self._outbox.room()
        for choice in self._choices.values():
            # What has come may still stop it; then it needs no end of the model's.
            if not choice.over:
                await choice.guard.caught_up()
        if not self._choices or not all(choice.over for choice in self._choices.values()):
            raise UpstreamError("Upstream cut the answer off.", code="upstream_cut_off")
        self._end()

    async def _take(self, chunk: dict[str, Any], group: asyncio.TaskGroup) -> None:
        passed = envelope(chunk)
        self.envelope = {key: passed[key] for key in _ENVELOPE if key in passed}
        self._usage = passed.get("usage") or self._usage
        choices: Any = chunk.get("choices")
        if self._counts and choices:
            chunk.pop("usage", None)
        if not choices:
            # Usage, mostly; it comes last. No text of an answer has its place here.
            enforces = self._call.answer_profile.mode == "enforce"
            self._last.append({**passed, "choices": []} if enforces else chunk)
            return
        for said in choices if isinstance(choices, list) else [choices]:
            index = said.get("index") if isinstance(said, dict) else None
            if type(index) is not int or not 0 <= index < self._call.most_choices:
                raise UpstreamError(
                    "Upstream streamed a choice that was not asked for.", code="upstream_invalid"
                )
            if index not in self._choices:
                self._choices[index] = _Choice(index, self._call, self, self._outbox)
                group.create_task(self._choices[index].run())
            await self._choices[index].take({**chunk, "choices": [said]}, said)

    def choice_stopped(self) -> None:
        """Leave upstream if no choice is left that may go on."""
        if self._reading is not None and self._may_leave():
            self._reading.cancel()
            self._reading = None
            self._end()

    def _may_leave(self) -> bool:
        """Tell whether the model still writes, and nothing that will be sent."""
        choices = self._choices.values()
        return (
            len(choices) == self._call.most_choices
            and all(choice.over for choice in choices)
            and not all(choice.finished for choice in choices)
        )

    def _end(self) -> None:
        for choice in self._choices.values():
            choice.guard.end()


class _Choice:
    """One choice: its guard, and what is sent of it."""

    def __init__(self, index: int, call: Call, relay: Relay, outbox: Outbox) -> None:
        self._index = index
        self._call = call
        self._relay = relay
        self._outbox = outbox
        self._begun = False
        self._failure: ScoringError | None = None
        self._unscreened: Unscreenable | None = None
        self._judging: Exchange | None = None
        self._decided: Exchange | None = None
        self._rules = call.demands.rules["response"]
        streaming = self._rules.profile.streaming
        self._annotates = streaming.mode == "async"
        self.finished = False
        self.guard: Guard[bytes] = Guard(
            call.plan.context(index),
            streaming,
            self._judge,
            self._step,
            # What nothing can stop need not wait.
            hold=self._rules.profile.mode == "enforce" and not self._annotates,
            begun=call.plan.begun,
        )

    @property
    def judged(self) -> Judged | None:
        """Give the verdict on the choice, where there is one."""
        verdict = self.guard.verdict
        if verdict is None:
            return None
        failed = None if verdict.judgements else self._failure
        return Judged(verdict, self._unscreened or failed, 0.0)

    @property
    def over(self) -> bool:
        """Tell whether nothing more of the model's is sent than what has come."""
        return self.finished or self.guard.stopped

    async def run(self) -> None:
        """Judge and send until the choice has ended; count the verdict."""
        try:
            await self.guard.run()
        finally:
            if judged := self.judged:
                self._call.services.decided(self._decided, judged, self._rules)

    async def take(self, chunk: dict[str, Any], said: dict[str, Any]) -> None:
        """Take a chunk of this choice alone."""
        ends = said.get("finish_reason") is not None
        self.finished |= ends
        found = answer(said, chunk)
        if found.unscreenable:
            verdict, self._unscreened = self._call.unscreenable()
            if verdict.action.stops:
                self.guard.stop(verdict)
        texts = [(strand.field, strand.text) for strand in found.strands]
        await self.guard.feed(blocks.event(chunk), texts, complete=ends)

    async def _judge(self, exchange: Exchange) -> Verdict:
        self._judging = exchange
        judged = await self._call.services.look(exchange, self._rules)
        self._failure = judged.failure
        return judged.verdict

    def _step(self, step: Step[bytes]) -> None:
        if step.verdict is not None and step.verdict is self.guard.verdict:
            self._decided = self._judging
        if step.held:
            self._call.services.telemetry.phase("held", step.held)
        for piece in step.pieces:
            self._begun = True
            self._outbox.put(piece)
        if step.verdict is not None and self._annotates:
            self._send(self._annotation(step, step.verdict))
        if step.verdict is not None and step.verdict.action.stops:
            self._end()

    def _end(self) -> None:
        if self._failure and not self._outbox.taken:
            # The status is still ours to choose, if nothing is taken meanwhile.
            self._outbox.close(self._failure)
            raise self._failure
        refusal = self._call.answer_profile.refusal
        for choice in self._call.surface.ending(self._index, refusal, self._begun):
            self._send(choice)
        self._relay.choice_stopped()

    def _send(self, choice: dict[str, Any]) -> None:
        self._outbox.put(blocks.event({**self._relay.envelope, "choices": [choice]}))

    def _annotation(self, step: Step[bytes], verdict: Verdict) -> dict[str, Any]:
        return {
            "index": self._index,
            "delta": {},
            "finish_reason": None,
            "content_filter_results": blocks.filter_results(verdict),
            "content_filter_offsets": {
                "check_offset": step.end,
                "start_offset": step.start,
                "end_offset": step.end,
            },
        }
