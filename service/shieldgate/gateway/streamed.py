"""A streamed answer on its way to the caller."""

import asyncio
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from shieldgate.errors import ScoringError, UpstreamError
from shieldgate.gateway.call import Call, overload_as_unavailable
from shieldgate.gateway.concurrency import together, while_connected
from shieldgate.gateway.errors import log_failure, problem_of
from shieldgate.gateway.relay import Relay, SendBuffer
from shieldgate.sse import PING, events_in
from shieldgate.types import Judged


class StreamedAnswer(Response):
    """A streamed answer; its status is decided when the first byte may leave."""

    media_type = "text/event-stream"

    def __init__(self, call: Call) -> None:
        self._call = call
        self._stream = call.stream()
        call.state.stream = self._stream
        self._sent = False
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay until the end, a failure, or until the caller disconnects."""
        try:
            with overload_as_unavailable():
                await while_connected(Request(scope, receive), [self._serve(scope, receive, send)])
        except ClientDisconnect:
            # A connection counts as closed, too, when all has been sent.
            if not self._sent:
                raise
            self._call.state.outcome = self._call.state.outcome or "left"

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        buffer = SendBuffer()
        relay = Relay(self._call, self._stream, buffer)
        async with together() as group:
            relaying = None
            if self._call.prompt_profile.prompt_check == "parallel":
                relaying = group.create_task(relay.run())
            inputs = await self._call.judge_prompts()
            if refused := self._call.refuse(inputs):
                if relaying:
                    relaying.cancel()
                self._sent = True
                await refused(scope, receive, send)
                return
            if relaying is None:
                group.create_task(relay.run())
            await self._send_all(buffer, relay, inputs, send)
        # Last of all: from then on the connection counts as closed.
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(
        self, buffer: SendBuffer, relay: Relay, inputs: Sequence[Judged], send: Send
    ) -> None:
        first = b""
        if self._call.answer_profile.streaming.mode == "async":
            first = self._stream.prompt_annotation(inputs)
        while data := await self._next(buffer):
            await self._write(first + data, relay, send)
            first = b""
        failure = buffer.failure
        if isinstance(failure, UpstreamError):
            failure = await self._call.screen_error(failure)
        if failure is None:
            self._call.state.name_outcome(relay.outputs)
            if relay.reply is not None:
                await self._call.remember(relay.reply)
            last = first + relay.closing(inputs)
        elif self._sent:
            failed_guard = isinstance(failure, ScoringError)
            self._call.state.outcome = "unjudged" if failed_guard else "cut_off"
            if isinstance(failure, UpstreamError):
                log_failure(failure)
            error = self._call.dialect.error(problem_of(failure))
            last = self._stream.error_event(error, self._call.state.left)
        else:
            raise failure
        await self._write(last, relay, send)
        # Not before, because sending waits for a slow reader, and the server may stop meanwhile.
        self._call.state.complete = True

    async def _next(self, buffer: SendBuffer) -> bytes:
        """Wait for what is next; while nothing comes, comments keep the connection alive."""
        # Not before the status is sent, because a comment would make it a 200.
        seconds = self._call.services.settings.ping_seconds if self._sent else None
        try:
            async with asyncio.timeout(seconds):
                return await buffer.read()
        except TimeoutError:
            return PING

    async def _write(self, data: bytes, relay: Relay, send: Send) -> None:
        if not self._sent:
            self._sent = True
            self.headers.update(self._call.reply_headers(relay.request_id))
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._call.state.left += events_in(data)
