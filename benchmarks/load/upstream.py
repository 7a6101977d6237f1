"""An upstream that costs next to nothing: raw ASGI, the same answer each time."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]

WORDS = ["Bake", " it", " for", " forty", " minutes", " at", " 230", " degrees", "."]
_HEAD = {"id": "chatcmpl-1", "created": 0, "model": "null"}
_USAGE = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}


def _completion() -> bytes:
    message = {"role": "assistant", "content": "".join(WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return json.dumps(whole).encode()


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {**_HEAD, "object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


COMPLETION = _completion()
STREAM = [
    _event({"role": "assistant", "content": ""}),
    *(_event({"content": word}) for word in WORDS),
    _event({}, "stop"),
    b"data: [DONE]\n\n",
]


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Answer any POST as a chat completion, streamed if it asks for that."""
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    streamed = b'"stream": true' in body or b'"stream":true' in body
    kind = b"text/event-stream" if streamed else b"application/json"
    headers = [(b"content-type", kind)]
    if not streamed:
        headers.append((b"content-length", str(len(COMPLETION)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in STREAM if streamed else [COMPLETION]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
