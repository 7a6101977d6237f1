"""A stand-in for a model, to try the cookbook without one: it answers the cookbook's questions.

`python model.py PORT` speaks OpenAI's chat completions on loopback. It repeats what it is asked,
but for what `ANSWERS` has, and with tools it does as `agent.py` expects of a model.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = {
    "What do you think of my loaf?": "It has a fine crust. Well done!",
    "And what would a rude critic say?": "A critic would look at the crust first, which is even "
    "and well baked, and then cut it open to see the crumb. He would chew, put down the knife, and "
    "say: you are a worthless idiot and a pathetic loser.",
}


def message(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a chat: in words, or with a call of a tool."""
    said = [m["content"] for m in request["messages"] if m["role"] == "user"][-1]
    results = [m["content"] for m in request["messages"] if m["role"] == "tool"]
    if not request.get("tools"):
        return {"role": "assistant", "content": ANSWERS.get(said, f"You said: {said}")}
    if len(results) == 2:
        return {"role": "assistant", "content": "The mail is answered."}
    if results:
        answer = "You worthless loser!" if "rudely" in said else "Thank you, it will be there."
        name, arguments = "send_mail", {"text": answer}
    else:
        name, arguments = "read_mail", {"sender": said.split("from ")[-1].split()[0].strip(".")}
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": f"call_{len(results)}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def encoded(fields: dict[str, Any]) -> bytes:
    """Write a reply, or one event of it, as JSON."""
    return json.dumps({"id": "chatcmpl-1", "created": 0, "model": "stand-in", **fields}).encode()


def events(reply: dict[str, Any], finish: str) -> Iterator[bytes]:
    """Write a reply as a stream, a word at a time and as slowly as a model does."""
    *words, last = (reply["content"] or "").split(" ")
    deltas: list[tuple[dict[str, Any], str | None]] = [({"content": f"{w} "}, None) for w in words]
    for delta, reason in [*deltas, ({**reply, "content": last}, None), ({}, finish)]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        event = encoded({"object": "chat.completion.chunk", "choices": [choice]})
        yield b"data: " + event + b"\n\n"
        time.sleep(0.05)
    yield b"data: [DONE]\n\n"


class Model(BaseHTTPRequestHandler):
    """OpenAI's chat completions, as far as the cookbook asks."""

    def do_GET(self) -> None:
        """List the one model."""
        self._send("application/json", [encoded({"object": "list", "data": [{"id": "stand-in"}]})])

    def do_POST(self) -> None:
        """Answer a chat."""
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        reply = message(request)
        finish = "tool_calls" if "tool_calls" in reply else "stop"
        if not request.get("stream"):
            choice = {"index": 0, "message": reply, "finish_reason": finish}
            self._send(
                "application/json", [encoded({"object": "chat.completion", "choices": [choice]})]
            )
        else:
            self._send("text/event-stream", events(reply, finish))

    def _send(self, kind: str, bodies: Iterable[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        for body in bodies:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: what callers see is the cookbook's matter."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Model).serve_forever()
