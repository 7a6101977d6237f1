"""A guard and a model, what becomes of a prompt is in its words: for clients to be shown it all."""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import responding
import test_messages as messages
from fakes import FakeScorer
from test_embeddings import embedded
from upstream import DONE, Script, delta, streamed, whole

from shieldgate.errors import ScorerUnavailable
from shieldgate.policy import Policy
from shieldgate.types import Exchange, Score

PROMPTS = {
    "good": "hello",
    "tool": "look it up",
    "blocked prompt": "so crude",
    "blocked answer": "answer badly",
    "guard failed": "what no guard can judge",
    "guard failed later": "answer vaguely",
    "upstream failed": "what no model can answer",
    "upstream broke off": "answer in part",
}
KIND, BEGINNING = "a kind answer", "kind words at first, " * 6
ANSWERS = {
    PROMPTS["blocked answer"]: f"{BEGINNING}and then so crude, really",
    PROMPTS["guard failed later"]: f"{BEGINNING}and then what no guard can judge",
    PROMPTS["upstream broke off"]: BEGINNING,
}
_ANSWERED = re.compile(rf"({'|'.join(ANSWERS)}) \([^)]*\)")


@dataclass
class Model(Script):
    """Answers text, objects and calls of tools, in the API in which it is asked.

    A stream goes on from its middle when something of the answer has been judged.
    """

    headers: dict[str, str] = field(default_factory=lambda: {"retry-after": "1"})
    judged: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    def reply(self, request: dict[str, Any] | None) -> Any:
        assert request
        said = json.dumps(request.get("messages") or request["input"])
        self.status = 500 if PROMPTS["upstream failed"] in said else 200
        if self.status == 500:
            return {"error": {"message": "Out of memory.", "type": "server_error"}}
        found = _ANSWERED.search(said)
        body = _answer(request, said, ANSWERS[found[1]] if found else KIND)
        if found is None or not isinstance(body, list):
            return body
        middle = len(body) // 2
        broke = found[1] == PROMPTS["upstream broke off"]
        rest = [ConnectionResetError()] if broke else body[middle:]
        return [*body[:middle], self.judged[found[0]], *rest]


@dataclass
class Guard(FakeScorer):
    """Finds what is crude, and fails on what it can't judge."""

    model: Model = field(default_factory=Model)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.margins = {("crude", "test/threat"): 3.0}

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        scores = await super().score(exchange, policies)
        text = exchange.prompt if exchange.response is None else exchange.response
        if PROMPTS["guard failed"] in text:
            raise ScorerUnavailable("The scorer failed.", retry_after=1)
        if text is exchange.response and (asked := _ANSWERED.search(exchange.prompt)):
            self.model.judged[asked[0]].set()
        return scores

    def requests(self, prompt: str, way: str) -> int:
        """Count how often a prompt was asked: at the model, or here where it went no further."""
        asked = f"{prompt} ({way})"
        at_model = sum(asked in json.dumps(r["body"]) for r in self.model.requests)
        return at_model or sum(e.response is None and asked in e.prompt for e, _ in self.calls)


def _answer(request: dict[str, Any], said: str, text: str) -> Any:
    """Write an answer in the API and the form that a request asks for."""
    if "encoding_format" in request:
        return embedded([0.5, -1])
    streams = bool(request.get("stream"))
    name, arguments, content = _form(request, said, text)
    if "input" in request:
        item = responding.call(arguments, name=name) if name else responding.message(content)
        return (responding.streamed if streams else responding.response)(item)
    if any("input_schema" in tool for tool in request.get("tools") or ()):
        return _message(name, arguments, content, streams)
    if name:
        return _calling(name, arguments, streams)
    return streamed(content) if streams else whole(content)


def _form(request: dict[str, Any], said: str, text: str) -> tuple[str, str, str]:
    """A tool with its arguments, or what is said: an object, where that is asked for."""
    names = [tool.get("name") or tool["function"]["name"] for tool in request.get("tools") or ()]
    if names == ["look_up"]:
        if PROMPTS["tool"] in said and "is baked" not in said:
            return "look_up", '{"q": "bread"}', ""
        return "", "", "it is baked" if "is baked" in said else text
    loaf = json.dumps({"kind": text})
    if names:
        return names[0], loaf, ""
    form = request.get("response_format") or (request.get("text") or {}).get("format") or {}
    return "", "", loaf if form.get("type", "text") != "text" else text


def _calling(name: str, arguments: str, streams: bool) -> Any:
    """A call of a tool, in chat completions."""
    call = {"id": "call_34", "type": "function"}
    if not streams:
        function = {"name": name, "arguments": arguments}
        reply = whole("", tool_calls=[{**call, "function": function}])
        reply["choices"][0]["finish_reason"] = "tool_calls"
        return reply
    first = {"index": 0, **call, "function": {"name": name, "arguments": ""}}
    rest = [
        delta(tool_calls=[{"index": 0, "function": {"arguments": piece}}])
        for piece in responding.cut(arguments, 4)
    ]
    events = [delta(role="assistant", content=None, tool_calls=[first]), *rest]
    return [*events, delta(finish="tool_calls"), DONE]


def _message(name: str, arguments: str, content: str, streams: bool) -> Any:
    """A message of Anthropic's API."""
    use = {"type": "tool_use", "id": "toolu_01A09q90qw90lq917835lq9", "name": name}
    if not streams:
        if name:
            block = {**use, "input": json.loads(arguments)}
            return messages.whole(block, stop_reason="tool_use")
        return messages.whole(content)
    if not name:
        return messages.streamed(messages.text(0, content))
    json_delta = {"type": "input_json_delta", "partial_json": arguments}
    return messages.streamed(messages.block(0, {**use, "input": {}}, json_delta), reason="tool_use")
