"""A model's server that speaks OpenAI's Responses, and what it says, with all its repetitions."""

import copy
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import orjson
from fakes import FakeScorer
from serving import Gateway, gateway
from upstream import Script, serving

from shieldgate.sse import Decoder
from shieldgate.upstream import Upstream

ROUTE = "/v1/responses"
USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 8,
}


def message(text: str, id: str = "msg_12", **more: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    said = {"type": "message", "id": id, "role": "assistant", "status": "completed"}
    return {**said, "content": [part], **more}


def call(arguments: str, id: str = "fc_34", name: str = "look_up") -> dict[str, Any]:
    kind = {"type": "function_call", "id": id, "call_id": "call_34", "name": name}
    return {**kind, "arguments": arguments, "status": "completed"}


def thought(text: str, id: str = "rs_56") -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text}]
    return {"type": "reasoning", "id": id, "summary": summary}


def response(*items: Mapping[str, Any], id: str = "resp_78", **more: Any) -> dict[str, Any]:
    """A whole reply, as OpenAI's server writes one."""
    return {
        "id": id,
        "object": "response",
        "created_at": 1790000000,
        "status": "completed",
        "background": False,
        "billing": {"payer": "developer"},
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": "gpt-6-astra",
        "output": list(items),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": USAGE,
        "user": None,
        **more,
    }


# What is said of an item piece by piece: the list and index it stands in, and its events.
_TEXTS = {
    "output_text": ("content", "response.output_text", "text"),
    "refusal": ("content", "response.refusal", "refusal"),
    "reasoning_text": ("content", "response.reasoning_text", "text"),
    "summary_text": ("summary", "response.reasoning_summary_text", "text"),
}
_FIELDS = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
    "mcp_call": ("response.mcp_call_arguments", "arguments"),
    "code_interpreter_call": ("response.code_interpreter_call_code", "code"),
}


def said(whole: dict[str, Any], piece: int = 4) -> list[dict[str, Any]]:
    """Spell a whole reply as the events that OpenAI's server streams, in small pieces."""
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events = [
        {"type": f"response.{kind}", "response": begun} for kind in ("created", "in_progress")
    ]
    for place, item in enumerate(whole["output"]):
        events += _of_item(place, item, piece)
    kind = {"type": f"response.{whole['status']}", "response": whole}
    return [{**e, "sequence_number": number} for number, e in enumerate([*events, kind])]


def _of_item(place: int, item: dict[str, Any], piece: int) -> Iterator[dict[str, Any]]:
    empty = copy.deepcopy(item)
    at = {"item_id": item["id"], "output_index": place}
    parts = [(where, part) for where in ("summary", "content") for part in item.get(where) or ()]
    for where in ("summary", "content"):
        if where in item:
            empty[where] = []
    name, field = _FIELDS.get(item["type"], ("", ""))
    if field:
        empty[field] = ""
    if "status" in empty:
        empty["status"] = "in_progress"
    yield {"type": "response.output_item.added", "output_index": place, "item": empty}
    if field:
        for text in cut(item[field], piece):
            yield {"type": f"{name}.delta", **at, "delta": text}
        yield {"type": f"{name}.done", **at, field: item[field]}
    count = {"summary": 0, "content": 0}
    for where, part in parts:
        yield from _of_part({**at, _index(where): count[where]}, where, part, piece)
        count[where] += 1
    yield {"type": "response.output_item.done", "output_index": place, "item": item}


def _index(where: str) -> str:
    return {"summary": "summary_index", "content": "content_index"}[where]


def _of_part(
    at: dict[str, Any], where: str, part: dict[str, Any], piece: int
) -> Iterator[dict[str, Any]]:
    holds = {"summary": "reasoning_summary_part", "content": "content_part"}[where]
    _, name, field = _TEXTS[part["type"]]
    tokens = {"logprobs": []} if part["type"] == "output_text" else {}
    yield {"type": f"response.{holds}.added", **at, "part": {**part, field: ""}}
    for text in cut(part[field], piece):
        yield {"type": f"{name}.delta", **at, "delta": text, **tokens, "obfuscation": "xY3"}
    yield {"type": f"{name}.done", **at, field: part[field], **tokens}
    yield {"type": f"response.{holds}.done", **at, "part": part}


def cut(text: str, piece: int) -> list[str]:
    return [text[start : start + piece] for start in range(0, len(text), piece)]


def written(events: list[dict[str, Any]]) -> list[bytes]:
    return [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events]


def streamed(*items: Mapping[str, Any], piece: int = 4, **more: Any) -> list[bytes]:
    return written(said(response(*items, **more), piece))


def read(raw: bytes) -> list[dict[str, Any]]:
    """Read a stream: events bear their type as their name, and numbers without a gap."""
    found = [(e.name, orjson.loads(e.data)) for e in Decoder(10**7).feed(raw)]
    assert not re.search(rb"\[DONE\]", raw)
    for number, (name, event) in enumerate(found):
        assert name == event["type"]
        assert event["sequence_number"] == number
    return [event for _, event in found]


@dataclass
class Respond:
    """A gateway before that server, and ways to ask."""

    gateway: Gateway
    script: Script

    async def ask(self, input: Any = "bread", **more: Any) -> httpx.Response:
        body = {"model": "m", "input": input, **more}
        return await self.gateway.client.post(ROUTE, json=body)

    async def answer(self, input: Any = "bread", **more: Any) -> dict[str, Any]:
        reply = await self.ask(input, **more)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    async def stream(self, input: Any = "bread", **more: Any) -> list[dict[str, Any]]:
        reply = await self.ask(input, stream=True, **more)
        assert reply.status_code == 200, reply.text
        return read(reply.content)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """The official client."""
        async with openai.AsyncOpenAI(
            base_url=f"{self.gateway.url}/v1", api_key="caller", max_retries=0
        ) as client:
            yield client


@asynccontextmanager
async def responding(
    scorer: FakeScorer, body: Any = None, script: Script | None = None, **how: Any
) -> AsyncIterator[Respond]:
    script = script or Script(response(message("a kind answer")) if body is None else body)
    async with (
        serving(script) as url,
        gateway(scorer, upstream=Upstream(url, silence_seconds=20), **how) as running,
    ):
        yield Respond(running, script)
