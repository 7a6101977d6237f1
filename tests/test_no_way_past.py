"""No route passes a text that nobody judged: every POST route, every field, in and out."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import responding
import test_messages
from fakes import FakeScorer
from serving import Gateway, gateway
from test_guards import asked, hook, kinds, rejects
from upstream import Script, serving, streamed, whole

from shieldgate.upstream import Upstream

# The scorer of these tests finds a threat in what has this word in it.
WORD = "crude"
HARM = f"so {WORD} a text that nobody may read it"

TOOL = {"name": "look_up", "description": "finds", "parameters": {"title": "recipe"}}
CALL = {"id": "call_9fKq2XaW7", "type": "function"}
CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "be kind", "name": "house"},
        {"role": "user", "content": [{"type": "text", "text": "bake"}]},
        {
            "role": "assistant",
            "content": "I look",
            "refusal": "no",
            "tool_calls": [{**CALL, "function": {"name": "look_up", "arguments": '{"a": "b"}'}}],
        },
        {"role": "tool", "tool_call_id": "call_9fKq2XaW7", "content": "found"},
        {"role": "user", "content": "thanks"},
    ],
    "tools": [{"type": "function", "function": TOOL}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "loaf", "description": "of it", "schema": {"title": "crust"}},
    },
    "prediction": {"type": "content", "content": "a loaf"},
    "stop": ["halt"],
    "metadata": {"shelf": "top"},
    "user": "u",
}
RESPONSES = {
    "model": "m",
    "instructions": "be kind",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "bake"}]},
        {
            "type": "function_call",
            "call_id": "call_9fKq2XaW7",
            "name": "look_up",
            "arguments": '{"a": "b"}',
        },
        {"type": "function_call_output", "call_id": "call_9fKq2XaW7", "output": "found"},
        {"role": "user", "content": "thanks"},
    ],
    "tools": [{"type": "function", "strict": True, **TOOL}],
    "text": {
        "format": {"type": "json_schema", "name": "loaf", "schema": {"title": "crust"}},
    },
    "metadata": {"shelf": "top"},
}
MESSAGES = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "be kind"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "bake"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "toolu_01A09q90qw", "name": "f", "input": {"a": "b"}}
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_01A09q90qw", "content": "found"},
                {
                    "type": "document",
                    "title": "loaf",
                    "context": "of it",
                    "source": {"type": "text", "media_type": "text/plain", "data": "crust"},
                },
            ],
        },
    ],
    "tools": [{"name": "f", "description": "finds", "input_schema": {"type": "object"}}],
    "stop_sequences": ["halt"],
}


@dataclass(frozen=True)
class Verdict:
    """A route that judges: a body that passes, and what tells a block.

    `unjudged` are the fields for which this verdict doesn't speak: names, questions, and what is
    shown with the text that is judged.
    """

    body: dict[str, Any]
    blocked: Callable[[Any], bool]
    unjudged: str = ""


@dataclass(frozen=True)
class Relay:
    """A route that a model answers: a body, and the answer, whole and streamed.

    `unjudged` are the fields that go to the server and not into the model (docs/coverage.md).
    """

    body: dict[str, Any]
    answer: Any
    stream: list[bytes] | None = None
    unjudged: str = ""


def flagged(reply: Any) -> bool:
    return any(result["flagged"] for result in reply["results"])


def violated(reply: Any) -> bool:
    return any(result["violated"] for result in reply["results"])


def detected(reply: Any) -> bool:
    each = reply if reply and isinstance(reply[0], list) else [reply]
    return any("test/threat" in kinds(found) for found in each)


def decided(reply: Any) -> bool:
    return bool(reply["verdict"]["violated"])


def severe(reply: Any) -> bool:
    return max(c["severity"] for c in reply["categoriesAnalysis"]) >= 2


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


RELAYS = {
    "/v1/chat/completions": Relay(
        CHAT,
        whole("a loaf"),
        streamed("a loaf", piece=9),
        "model stop.0 metadata.shelf metadata.x_note user",
    ),
    "/v1/completions": Relay(
        {"model": "m", "prompt": ["bake"], "suffix": "done", "stop": ["halt"], "user": "u"},
        {
            "id": "cmpl-12",
            "object": "text_completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "text": "a loaf", "finish_reason": "stop"}],
        },
        unjudged="model stop.0 user",
    ),
    "/v1/responses": Relay(
        RESPONSES,
        responding.response(responding.message("a loaf"), responding.call('{"a": "b"}')),
        responding.streamed(responding.message("a loaf"), piece=9),
        "model metadata.shelf metadata.x_note",
    ),
    "/v1/messages": Relay(
        MESSAGES,
        test_messages.whole("a loaf"),
        test_messages.streamed(test_messages.text(0, "a loaf", piece=9)),
        "model stop_sequences.0",
    ),
    "/v1/embeddings": Relay(
        {"model": "m", "input": ["bake", "more"], "user": "u"},
        {"object": "list", "model": "m", "data": [{"index": n, "embedding": [1]} for n in (0, 1)]},
        unjudged="model user",
    ),
}

# What is counted here is not judged: it goes to where tokens are counted, and a number comes back.
COUNTS = "/v1/messages/count_tokens"
# An admin tries rules on texts; none of them goes anywhere.
TRIES = "/admin/policies/draft"
# Nor does what an admin asks and says about kept texts.
REVIEWS = {f"/admin/review/{what}" for what in ("next", "label", "leave")}

# Portkey shows the texts twice; these are beside the request itself, which is judged.
PORTKEY = (
    "x_note requestType provider metadata.x_note request.x_note request.text request.json.model "
    "response.x_note"
)

# After # stands which body of a route it is.
VERDICTS = {
    "/v1/moderations": Verdict({"input": ["bake", "more"]}, flagged),
    "/v1/screen": Verdict(
        {"exchanges": [{"prompt": "bake", "response": "a loaf"}, {"prompt": "more"}]},
        violated,
        "exchanges.0.prompt",
    ),
    "/v1/decisions": Verdict(
        {
            "model": "m",
            "input": [turn("user", "bake"), turn("assistant", "a loaf")],
            "questions": [
                {"type": "predicate", "name": "test/threat", "instructions": "It threatens."}
            ],
        },
        decided,
        "model questions.0.name questions.0.instructions "
        "input.0.role input.0.content input.0.x_note",
    ),
    "/v1/systemone": Verdict(
        {
            "model": "m",
            "state": "bake",
            "questions": {"test/threat": {"type": "noul", "instructions": "It threatens."}},
        },
        decided,
        "model questions.test/threat.instructions",
    ),
    "/beta/litellm_basic_guardrail_api": Verdict(
        asked(turn("user", "bake")),
        lambda b: b["action"] == "BLOCKED",
        "x_note litellm_call_id litellm_trace_id litellm_version model request_data.x_note "
        "request_data.user_api_key_hash request_headers.x_note request_headers.authorization "
        "additional_provider_specific_params.x_note",
    ),
    "/api/v1/text/contents": Verdict({"contents": ["bake", "more"]}, detected, "x_note"),
    "/api/v1/text/chat": Verdict(
        {"messages": [turn("user", "bake"), turn("assistant", "a loaf")]}, detected, "x_note"
    ),
    "/api/v1/text/generation": Verdict(
        {"prompt": "bake", "generated_text": "a loaf"}, detected, "prompt x_note"
    ),
    "/api/v1/text/context/doc": Verdict(
        {"content": "a loaf", "context_type": "docs", "context": ["crust"]}, detected, "x_note"
    ),
    "/classify": Verdict(
        {"model": "m", "input": ["bake", "more"]},
        lambda b: any(each["label"] == "test/threat" for each in b["data"]),
        "model x_note",
    ),
    "/contentsafety/text:analyze?api-version=2024-09-01": Verdict(
        {"text": "bake"}, severe, "x_note"
    ),
    "/v1/guards/chat/completions": Verdict(
        {"model": "m", "messages": [turn("user", "bake"), turn("assistant", "a loaf")]},
        lambda b: b["choices"][0]["message"]["content"].startswith("unsafe"),
        "model x_note",
    ),
    "/v1/guards/portkey#before": Verdict(
        hook("before", {"messages": [turn("user", "bake")], "model": "m"}),
        lambda b: b["verdict"] is False,
        PORTKEY,
    ),
    "/v1/guards/portkey#after": Verdict(
        hook(
            "after",
            {"messages": [turn("user", "bake")], "model": "m"},
            {"choices": [{"message": turn("assistant", "a loaf")}]},
        ),
        lambda b: b["verdict"] is False,
        f"{PORTKEY} response.text request.json.messages.0.role request.json.messages.0.content "
        "request.json.messages.0.x_note request.json.x_note",
    ),
    "/request": Verdict(
        {"body": {"messages": [turn("user", "bake")]}}, rejects, "x_note body.x_note"
    ),
    "/response": Verdict(
        {"body": {"choices": [{"message": turn("assistant", "a")}]}}, rejects, "x_note body.x_note"
    ),
}


def harmed(body: Any) -> Iterator[tuple[str, Any]]:
    """Each text of a body in turn with harm in its place, and harm in a field that nobody knows."""

    def places(here: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if isinstance(here, str):
            yield way
        if isinstance(here, dict):
            yield (*way, "x_note")
        if isinstance(here, dict | list):
            for key, value in here.items() if isinstance(here, dict) else enumerate(here):
                yield from places(value, (*way, key))

    for way in places(body, ()):
        made = here = copy.deepcopy(body)
        for key in way[:-1]:
            here = here[key]
        here[way[-1]] = HARM
        yield ".".join(map(str, way)), made


async def paths(served: Gateway) -> set[str]:
    described = (await served.client.get("/openapi.json")).json()["paths"]
    return {path for path, operations in described.items() if "post" in operations}


async def test_every_route_that_takes_a_text_is_tested_here(scorer: FakeScorer) -> None:
    async with serving(Script()) as url, gateway(scorer, upstream=Upstream(url)) as served:
        tested = {re.split("[?#]", path)[0] for path in VERDICTS}
        assert await paths(served) == {*RELAYS, *tested, *REVIEWS, COUNTS, TRIES}


@pytest.mark.parametrize("path", VERDICTS)
async def test_harm_is_a_block_in_whatever_field_it_stands(served: Gateway, path: str) -> None:
    route = VERDICTS[path]
    reply = await served.client.post(path, json=route.body)
    assert reply.status_code == 200, reply.text
    assert not route.blocked(reply.json())
    passed = set()
    for where, body in harmed(route.body):
        reply = await served.client.post(path, json=body)
        if reply.status_code == 200 and not route.blocked(reply.json()):
            passed.add(where)
    assert passed == set(route.unjudged.split())


@pytest.mark.parametrize("path", RELAYS)
async def test_no_harm_reaches_a_model_in_whatever_field_it_stands(
    scorer: FakeScorer, path: str
) -> None:
    route = RELAYS[path]
    script = Script(route.answer)
    async with serving(script) as url, gateway(scorer, upstream=Upstream(url)) as served:
        reply = await served.client.post(path, json=route.body)
        assert reply.status_code == 200, reply.text
        assert len(script.requests) == 1
        passed = set()
        for where, body in harmed(route.body):
            script.requests.clear()
            await served.client.post(path, json=body)
            if WORD in json.dumps([request["body"] for request in script.requests]):
                passed.add(where)
    assert passed == set(route.unjudged.split())


@pytest.mark.parametrize("path", [*RELAYS, COUNTS])
async def test_no_harm_of_a_model_reaches_a_caller(scorer: FakeScorer, path: str) -> None:
    counted = Relay(
        {key: MESSAGES[key] for key in ("model", "system", "messages", "tools")},
        {"input_tokens": 3, "note": "bread"},
    )
    route = RELAYS.get(path, counted)
    script = Script(route.answer)
    async with serving(script) as url, gateway(scorer, upstream=Upstream(url)) as served:
        assert (await served.client.post(path, json=route.body)).status_code == 200
        passed = set()
        for where, script.body in harmed(route.answer):
            if WORD in (await served.client.post(path, json=route.body)).text:
                passed.add(where)
        for where, script.body in events_harmed(route.stream or []):
            reply = await served.client.post(path, json={**route.body, "stream": True})
            assert reply.status_code == 200, reply.text
            if WORD in reply.text:
                passed.add(where)
    assert passed == set()


def events_harmed(stream: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Each text of each kind of event of a stream in turn with harm in its place."""
    seen = set()
    for place, piece in enumerate(stream):
        before, _, data = piece.partition(b"data: ")
        if data.startswith(b"{"):
            kind = json.loads(data).get("type")
            for where, event in harmed(json.loads(data)):
                if (kind, where) in seen:
                    continue
                seen.add((kind, where))
                written = before + b"data: " + json.dumps(event).encode() + b"\n\n"
                yield f"{place}: {where}", [*stream[:place], written, *stream[place + 1 :]]
