"""What other gateways ask of a guard, and what each of them reads as a block, table by table."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeScorer
from serving import Gateway, gateway
from structlog.testing import capture_logs
from test_keys import entry, written

from shieldgate.errors import Overloaded, ScorerUnavailable
from shieldgate.policy import Streaming
from shieldgate.types import Exchange

LITELLM = "/beta/litellm_basic_guardrail_api"
CONTENTS, CHAT = "/api/v1/text/contents", "/api/v1/text/chat"
GENERATION, CONTEXT = "/api/v1/text/generation", "/api/v1/text/context/doc"
AZURE = "/contentsafety/text:analyze?api-version=2024-09-01"
PORTKEY = "/v1/guards/portkey"
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


async def ask(served: Gateway, path: str, body: Any, **headers: str) -> Any:
    reply = await served.client.post(path, json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.json()


def hook(event: str, request: Any, response: Any = None, kind: str = "chatComplete") -> Any:
    told = {"json": response, "text": "", "statusCode": 200} if response else {"json": None}
    return {
        "eventType": f"{event}RequestHook",
        "requestType": kind,
        "request": {"json": request, "text": "the last message", "isStreamingRequest": False},
        "response": told,
        "provider": "openai",
        "metadata": {},
    }


def asked(*messages: Any, **more: Any) -> dict[str, Any]:
    """What LiteLLM sends of a chat."""
    texts = [m["content"] for m in messages if isinstance(m["content"], str)]
    return {
        "input_type": "request",
        "litellm_call_id": "call-1",
        "litellm_trace_id": "trace-1",
        "texts": texts,
        "structured_messages": list(messages),
        "request_data": {"user_api_key_hash": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05"},
        "request_headers": {"authorization": "[present]"},
        "litellm_version": "1.110.2",
        "model": "m",
        "images": None,
        "tools": None,
        "tool_calls": None,
        "additional_provider_specific_params": {},
        **more,
    }


def answered(*texts: str, **more: Any) -> dict[str, Any]:
    """What LiteLLM sends of a reply, which has no messages."""
    return {
        **asked(),
        "input_type": "response",
        "texts": list(texts),
        "structured_messages": None,
        **more,
    }


def action(body: Any) -> Any:
    return body["action"]


def kinds(body: Any) -> list[str]:
    return [d["detection_type"] for d in (body[0] if body and type(body[0]) is list else body)]


def rejects(body: Any) -> bool:
    """As agentgateway reads it, whose types are tried in order: anything else is a pass."""
    found = body["action"]
    return type(found.get("body")) is str and type(found.get("status_code")) is int


WORDED: dict[str, tuple[str, Any, Any]] = {
    # Of a text that stands for WORDS: where it is sent, as what, and what tells a block.
    "litellm": (LITELLM, asked(user("WORDS")), lambda b: b["action"] == "BLOCKED"),
    "litellm texts": (
        LITELLM,
        {"input_type": "request", "texts": ["WORDS"]},
        lambda b: b["action"] == "BLOCKED",
    ),
    "litellm text beside messages": (
        LITELLM,
        {**asked(user("bread")), "texts": ["WORDS"]},
        lambda b: b["action"] == "BLOCKED",
    ),
    "litellm tool": (
        LITELLM,
        asked(user("bread"), tools=[{"type": "function", "function": {"description": "WORDS"}}]),
        lambda b: b["action"] == "BLOCKED",
    ),
    "litellm call of a tool": (
        LITELLM,
        {
            "input_type": "request",
            "texts": [],
            "tool_calls": [{"function": {"name": "f", "arguments": '{"q": "WORDS"}'}}],
        },
        lambda b: b["action"] == "BLOCKED",
    ),
    "litellm reply": (LITELLM, answered("bread", "WORDS"), lambda b: b["action"] == "BLOCKED"),
    "litellm reply that calls a tool": (
        LITELLM,
        answered(tool_calls=[{"function": {"name": "f", "arguments": '{"q": "WORDS"}'}}]),
        lambda b: b["action"] == "BLOCKED",
    ),
    "contents": (CONTENTS, {"contents": ["WORDS"]}, lambda b: kinds(b) == ["test/threat"]),
    "chat": (CHAT, {"messages": [user("WORDS")]}, lambda b: kinds(b) == ["test/threat"]),
    "chat, an answer": (
        CHAT,
        {"messages": [user("bread"), assistant("WORDS")]},
        lambda b: kinds(b) == ["test/threat"],
    ),
    "generation": (
        GENERATION,
        {"prompt": "bread", "generated_text": "WORDS"},
        lambda b: kinds(b) == ["test/threat"],
    ),
    "context": (
        CONTEXT,
        {"content": "bread", "context_type": "docs", "context": ["kind", "WORDS"]},
        lambda b: kinds(b) == ["test/threat"],
    ),
    "classify": (
        "/classify",
        {"model": "m", "input": "WORDS"},
        lambda b: b["data"][0]["label"] == "test/threat",
    ),
    "classify messages": (
        "/classify",
        {"messages": [user("WORDS")]},
        lambda b: b["data"][0]["label"] == "test/threat",
    ),
    "guard chat": (
        "/v1/guards/chat/completions",
        {"model": "m", "messages": [user("bread"), assistant("WORDS")]},
        lambda b: b["choices"][0]["message"]["content"] == "unsafe\ntest/threat",
    ),
    "azure": (
        AZURE,
        {"text": "WORDS"},
        lambda b: max(c["severity"] for c in b["categoriesAnalysis"]) >= 2,
    ),
    "azure, another category": (
        AZURE,
        {"text": "WORDS", "categories": ["Sexual"]},
        lambda b: max(c["severity"] for c in b["categoriesAnalysis"]) >= 2,
    ),
    "portkey": (
        PORTKEY,
        hook("before", {"messages": [user("WORDS")], "model": "m"}),
        lambda b: b["verdict"] is False,
    ),
    "portkey completion": (
        PORTKEY,
        hook("before", {"prompt": "WORDS"}, kind="complete"),
        lambda b: b["verdict"] is False,
    ),
    "portkey messages": (
        PORTKEY,
        hook("before", {"messages": [user("WORDS")]}, kind="messages"),
        lambda b: b["verdict"] is False,
    ),
    "portkey embeddings": (
        PORTKEY,
        hook("before", {"input": ["bread", "WORDS"]}, kind="embed"),
        lambda b: b["verdict"] is False,
    ),
    "portkey reply": (
        PORTKEY,
        hook(
            "after", {"messages": [user("bread")]}, {"choices": [{"message": assistant("WORDS")}]}
        ),
        lambda b: b["verdict"] is False,
    ),
    "portkey reply of messages": (
        PORTKEY,
        hook(
            "after",
            {"messages": [user("bread")]},
            {"content": [{"type": "text", "text": "WORDS"}]},
            kind="messages",
        ),
        lambda b: b["verdict"] is False,
    ),
    "portkey reply in another form": (
        PORTKEY,
        hook("after", {"messages": [user("bread")]}, {"output": ["WORDS"]}),
        lambda b: b["verdict"] is False,
    ),
    "agentgateway": ("/request", {"body": {"messages": [user("WORDS")]}}, rejects),
    "agentgateway reply": (
        "/response",
        {"body": {"choices": [{"message": assistant("bread")}, {"message": assistant("WORDS")}]}},
        rejects,
    ),
}


def saying(body: Any, words: str) -> Any:
    return json.loads(json.dumps(body).replace("WORDS", words))


@pytest.mark.parametrize("surface", WORDED)
async def test_a_block_is_one_where_its_gateway_looks(served: Gateway, surface: str) -> None:
    path, body, blocks = WORDED[surface]
    assert not blocks(await ask(served, path, saying(body, "kind")))
    assert blocks(await ask(served, path, saying(body, "so crude")))


@pytest.mark.parametrize("surface", WORDED)
async def test_monitoring_stops_nothing(scorer: FakeScorer, surface: str) -> None:
    path, body, blocks = WORDED[surface]
    async with gateway(scorer, profile={"mode": "monitor"}) as served:
        assert not blocks(await ask(served, path, saying(body, "so crude")))


# Where a reply can't say that nothing was judged, or its gateway passes what has no verdict.
_NEVER_OPEN = ("contents", "chat", "generation", "context", "classify", "azure", "guard")


@pytest.mark.parametrize("failure", [ScorerUnavailable("It failed."), Overloaded(2)])
@pytest.mark.parametrize("surface", WORDED)
async def test_a_failing_guard_is_unreachable(
    served: Gateway, scorer: FakeScorer, surface: str, failure: Exception
) -> None:
    path, body, blocks = WORDED[surface]
    scorer.failure = failure
    reply = await served.client.post(path, json=saying(body, "kind"))
    if path == PORTKEY:
        assert reply.status_code == 200
        assert blocks(reply.json())
        assert reply.json()["data"]["error"]
    else:
        assert reply.status_code == 503
        assert reply.headers["retry-after"]


@pytest.mark.parametrize("surface", WORDED)
async def test_a_failing_guard_opens_where_the_profile_and_the_reply_can(
    scorer: FakeScorer, surface: str
) -> None:
    path, body, blocks = WORDED[surface]
    scorer.failure = ScorerUnavailable("It failed.")
    opens = {"on_failure": {"prompt": "open", "response": "open"}}
    async with gateway(scorer, profile=opens) as served:
        reply = await served.client.post(path, json=saying(body, "so crude"))
    if surface.split(" ", maxsplit=1)[0].strip(",") in _NEVER_OPEN:
        assert reply.status_code == 503
    else:
        assert reply.status_code == 200
        assert not blocks(reply.json())


@pytest.mark.parametrize("surface", WORDED)
async def test_what_is_too_long_is_stopped_and_no_error(scorer: FakeScorer, surface: str) -> None:
    """An error would pass where a gateway passes what it has no verdict on."""
    path, body, blocks = WORDED[surface]
    async with gateway(scorer, max_text_chars=40) as served:
        found = await ask(served, path, saying(body, "kind " * 20))
        assert blocks(found) or "unscreenable" in json.dumps(found)
        assert not scorer.calls


IMAGES: dict[str, tuple[str, Any]] = {
    "litellm": (LITELLM, asked(user([{"type": "text", "text": "kind"}, IMAGE]))),
    "litellm images": (LITELLM, asked(user("kind"), images=["https://example.com/a.png"])),
    "litellm reply": (LITELLM, answered("kind", images=["https://example.com/a.png"])),
    "chat": (CHAT, {"messages": [user([IMAGE])]}),
    "context": (CONTEXT, {"content": "kind", "context_type": "url", "context": ["http://a"]}),
    "classify": ("/classify", {"messages": [user([IMAGE])]}),
    "portkey": (PORTKEY, hook("before", {"messages": [user([IMAGE])]})),
    "agentgateway": ("/request", {"body": {"messages": [user([IMAGE])]}}),
}


@pytest.mark.parametrize("surface", IMAGES)
async def test_what_is_no_text_is_refused_or_passed_by_the_profile(
    scorer: FakeScorer, surface: str
) -> None:
    path, body = IMAGES[surface]
    async with gateway(scorer) as served:
        assert "can't be screened" in json.dumps(refused := await ask(served, path, body)) or (
            refused["data"][0]["label"] == "unscreenable"
        )
    async with gateway(scorer, profile={"unscreenable": "pass"}) as served:
        reply = await served.client.post(path, json=body)
        assert "can't be screened" not in reply.text
        assert "unscreenable" not in reply.text
        assert reply.headers["x-shieldgate-unscreened"] == "1"


async def test_litellm_reads_why(served: Gateway) -> None:
    found = await ask(served, LITELLM, asked(user("so crude")))
    assert found == {
        "action": "BLOCKED",
        "blocked_reason": "The prompt was blocked. It violates: test/threat.",
    }


async def test_a_reply_is_judged_with_the_prompt_of_its_call(
    served: Gateway, scorer: FakeScorer
) -> None:
    await ask(served, LITELLM, asked(user("how are you?")))
    found = await ask(served, LITELLM, answered("kind"))
    assert found == {"action": "NONE", "judged_with_prompt": True}
    assert scorer.calls[-1][0] == Exchange("how are you?", "kind")


async def test_a_reply_finds_its_prompt_by_the_trace_else_is_judged_alone(
    served: Gateway, scorer: FakeScorer
) -> None:
    await ask(served, LITELLM, asked(user("how are you?")))
    await ask(served, LITELLM, answered("kind", litellm_call_id="call-2"))
    assert scorer.calls[-1][0] == Exchange("how are you?", "kind")
    with capture_logs() as lines:
        other = answered("kind", litellm_call_id="call-2", litellm_trace_id=None)
        found = await ask(served, LITELLM, other)
    assert found["judged_with_prompt"] is False
    assert scorer.calls[-1][0] == Exchange("", "kind")
    assert any("without its prompt" in line["event"] for line in lines)


async def test_a_growing_reply_is_told_to_the_scorer_as_one(
    served: Gateway, scorer: FakeScorer
) -> None:
    """The first time nobody knows that it grows; from then on its beginning is kept."""
    await ask(served, LITELLM, asked(user("how are you?")))
    for text in ("I am", "I am quite", "I am quite well"):
        await ask(served, LITELLM, answered(text))
    assert [e.growing for e, _ in scorer.calls[-3:]] == [False, True, True]
    await ask(served, LITELLM, asked(user("and now?")))
    assert not (await ask(served, LITELLM, answered("Well."))).get("stream_holdback_chars")
    judged = [e.prompt for e, _ in scorer.calls[-2:]]
    assert judged == ["how are you?", "and now?"]  # whoever reuses an id is judged with both


async def test_a_profile_that_judges_in_full_holds_all_back(scorer: FakeScorer) -> None:
    async with gateway(scorer, profile={"streaming": Streaming(mode="full")}) as served:
        found = await ask(served, LITELLM, answered("abc", "defgh"))
    assert found["stream_holdback_chars"] == [3, 5]


async def test_what_a_caller_names_only_adds(served: Gateway) -> None:
    """LiteLLM's callers can set these; where there are no keys the profile is the default one."""
    for params in ({"profile": "monitor"}, {"policies": ["test/spam"]}, {"profile": "strict"}):
        body = asked(user("so crude"), additional_provider_specific_params={**params, "other": 1})
        assert (await ask(served, LITELLM, body))["action"] == "BLOCKED"
        body = asked(user("buy"), additional_provider_specific_params=params)
        adds = params != {"profile": "monitor"}
        assert (await ask(served, LITELLM, body))["action"] == ("BLOCKED" if adds else "NONE")


async def test_calls_of_one_key_are_not_those_of_another(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    keys = written(tmp_path, entry("one", "sg-one"), entry("two", "sg-two"))
    async with gateway(scorer, keys=keys) as served:
        await ask(served, LITELLM, asked(user("how are you?")), **{"x-api-key": "sg-one"})
        other = await ask(served, LITELLM, answered("kind"), **{"x-api-key": "sg-two"})
        own = await ask(served, LITELLM, answered("kind"), **{"x-api-key": "sg-one"})
    assert (other["judged_with_prompt"], own["judged_with_prompt"]) == (False, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/guards/chat/completions", {"messages": [user("hi")], "stream": "yes"}),
        (AZURE, {"text": "hi", "haltOnBlocklistHit": 1}),
        ("/v1/screen", {"prompt": "hi", "explain": "no"}),
    ],
)
async def test_what_is_declared_true_or_false_is_nothing_else(
    served: Gateway, path: str, body: Any
) -> None:
    assert (await served.client.post(path, json=body)).status_code == 400
