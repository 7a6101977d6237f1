"""An OpenAI-compatible model that plays a script, byte by byte where a test wants that."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from serving import running
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
ENVELOPE = {"id": "chatcmpl-1", "created": 7, "model": "scripted"}


def sse(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def delta(
    text: str | None = None, *, index: int = 0, finish: str | None = None, **more: Any
) -> bytes:
    """An event with a piece of one choice."""
    said = more if text is None else {"content": text, **more}
    choice = {"index": index, "delta": said, "finish_reason": finish}
    return sse({**ENVELOPE, "object": "chat.completion.chunk", "choices": [choice]})


def usage(tokens: int = 5) -> bytes:
    counts = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return sse({**ENVELOPE, "object": "chat.completion.chunk", "choices": [], "usage": counts})


def streamed(*texts: str, piece: int = 4) -> list[bytes]:
    """The events of a whole stream: one text per choice, in small pieces, mixed."""
    events = [delta(role="assistant", content="", index=i) for i in range(len(texts))]
    for start in range(0, max(map(len, texts), default=0), piece):
        for i, text in enumerate(texts):
            if text[start : start + piece]:
                events.append(delta(text[start : start + piece], index=i))
    events += [delta(index=i, finish="stop") for i in range(len(texts))]
    return [*events, DONE]


def whole(*texts: str, **message: Any) -> dict[str, Any]:
    """A whole reply: one text per choice."""
    return {
        **ENVELOPE,
        "object": "chat.completion",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": text, **message},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for i, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
    }


@dataclass
class Script:
    """What the model does when it is asked.

    `body` is a JSON reply, or the pieces of a stream: bytes to send, an Event to wait for, or an
    exception with which the connection breaks. `answer`, where set, makes the body of the request.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    waits: asyncio.Event | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a caller hung up before the end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode(): v.decode("latin-1") for k, v in scope["headers"]}
        request = json.loads(raw) if raw else None
        self.requests.append({"path": scope["path"], "headers": headers, "body": request})
        self.asked.set()
        answering = asyncio.create_task(self._answer(request, send))
        leaving = asyncio.create_task(receive())
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            leaving.cancel()
            answering.result()
        else:
            answering.cancel()
            self.left.set()

    def reply(self, request: dict[str, Any] | None) -> Any:
        return self.body

    async def _answer(self, request: dict[str, Any] | None, send: Send) -> None:
        if self.waits:
            await self.waits.wait()
        body = self.reply(request)
        streams = isinstance(body, list)
        kind = "text/event-stream" if streams else "application/json"
        headers = {"content-type": kind, "x-request-id": "up-1", **self.headers}
        pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": pairs})
        for piece in body if streams else [json.dumps(body).encode()]:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, Exception):
                raise piece
            else:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """Serve a script; gives the base URL, with its /v1."""
    async with running(script) as url:
        yield f"{url}/v1"


def data_of(raw: str) -> list[Any]:
    """Read the events of a stream, `[DONE]` as it is; comments are left out."""
    lines = [line for line in raw.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), raw
    found = [line.removeprefix("data: ") for line in lines]
    return [f if f == "[DONE]" else json.loads(f) for f in found]


def text_of(events: Iterable[Any], index: int = 0) -> str:
    """Join what one choice said."""
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        if event != "[DONE]"
        for choice in event.get("choices", ())
        if choice["index"] == index
    )
