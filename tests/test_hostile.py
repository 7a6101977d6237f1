"""What is sent to hurt: every request gets a reply that is declared, and nothing of it goes on."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from fakes import FakeScorer
from fastapi import HTTPException
from front import Front, Open
from serving import Gateway, gateway, read_where
from starlette.types import Message, Receive, Scope, Send
from test_gateway_errors import check_envelope
from upstream import Script, serving, whole

from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.gateway import chat
from shieldgate.gateway.middleware.body_limit import BodyLimitMiddleware
from shieldgate.upstream import Upstream

ROUTES = {
    "/v1/moderations": "input",
    "/v1/screen": "prompt",
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
}
JSON = {"content-type": "application/json"}
TIMES = 10_000


@pytest.fixture
async def hosted(front: Open) -> AsyncIterator[Front]:
    async with front(receive_seconds=2) as opened:
        yield opened


@asynccontextmanager
async def connected(
    served: Gateway,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(served.url).port)
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize(("path", "field"), ROUTES.items())
@pytest.mark.parametrize("coding", ["gzip", "deflate, gzip", "br", "GZIP"])
async def test_a_compressed_body_is_refused_unread(
    hosted: Front, path: str, field: str, coding: str
) -> None:
    bomb = gzip.compress(json.dumps({field: "a" * 10_000_000}).encode())
    headers = {**JSON, "content-encoding": coding}
    reply = await hosted.gateway.client.post(path, content=bomb, headers=headers)
    assert reply.status_code == 415
    assert check_envelope(reply)["code"] == "body_encoded"
    assert reply.headers["accept-encoding"] == "identity"


async def test_a_body_that_says_it_is_not_compressed_is_read(hosted: Front) -> None:
    headers = {**JSON, "content-encoding": "identity"}
    body = b'{"input": "bread"}'
    reply = await hosted.gateway.client.post("/v1/moderations", content=body, headers=headers)
    assert reply.status_code == 200


@pytest.mark.parametrize("path", ROUTES)
async def test_ten_megabytes_are_a_413(hosted: Front, path: str) -> None:
    reply = await hosted.gateway.client.post(path, content=b" " * 10_000_000, headers=JSON)
    assert reply.status_code == 413
    assert check_envelope(reply)["code"] == "body_too_large"


def nested(levels: int) -> str:
    text = "bread"
    for _ in range(levels):
        text = json.dumps({"a": text})
    return text


DEEP = {
    "lists": b"[" * TIMES + b"]" * TIMES,
    "objects": b'{"a":' * TIMES + b"1" + b"}" * TIMES,
    "mixed": b'[{"a":' * TIMES + b"1" + b"}]" * TIMES,
    "open": b'[{"a":' * TIMES,
}


@pytest.mark.parametrize(("path", "field"), ROUTES.items())
@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
async def test_what_is_nested_ten_thousand_deep_is_a_400(
    hosted: Front, path: str, field: str, deep: bytes
) -> None:
    name = field.encode()
    for body in (deep, b'{"%s": %s}' % (name, deep), b'{"%s": "a", "x": %s}' % (name, deep)):
        reply = await hosted.gateway.client.post(path, content=body, headers=JSON)
        assert reply.status_code == 400, body[:40]
        check_envelope(reply)
    assert not hosted.script.requests


@pytest.mark.parametrize("words", [1, 10_000])
async def test_a_long_body_and_a_long_answer_are_read_where_others_need_not_wait(
    monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    """There are 120,000 documents in a megabyte, which take more than a second."""
    asked = read_where(monkeypatch, "plan", OpenAIChat)
    said = read_where(monkeypatch, "whole_and_parts", chat)
    text = "loaf " * words
    async with (
        serving(Script(whole(text))) as url,
        gateway(FakeScorer(), upstream=Upstream(url)) as served,
    ):
        body = {"messages": [{"role": "user", "content": text}]}
        reply = await served.client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200
    assert len(asked) == len(said) == 1
    assert all(name.startswith("read") == (words > 1) for name in (*asked, *said))


@pytest.mark.parametrize("fails", ["open", "closed"])
async def test_what_is_read_too_slowly_stops_nothing_that_fails_open(
    monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    plan, whole_and_parts = OpenAIChat.plan, chat.whole_and_parts

    def slowly(read: Callable[..., Any]) -> Callable[..., Any]:
        def late(*given: Any) -> Any:
            time.sleep(0.6)
            return read(*given)

        return late

    text = "loaf " * 10_000
    profile = {"on_failure": {"prompt": fails, "response": fails}}
    async with (
        serving(Script(whole(text))) as url,
        gateway(FakeScorer(), upstream=Upstream(url), profile=profile, guard_seconds=0.3) as served,
    ):

        async def status(text: str) -> int:
            body = {"messages": [{"role": "user", "content": text}]}
            return (await served.client.post("/v1/chat/completions", json=body)).status_code

        with monkeypatch.context() as patched:
            patched.setattr(OpenAIChat, "plan", slowly(plan))
            assert await status(text) == (200 if fails == "open" else 503)
        monkeypatch.setattr(chat, "whole_and_parts", slowly(whole_and_parts))
        assert await status("Why?") == 200


async def test_a_short_body_in_chunks_waits_for_no_long_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its head says no length."""
    asked = read_where(monkeypatch, "plan", OpenAIChat)

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"messages": [{"role": "user", '
        yield b'"content": "Why?"}]}'

    async with (
        serving(Script(whole("Because."))) as url,
        gateway(FakeScorer(), upstream=Upstream(url)) as served,
    ):
        reply = await served.client.post("/v1/chat/completions", content=chunks(), headers=JSON)
        assert reply.status_code == 200
    assert not asked[0].startswith("read")


async def test_more_messages_than_any_chat_has_are_a_400(hosted: Front) -> None:
    body = b'{"messages": [%s]}' % b",".join([b"{}"] * 10_001)
    reply = await hosted.gateway.client.post("/v1/chat/completions", content=body, headers=JSON)
    assert reply.status_code == 400
    assert check_envelope(reply)["param"] == "messages"


async def test_prompts_are_counted_before_they_are_read(hosted: Front) -> None:
    for prompt in (b'"a"', b'["a"]'):
        body = b'{"prompt": [%s]}' % b",".join([prompt] * 10_001)
        reply = await hosted.gateway.client.post("/v1/completions", content=body, headers=JSON)
        assert reply.status_code == 400
        assert "10000" in check_envelope(reply)["message"]


MANY = {
    "documents": (
        "/v1/chat/completions",
        b'{"messages": [], "documents": [%s]}'
        % b",".join(b'{"text": "t%d"}' % n for n in range(1025)),
        400,
    ),
    "tools": (
        "/v1/chat/completions",
        b'{"messages": [], "tools": [%s]}'
        % b",".join(b'{"function": {"name": "f%d"}}' % n for n in range(1025)),
        400,
    ),
    "unknown roles": (
        "/v1/chat/completions",
        b'{"messages": [%s]}' % b",".join(b'{"role": "r%d x"}' % n for n in range(1025)),
        400,
    ),
    "fields": (
        "/v1/chat/completions",
        b'{"messages": [], %s}' % b",".join(b'"k%d": 1' % n for n in range(60_000)),
        413,
    ),
    "fields of a message": (
        "/v1/chat/completions",
        b'{"messages": [{%s}]}' % b",".join(b'"k%d": 1' % n for n in range(60_000)),
        413,
    ),
    "parts": (
        "/v1/chat/completions",
        b'{"messages": [{"role": "user", "content": [%s]}]}' % b",".join([b'"a"'] * 150_000),
        413,
    ),
    "levels of JSON in a string": (
        "/v1/chat/completions",
        json.dumps({"messages": [{"role": "user", "content": nested(16)}]}).encode(),
        413,
    ),
}


@pytest.mark.parametrize(("path", "body", "status"), MANY.values(), ids=MANY)
async def test_more_than_can_be_judged_is_refused_soon(
    hosted: Front, path: str, body: bytes, status: int
) -> None:
    assert len(body) < 2**20
    started = time.process_time()
    reply = await hosted.gateway.client.post(path, content=body, headers=JSON)
    assert time.process_time() - started < 5
    assert reply.status_code == status, reply.text
    check_envelope(reply)
    assert not hosted.script.requests
    assert not hosted.gateway.scorer.calls


ODD = [r"a\u0000b", r"\u0000", r"\ud800", r"\udfff\ud800", r"\uffff", r"\u202e", "\\u001b[2J"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("odd", ODD)
async def test_odd_characters_are_judged_or_refused_wherever_they_stand(
    hosted: Front, path: str, odd: str
) -> None:
    field = ROUTES[path]
    given = f'"{field}": "{odd}"'
    if field == "messages":
        given = f'"messages": [{{"role": "{odd}", "content": "{odd}", "{odd}": "{odd}"}}]'
    for more in ("", f', "model": "{odd}"', f', "profile": "{odd}"', f', "{odd}": ["{odd}"]'):
        body = f"{{{given}{more}}}"
        reply = await hosted.gateway.client.post(path, content=body.encode(), headers=JSON)
        assert reply.status_code in (200, 400), reply.text
        if reply.status_code == 400:
            check_envelope(reply)


async def test_a_body_that_does_not_come_is_answered_and_left(scorer: FakeScorer) -> None:
    async with (
        gateway(scorer, receive_seconds=0.3) as served,
        connected(served) as (reader, writer),
    ):
        head = b"POST /v1/moderations HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: 1000\r\n\r\n{")
        reply = await reader.read()
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nconnection: close\r\n" in reply
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_slow"


async def test_a_body_that_drips_gains_no_time_by_it() -> None:
    async def drip() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass

    async def nothing(message: Message) -> None:
        raise AssertionError("nothing is sent")

    limited = BodyLimitMiddleware(reads_all, max_bytes=10**9, seconds=0.2)
    async with asyncio.timeout(20):
        with pytest.raises(HTTPException) as refused:
            await limited({"type": "http", "headers": []}, drip, nothing)
    assert refused.value.status_code == 408


async def test_judging_may_take_longer_than_a_body(scorer: FakeScorer) -> None:
    scorer.released.clear()
    async with gateway(scorer, receive_seconds=0.1) as served:
        asking = asyncio.create_task(served.client.post("/v1/screen", json={"prompt": "bread"}))
        await scorer.entered.wait()
        await asyncio.sleep(0.3)
        scorer.released.set()
        assert (await asking).status_code == 200


CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "bread"}]}'


def request(*headers: bytes, target: bytes = b"/v1/chat/completions", body: bytes = CHAT) -> bytes:
    head = [b"POST %s HTTP/1.1" % target, b"host: localhost", b"content-type: application/json"]
    length = [] if any(b"ransfer-" in h for h in headers) else [b"content-length: %d" % len(body)]
    return b"\r\n".join([*head, *length, b"connection: close", *headers, b"", body])


@pytest.mark.parametrize(
    "header",
    [
        b"authorization: Bearer a\rx-forged: 1",
        b"authorization: Bearer a\nx-forged: 1",
        b"authorization: Bearer a\r\n x-forged: 1",
        b"authorization: Bearer a\0b",
        b"traceparent: \x01\x7f\x1b",
        b"openai-project: \xe2\x80\xa8\xff\x85x-forged: 1",
        b"tracestate: " + b"a" * 60_000,
        b"x-forged: 1",
        b"cookie: x-forged=1",
        b"x-forwarded-host: elsewhere",
        b"connection: authorization, host",
        b"authorization: Bearer a\r\nauthorization: Bearer b",
        b"content-length: 5",
        b"transfer-encoding: chunked",
        b"transfer-encoding: chunked\r\ncontent-length: 5",
        b"transfer-encoding: xchunked",
    ],
)
async def test_no_header_of_a_caller_forges_one_of_ours(hosted: Front, header: bytes) -> None:
    async with connected(hosted.gateway) as (reader, writer):
        writer.write(request(header))
        status = int((await reader.read()).split()[1])
    assert status in (200, 400, 408), header
    for sent in hosted.script.requests:
        assert sent["path"] == "/v1/chat/completions"
        assert sent["body"] == json.loads(CHAT)
        assert sent["headers"].keys() <= {
            *("host", "accept", "accept-encoding", "connection", "user-agent"),
            *("content-type", "content-length"),
            *("authorization", "openai-project", "traceparent", "tracestate"),
        }
        assert sent["headers"]["host"].startswith("127.0.0.1:")


async def test_no_request_makes_the_gateway_call_another_address(scorer: FakeScorer) -> None:
    script, trap = Script(whole("a kind answer")), Script({})
    async with (
        serving(trap) as elsewhere,
        serving(script) as url,
        gateway(scorer, upstream=Upstream(url), profile={"unscreenable": "pass"}) as served,
    ):
        image = {"type": "image_url", "image_url": {"url": f"{elsewhere}/a.png"}}
        chat = {
            "model": elsewhere,
            "base_url": elsewhere,
            "messages": [{"role": "user", "content": [{"type": "text", "text": elsewhere}, image]}],
            "documents": [{"url": elsewhere}],
            "metadata": {"webhook_url": elsewhere},
            "web_search_options": {"url": elsewhere},
            "moderation": {"model": elsewhere},
        }
        headers = {"host": urlsplit(elsewhere).netloc, "x-upstream": elsewhere}
        reply = await served.client.post(
            "/v1/chat/completions", json=chat, headers=headers, params={"upstream": elsewhere}
        )
        assert reply.status_code == 200
        for target in (elsewhere, f"{elsewhere}/chat/completions", "/v1/chat/completions/../x"):
            async with connected(served) as (reader, writer):
                writer.write(request(target=target.encode()))
                assert int((await reader.read()).split()[1]) in (200, 400, 404)
        await served.client.get("/v1/models", headers=headers)

        script.status, script.headers = 307, {"location": f"{elsewhere}/chat/completions"}
        reply = await served.client.post("/v1/chat/completions", json=chat)
        assert (reply.status_code, check_envelope(reply)["code"]) == (502, "upstream_invalid")
    assert {r["path"] for r in script.requests} <= {"/v1/chat/completions", "/v1/models"}
    assert not trap.requests


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_that_upstream_compressed_is_never_unpacked(
    front: Open, status: int, stream: bool
) -> None:
    bomb = [gzip.compress(b'{"choices": [' + b" " * 100_000_000)]
    async with front(bomb) as opened:
        opened.script.headers = {"content-encoding": "gzip"}
        opened.script.status = status
        reply = await opened.ask(stream=stream)
    assert reply.status_code == (502 if status == 200 else 429)
    assert check_envelope(reply)["type"] == "upstream_error"
