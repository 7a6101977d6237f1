"""An API that the gateway has never heard of is one file (`parley.py`) and one line, below."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fakes import FakeScorer
from parley import Parley
from serving import Gateway, gateway, running
from starlette.types import Receive, Scope, Send
from test_keys import entry, written
from upstream import Script, serving, streamed, text_of, whole
from upstream import data_of as openai_events

from shieldgate.dialects import DIALECTS
from shieldgate.errors import ConfigurationError, Overloaded, ScorerUnavailable
from shieldgate.gateway.middleware.drain import Drain, DrainMiddleware
from shieldgate.gateway.state import RequestState, state_of
from shieldgate.policy import Policy, Streaming
from shieldgate.sse import Decoder, json_event
from shieldgate.types import Exchange, Score
from shieldgate.upstream import Upstream

ALL = (*DIALECTS, Parley())

ROUTE = "/v1/parley"
REFUSAL = "I can't help with that."
CLOSELY = {"streaming": Streaming(first=1, growth=1.0, most=1)}
SECRET = "sg-canary-parley"


@asynccontextmanager
async def parley(
    scorer: FakeScorer,
    body: Any,
    *,
    key: str | None = None,
    silence: float = 300,
    status: int = 200,
    **how: Any,
) -> AsyncIterator[tuple[Gateway, Script]]:
    """A gateway that speaks Parley before a model that does; `key` is the operator's."""
    script = Script(body, status=status)
    async with (
        serving(script) as url,
        gateway(
            scorer,
            upstream=Upstream(url, key=key, silence_seconds=silence),
            dialects=ALL,
            **how,
        ) as served,
    ):
        yield served, script


async def ask(served: Gateway, words: str = "bread", **more: Any) -> httpx.Response:
    return await served.client.post(ROUTE, json={"words": words, **more})


def lines(*texts: str) -> list[bytes]:
    """What the model streams: numbered from where it likes, with the whole text at the end."""
    events = [json_event({"line": text}, "line") for text in texts]
    repeated = json_event({"whole": "".join(texts)}, "whole")
    return [*events, repeated, json_event({}, "farewell"), json_event({"line": "late"}, "line")]


def events_of(raw: bytes) -> list[tuple[str, Any]]:
    """Read a stream; its events are numbered from one on, without a gap."""
    numbers = [int(n) for n in re.findall(rb"^id: (\d+)$", raw, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert b"[DONE]" not in raw
    return [(e.name, orjson.loads(e.data)) for e in Decoder(10**6).feed(raw)]


def said(events: Sequence[tuple[str, Any]]) -> str:
    return "".join(data["line"] for name, data in events if name == "line")


# Good answers


async def test_a_good_answer_passes_as_it_came(scorer: FakeScorer) -> None:
    reply = {"lines": ["a kind", "answer"], "mood": "fine"}
    async with parley(scorer, reply) as (served, script):
        answer = await ask(served)
        assert (answer.status_code, answer.json()) == (200, reply)
        assert answer.headers["x-upstream-request-id"] == "up-1"
        [request] = script.requests
    assert (request["path"], request["body"]) == (ROUTE, {"words": "bread", "live": False})
    assert [e for e, _ in scorer.calls] == [
        Exchange("bread"),
        Exchange("bread", "a kind\nanswer"),
    ]


async def test_a_good_stream_has_its_own_names_numbers_and_end(scorer: FakeScorer) -> None:
    async with parley(scorer, lines("a kind ", "answer"), profile=CLOSELY) as (served, _):
        answer = await ask(served, live=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events_of(answer.content) == [
        ("line", {"line": "a kind "}),
        ("line", {"line": "answer"}),
        ("whole", {"whole": "a kind answer"}),
        ("farewell", {}),
    ]


@pytest.mark.parametrize("key", [None, "operators"])
async def test_a_dialects_own_headers_go_upstream(scorer: FakeScorer, key: str | None) -> None:
    async with parley(scorer, {"lines": ["kind"]}, key=key) as (served, script):
        own = {"x-parley-key": "callers", "x-parley-version": "2", "authorization": "Bearer b"}
        await served.client.post(ROUTE, json={"words": "bread"}, headers=own)
        sent = script.requests[0]["headers"]
    assert sent["x-parley-key"] == (key or "callers")
    assert sent["x-parley-version"] == "2"
    assert "authorization" not in sent


# Blocks


async def test_a_blocked_prompt_is_an_error_in_its_words(scorer: FakeScorer) -> None:
    async with parley(scorer, {"lines": ["kind"]}) as (served, script):
        for live in (False, True):
            answer = await ask(served, "so crude", live=live)
            assert answer.status_code == 400
            assert answer.json() == {
                "oops": {"why": "blocked", "what": "No parley."},
                "violated": ["test/threat"],
            }
        assert script.requests == []


async def test_a_blocked_prompt_may_be_a_refusal_in_its_words(scorer: FakeScorer) -> None:
    refuses = {"on_block": "refusal"}
    async with parley(scorer, {"lines": ["kind"]}, profile=refuses) as (served, script):
        answer = await ask(served, "so crude")
        refusal = {"lines": [], "declined": REFUSAL, "violated": ["test/threat"]}
        assert (answer.status_code, answer.json()) == (200, refusal)
        answer = await ask(served, "so crude", live=True)
        assert events_of(answer.content) == [
            ("declined", {"whole": "", "declined": REFUSAL}),
            ("farewell", {"violated": ["test/threat"]}),
        ]
        assert script.requests == []


async def test_a_blocked_answer_is_declined_in_its_words(scorer: FakeScorer) -> None:
    async with parley(scorer, {"lines": ["it is", "crude"]}) as (served, _):
        answer = await ask(served)
    refusal = {"lines": [], "declined": REFUSAL, "violated": ["test/threat"]}
    assert (answer.status_code, answer.json()) == (200, refusal)


TEXT = "all is well, then it gets crude, and goes on"


@pytest.mark.parametrize("piece", [1, 2, 3, 7, len(TEXT)])
async def test_no_byte_of_a_blocked_span_leaves_though_it_is_repeated(
    scorer: FakeScorer, piece: int
) -> None:
    texts = [TEXT[start : start + piece] for start in range(0, len(TEXT), piece)]
    async with parley(scorer, lines(*texts), profile=CLOSELY) as (served, _):
        answer = await ask(served, live=True)
    *before, declined, farewell = events_of(answer.content)
    assert TEXT[: TEXT.index("crude") + len("crud")].startswith(said(before))
    assert {name for name, _ in before} <= {"line"}
    assert declined == ("declined", {"whole": said(before), "declined": REFUSAL})
    assert farewell == ("farewell", {"violated": ["test/threat"]})
    assert b"crude" not in answer.content
    assert b"goes on" not in answer.content


@pytest.mark.parametrize(
    "event",
    [("note", {"note": "something crude"}), ("whole", {"whole": "a crude answer"})],
)
async def test_an_event_of_an_unknown_kind_is_judged_and_one_that_repeats_something_else(
    scorer: FakeScorer, event: tuple[str, dict[str, str]]
) -> None:
    name, data = event
    events = [*lines("kind, ")[:1], json_event(data, name), json_event({}, "farewell")]
    async with parley(scorer, events, profile=CLOSELY) as (served, _):
        answer = await ask(served, live=True)
    assert b"crude" not in answer.content
    assert events_of(answer.content)[-2][0] == "declined"


async def test_an_event_that_the_dialect_trips_over_ends_the_stream_in_its_words(
    scorer: FakeScorer,
) -> None:
    events = [*lines("kind, ")[:1], json_event({"odd": 1}, "line")]
    async with parley(scorer, events, profile=CLOSELY) as (served, _):
        answer = await ask(served, live=True)
    if answer.status_code == 200:
        assert events_of(answer.content)[-1][1]["oops"]["why"] == "upstream_invalid"
    else:
        assert (answer.status_code, answer.json()["oops"]["why"]) == (502, "upstream_invalid")


async def test_a_refusal_of_upstream_that_cannot_be_judged_is_told_without_its_words() -> None:
    class NoRoom(FakeScorer):
        async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
            if exchange.response is not None:
                raise ConfigurationError("The guideline leaves no room.")
            return await super().score(exchange, policies)

    async with parley(NoRoom(), {}) as (served, script):
        script.body, script.status = {"error": {"message": "slow down, you", "code": "slow"}}, 429
        answer = await ask(served)
    assert answer.status_code == 429
    assert "slow down" not in answer.text


async def test_a_dialect_has_a_plain_path() -> None:
    class Pattern(Parley):
        route = "/deployments/{name}/parley"

    with pytest.raises(ValueError, match="plain path"):
        async with gateway(FakeScorer(), dialects=[Pattern()]):
            pass


async def test_a_block_leaves_the_model(scorer: FakeScorer) -> None:
    never = asyncio.Event()
    async with parley(scorer, [lines("so crude")[0], never], profile=CLOSELY) as (served, script):
        answer = await ask(served, live=True)
        await asyncio.wait_for(script.left.wait(), 5)
    assert [name for name, _ in events_of(answer.content)] == ["declined", "farewell"]


# Failures


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("failure", [ScorerUnavailable("The scorer failed."), Overloaded(2)])
async def test_a_guard_that_failed_is_an_error_in_its_words(
    scorer: FakeScorer, live: bool, failure: Exception
) -> None:
    scorer.failure = failure
    async with parley(scorer, lines("kind") if live else {"lines": ["kind"]}) as (served, _):
        answer = await ask(served, live=live)
        assert answer.status_code == 503
        assert answer.json()["oops"] == {"why": "moderation_unavailable", "what": str(failure)}
        assert int(answer.headers["retry-after"]) > 0


class FailsOnMore(FakeScorer):
    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        if exchange.response and "more" in exchange.response:
            raise ScorerUnavailable("The scorer failed.")
        return await super().score(exchange, policies)


async def reading(served: Gateway, seen: asyncio.Event) -> bytes:
    """Ask for a stream and read it to the end; `seen` is set when something came."""
    raw = b""
    body = {"words": "bread", "live": True}
    async with served.client.stream("POST", ROUTE, json=body) as reply:
        assert reply.status_code == 200
        async for part in reply.aiter_bytes():
            raw += part
            seen.set()
    return raw


async def test_a_guard_that_fails_in_mid_stream_declines_the_rest() -> None:
    seen = asyncio.Event()
    first, more, *rest = lines("kind, ", "more")
    async with parley(FailsOnMore(), [first, seen, more, *rest], profile=CLOSELY) as (served, _):
        raw = await reading(served, seen)
    assert [name for name, _ in events_of(raw)] == ["line", "declined", "farewell"]
    assert b"more" not in raw


@pytest.mark.parametrize("live", [False, True])
async def test_an_upstream_that_failed_is_an_error_in_its_words(
    scorer: FakeScorer, live: bool
) -> None:
    said = {"error": {"message": "no room", "code": "full"}}
    async with parley(scorer, said, status=507) as (served, script):
        answer = await ask(served, live=live)
        assert answer.status_code == 507
        assert answer.json() == {"oops": {"why": "full", "what": "no room"}}
        script.body, script.status = {"lines": None}, 200
        answer = await ask(served, live=live)
        assert answer.status_code == 502
        assert answer.json()["oops"]["why"] == "upstream_invalid"


@pytest.mark.parametrize(
    ("death", "why"),
    [
        (RuntimeError("dies"), "upstream_cut_off"),
        (json_event({"message": "no room", "code": "full"}, "error"), "full"),
    ],
)
async def test_an_upstream_that_fails_in_mid_stream_is_an_event_of_its_own(
    scorer: FakeScorer, death: Any, why: str
) -> None:
    seen = asyncio.Event()
    first, *_ = lines("kind, ")
    async with parley(scorer, [first, seen, death], profile=CLOSELY) as (served, _):
        raw = await reading(served, seen)
    (line, _), (name, data) = events_of(raw)
    assert (line, name, data["oops"]["why"]) == ("line", "oops", why)


async def test_what_a_stopping_server_cuts_off_ends_in_its_words(scorer: FakeScorer) -> None:
    drain, seen, never = Drain(), asyncio.Event(), asyncio.Event()
    first, *_ = lines("kind, ")
    async with parley(scorer, [first, never], profile=CLOSELY, drain=drain) as (served, script):
        stream = asyncio.create_task(reading(served, seen))
        await asyncio.wait_for(seen.wait(), 5)
        script.asked.clear()
        script.waits = never
        answer = asyncio.create_task(ask(served))
        await asyncio.wait_for(script.asked.wait(), 5)
        drain.begin(0)
        (line, _), (name, data) = events_of(await stream)
        assert (line, name, data["oops"]["why"]) == ("line", "oops", "server_stopping")
        reply = await answer
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json()["oops"]["why"] == "server_stopping"


# Keys, and what is malformed


@asynccontextmanager
async def guarded(scorer: FakeScorer, folder: Path) -> AsyncIterator[Gateway]:
    keys = written(folder, entry("web", SECRET))
    async with parley(scorer, {"lines": ["kind"]}, keys=keys) as (served, _):
        yield served


async def test_a_key_is_shown_in_its_own_header(scorer: FakeScorer, tmp_path: Path) -> None:
    async with guarded(scorer, tmp_path) as served:
        for headers in ({}, {"authorization": f"Bearer {SECRET}"}, {"x-parley-key": "sg-other"}):
            reply = await served.client.post(ROUTE, json={"words": "bread"}, headers=headers)
            assert reply.status_code == 401
            assert reply.json()["oops"]["why"] == "invalid_api_key"
            assert "www-authenticate" not in reply.headers
            if "x-parley-key" not in headers:
                assert "`x-parley-key: sg-...`" in reply.json()["oops"]["what"]
        own = {"x-parley-key": SECRET}
        reply = await served.client.post(ROUTE, json={"words": "bread"}, headers=own)
        assert reply.status_code == 200
        # It is a key for this API only; the other routes ask for theirs.
        assert (await served.client.get("/v1/models", headers=own)).status_code == 401


async def test_a_malformed_request_is_an_error_in_its_words(scorer: FakeScorer) -> None:
    async with parley(scorer, {}) as (served, _):
        reply = await ask(served, words=5)
        assert reply.status_code == 400
        assert reply.json()["oops"]["what"] == "words must be a string."
        assert (await served.client.get(ROUTE)).json()["oops"]["why"] == "method_not_allowed"
        long = await served.client.post(ROUTE, content=b" " * 10_000_000)
        assert long.json()["oops"]["why"] == "body_too_large"


async def test_a_defect_of_ours_is_an_error_in_its_words(scorer: FakeScorer) -> None:
    scorer.failure = RuntimeError("a defect")
    async with parley(scorer, {}) as (served, _):
        reply = await ask(served)
    assert (reply.status_code, reply.json()["oops"]["why"]) == (500, "internal_error")


async def test_it_is_declared_with_its_own_errors_and_key(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    async with guarded(scorer, tmp_path) as served:
        declared = (await served.client.get("/openapi.json")).json()
    operation = declared["paths"][ROUTE]["post"]
    assert operation["security"] == [{"x-parley-key": []}]
    assert declared["paths"]["/v1/models"]["get"]["security"] == [
        {name: []} for name in ("key", "x-api-key", "api-key")
    ]
    schemes = declared["components"]["securitySchemes"]
    assert schemes == {
        "key": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
        "x-parley-key": {"type": "apiKey", "in": "header", "name": "x-parley-key"},
    }
    for status in ("401", "408", "500", "503"):
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Oops"}


async def test_the_other_dialects_speak_as_before(scorer: FakeScorer) -> None:
    async with parley(scorer, whole("kind")) as (served, script):
        body = {"model": "m", "messages": [{"role": "user", "content": "bread"}]}
        path = "/v1/chat/completions"
        assert (await served.client.post(path, json=body)).json() == script.body
        script.body = streamed("kind")
        events = openai_events((await served.client.post(path, json=body | {"stream": True})).text)
        assert (text_of(events), events[-1]) == ("kind", "[DONE]")
        wrong = await served.client.post(path, json={})
        assert wrong.json()["error"]["type"] == "invalid_request_error"
        assert (await served.client.get("/nowhere")).json()["error"]["code"] == "unknown_url"


async def test_a_stream_that_has_said_its_end_is_not_cut_off() -> None:
    """Although the server's time is up before its connection is closed."""
    drain = Drain()

    async def ends(scope: Scope, receive: Receive, send: Send) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        state_of(scope).complete = True
        await send({"type": "http.response.body", "body": b"the end", "more_body": True})
        drain.begin(0)
        await asyncio.Event().wait()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            RequestState(Parley()).attach(scope)
            await DrainMiddleware(ends, drain)(scope, receive, send)

    raw = b""
    async with running(app) as url, httpx.AsyncClient() as client:
        with suppress(httpx.RemoteProtocolError):
            async with client.stream("GET", url) as reply:
                async for part in reply.aiter_bytes():
                    raw += part
    assert raw == b"the end"
