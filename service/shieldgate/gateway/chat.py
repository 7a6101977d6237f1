"""`POST /v1/chat/completions` and `POST /v1/completions`: any model, screened in and out."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from shieldgate.errors import Overloaded, ScorerUnavailable, ScoringError, UpstreamError
from shieldgate.gateway import blocks
from shieldgate.gateway.call import Call
from shieldgate.gateway.errors import WITH_A_BODY, declared, note
from shieldgate.gateway.errors import body as error_body
from shieldgate.gateway.relay import Outbox, Relay
from shieldgate.gateway.services import Given, Judged, together, while_connected
from shieldgate.openai.chat import ChatRequest, CompletionRequest, answer, envelope
from shieldgate.openai.errors import ErrorEnvelope
from shieldgate.openai.sse import PING
from shieldgate.types import Exchange
from shieldgate.upstream import Reply

router = APIRouter()

_OBJECT = {"type": "object", "required": ["choices"]}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_ENVELOPE = {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"}
_BLOCKED = {"type": "object", "required": ["error", "moderation"]}
_OF_UPSTREAM = {"model": ErrorEnvelope, "description": "Upstream's own status and error."}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, in the form and with the fields that upstream gave it; "
        "`moderation` beside the choices where that was asked for or something happened.",
        "content": {
            "application/json": {"schema": _OBJECT},
            "text/event-stream": {"itemSchema": _EVENT},
        },
    },
    **declared(*WITH_A_BODY),
    400: {
        "description": "The request is wrong, and `param` names the field; or its prompt was "
        "blocked, and `code` is `content_filter`.",
        "content": {"application/json": {"schema": {"anyOf": [_ENVELOPE, _BLOCKED]}}},
    },
    "4XX": _OF_UPSTREAM,
    "5XX": _OF_UPSTREAM,
}


@router.post("/v1/chat/completions", response_class=Response, responses=_ANSWERS)
async def chat(body: ChatRequest, request: Request, services: Given) -> Response:
    """Answer a chat with the upstream model.

    The prompts are judged before it is asked, or at the same time, and every choice of the
    answer before it leaves. `model` goes to upstream; the profile is the operator's. With the
    field `moderation` a caller may ask for more screening, and is told the verdicts.
    """
    return await _serve(Call.of(request, body, blocks.CHAT, services), request)


@router.post("/v1/completions", response_class=Response, responses=_ANSWERS)
async def complete(body: CompletionRequest, request: Request, services: Given) -> Response:
    """Continue a text with the upstream model, screened like a chat."""
    return await _serve(Call.of(request, body, blocks.COMPLETIONS, services), request)


async def _serve(call: Call, request: Request) -> Response:
    exchanges = [subject.exchange for subject in call.plan.prompts]
    await call.services.accept(request, exchanges, call.surface.asks_in)
    if call.body.get("stream"):
        return _Streamed(call)
    with _told_from_upstream():
        [response] = await while_connected(request, [_whole(call)])
    return response


@contextmanager
def _told_from_upstream() -> Iterator[None]:
    """Report a guard that has no room as one that failed; a 429 would read as the model's."""
    try:
        yield
    except Overloaded as failure:
        raise ScorerUnavailable(str(failure), retry_after=failure.retry_after) from failure


async def _whole(call: Call) -> Response:
    """Answer without a stream; raise ScoringError and UpstreamError."""
    async with together() as group:
        asking = None
        if call.prompt_profile.prompt_check == "parallel":
            asking = group.create_task(_ask(call))
        inputs = await call.judge_prompts()
        if blocked := call.block(inputs):
            if asking:
                asking.cancel()
            return blocked
        reply = await asking if asking else await _ask(call)
    if isinstance(reply, UpstreamError):
        raise await call.told(reply)
    return await _screened(call, inputs, reply)


async def _ask(call: Call) -> Reply | UpstreamError:
    """Ask upstream; a refusal is a value, as it may not leave before the prompt's verdict."""
    asked = perf_counter()
    try:
        reply = await call.upstream.post(call.surface.path, call.body, call.headers)
    except UpstreamError as failure:
        return failure
    call.services.telemetry.phase("upstream", perf_counter() - asked)
    return reply


async def _screened(call: Call, inputs: Sequence[Judged], reply: Reply) -> Response:
    choices = reply.body.get("choices")
    if not choices or not isinstance(choices, list) or any(type(c) is not dict for c in choices):
        raise UpstreamError(
            "Upstream answered without choices.",
            code="upstream_invalid",
            request_id=reply.request_id,
        )
    async with together() as group:
        tasks = [group.create_task(_judge(call, choice, reply.body)) for choice in choices]
    outputs = [task.result() for task in tasks]
    call.account(outputs)
    refusal = call.answer_profile.refusal
    stopped = any(judged.verdict.action.stops for judged in outputs)
    body = {
        # What was judged with the choices leaves with all of them.
        **(envelope(reply.body) if stopped else reply.body),
        "choices": [
            call.surface.whole(_index(choice), refusal) if judged.verdict.action.stops else choice
            for choice, judged in zip(choices, outputs, strict=True)
        ],
    }
    body |= call.moderation(inputs, outputs)
    return Response(
        orjson.dumps(body),
        media_type="application/json",
        headers=call.reply_headers(reply.request_id),
    )


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index")
    return index if type(index) is int and index >= 0 else 0


async def _judge(call: Call, choice: dict[str, Any], reply: dict[str, Any]) -> Judged:
    found = answer(choice, reply)
    rules = call.demands.rules["response"]
    exchange = Exchange(call.plan.context(_index(choice)), call.plan.begun + found.text)
    verdict, failure = call.unscreenable() if found.unscreenable else (None, None)
    if verdict and verdict.action.stops:
        judged = Judged(verdict, failure, 0.0)
        call.services.decided(exchange, judged, rules)
        return judged
    judged = await call.services.judge(exchange, rules, may_open=True)
    return replace(judged, failure=failure) if failure else judged


class _Streamed(Response):
    """A streamed answer; its status is decided when the first byte may leave."""

    media_type = "text/event-stream"

    def __init__(self, call: Call) -> None:
        self._call = call
        self._sent = False
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay until the end, a failure, or the caller hangs up."""
        try:
            with _told_from_upstream():
                await while_connected(Request(scope, receive), [self._serve(scope, receive, send)])
        except ClientDisconnect:
            # A connection counts as closed, too, when all has been sent.
            if not self._sent:
                raise
            if not hasattr(self._call.state, "outcome"):
                self._call.state.outcome = "left"

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        outbox = Outbox()
        relay = Relay(self._call, outbox)
        async with together() as group:
            relaying = None
            if self._call.prompt_profile.prompt_check == "parallel":
                relaying = group.create_task(relay.run())
            inputs = await self._call.judge_prompts()
            if blocked := self._call.block(inputs):
                if relaying:
                    relaying.cancel()
                self._sent = True
                await blocked(scope, receive, send)
                return
            if relaying is None:
                group.create_task(relay.run())
            await self._send_all(outbox, relay, inputs, send)
        # Last of all: from then on the connection counts as closed.
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(
        self, outbox: Outbox, relay: Relay, inputs: Sequence[Judged], send: Send
    ) -> None:
        first = self._annotated(inputs)
        while data := await self._next(outbox):
            await self._write(first + data, relay, send)
            first = b""
        failure = outbox.failure
        if isinstance(failure, UpstreamError):
            failure = await self._call.told(failure)
        if failure is None:
            self._call.account(relay.outputs)
            last = first + relay.last_words(inputs)
        elif self._sent:
            failed_guard = isinstance(failure, ScoringError)
            self._call.state.outcome = "unjudged" if failed_guard else "cut_off"
            if isinstance(failure, UpstreamError):
                note(failure)
            last = blocks.event({"error": error_body(failure).model_dump()})
        else:
            raise failure
        await self._write(last, relay, send)

    async def _next(self, outbox: Outbox) -> bytes:
        """Wait for what is next; while nothing comes, comments keep the connection alive."""
        # Not before the status is sent, because a comment would make it a 200.
        seconds = self._call.services.settings.ping_seconds if self._sent else None
        try:
            async with asyncio.timeout(seconds):
                return await outbox.take()
        except TimeoutError:
            return PING

    async def _write(self, data: bytes, relay: Relay, send: Send) -> None:
        if not self._sent:
            self._sent = True
            self.headers.update(self._call.reply_headers(relay.request_id))
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
        await send({"type": "http.response.body", "body": data, "more_body": True})

    def _annotated(self, inputs: Sequence[Judged]) -> bytes:
        """Write what Azure's asynchronous filter says of prompts, before all else."""
        if self._call.answer_profile.streaming.mode != "async":
            return b""
        results = [
            {"prompt_index": place, "content_filter_results": blocks.filter_results(j.verdict)}
            for place, j in enumerate(inputs)
        ]
        envelope = self._call.surface.envelope(self._call.body.get("model"), streamed=True)
        return blocks.event({**envelope, "prompt_filter_results": results, "choices": []})
