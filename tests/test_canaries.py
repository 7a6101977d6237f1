"""Nothing that users write is left behind anywhere, whatever they send and whatever fails."""

import asyncio
import io
import itertools
import json
import urllib.parse
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from canaries import canary, leaks
from fakes import FakeScorer
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from redis_server import RedisServer, redis_server
from serving import Gateway, gateway
from typer.testing import CliRunner
from upstream import DONE, Script, delta, serving, whole

from shieldgate.cli import app
from shieldgate.policy import Policy, Streaming
from shieldgate.redis.audit_stream import RedisAuditStream
from shieldgate.redis.client import RedisClient
from shieldgate.redis.score_cache import RedisScoreCache
from shieldgate.scoring import Batched, Cached, Prepared, Resilient
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.telemetry import Telemetry, configure_logging
from shieldgate.telemetry.otel import OpenTelemetry
from shieldgate.types import Exchange, Score
from shieldgate.upstream import Upstream

pytestmark = pytest.mark.usefixtures("restored_logging")

TEXT = canary()
ENCODED: dict[str, Callable[[str], str | bytes]] = {
    "as it is": str,
    "in lower case": str.lower,
    "in JSON": json.dumps,
    "in JSON within JSON": lambda text: json.dumps(json.dumps(text)),
    "in a URL": urllib.parse.quote,
    "in a form": urllib.parse.quote_plus,
    "as bytes are shown": lambda text: repr(text.encode()),
    "in hex": lambda text: text.encode().hex(),
    "in UTF-16": lambda text: text.encode("utf-16"),
    "in Base64": lambda text: b64encode(text.encode()),
    "in Base64, shifted": lambda text: b64encode(b"x" + text.encode()),
    "in Base64, shifted more": lambda text: b64encode(b"xy" + text.encode()),
    "in Base64 for URLs": lambda text: urlsafe_b64encode(text.encode()),
    "backwards": lambda text: text[::-1],
    "a fragment": lambda text: text[7:19],
    "a fragment in Base64": lambda text: b64encode(b"and so on " + text[20:40].encode() + b"..."),
}


@pytest.mark.parametrize("how", ENCODED)
def test_a_leak_is_found(how: str) -> None:
    left = ENCODED[how](TEXT)
    haystack = b"all is well " + (left if isinstance(left, bytes) else left.encode()) + b" here"
    assert [text for text, _ in leaks(haystack, [TEXT, canary()])] == [TEXT]


def test_nothing_is_found_where_nothing_is() -> None:
    assert not leaks(TEXT[:11].encode() + b" all is well " * 9, [TEXT])


@dataclass(frozen=True)
class Piece:
    tokens: int = 1


class Engine:
    """Scores texts with `crude` in them high, and quotes others in what it raises."""

    identity = FakeScorer.identity

    def __init__(self) -> None:
        self.breaks: str | None = None
        self.seen = ""

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        return 0

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        self.seen = exchange.response or exchange.prompt
        if self.breaks == "prepare":
            raise ValueError(f"can't tokenise {self.seen!r}")
        return Prepared((Piece(),))

    def forward(self, work: Sequence[Piece]) -> list[list[float]]:
        if self.breaks == "forward":
            try:
                raise KeyError(self.seen)
            except KeyError as inner:
                raise RuntimeError(f"can't score {self.seen!r}") from inner
        return [[3.0 if "crude" in self.seen else -6.0] for _ in work]


class Breaking:
    """A scorer with a defect that shows when the engine is told so."""

    def __init__(self, scorer: Cached, engine: Engine) -> None:
        self._scorer, self._engine = scorer, engine
        self.identity = scorer.identity

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        if self._engine.breaks == "scorer":
            raise LookupError(f"nobody expected {exchange!r}")
        return await self._scorer.score(exchange, policies)


@dataclass
class Witness:
    """A whole gateway, and all the places where something may be left behind."""

    served: Gateway
    telemetry: Telemetry
    script: Script
    engine: Engine
    server: RedisServer
    shared: RedisClient
    spans: InMemorySpanExporter
    logs: io.StringIO
    canaries: list[str] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)

    def new(self, *, ascii_only: bool = False) -> str:
        self.canaries.append(canary(ascii_only=ascii_only))
        return self.canaries[-1]

    async def send(self, path: str, *, quotes: bool = False, **how: Any) -> httpx.Response:
        """Send a request; its reply is searched, too, unless it may quote upstream."""
        method = how.pop("method", "POST")
        reply = await self.served.client.request(method, path, **how)
        if not quotes:
            head = "\n".join(f"{name}: {value}" for name, value in reply.headers.items())
            self.replies.append(head.encode() + reply.content)
        return reply

    async def chat(self, prompt: str, *, quotes: bool = False, **more: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **more}
        return await self.send("/v1/chat/completions", json=body, quotes=quotes)

    async def places(self) -> dict[str, bytes]:
        while running := set(self.shared._running):
            await asyncio.wait(running)
        async with asyncio.timeout(10):
            while self.served.metric("shieldgate_requests_in_progress"):
                await asyncio.sleep(0)
        return {
            "logs": self.logs.getvalue().encode(),
            "metrics": self.telemetry.page(),
            "traces": "\n".join(s.to_json() for s in self.spans.get_finished_spans()).encode(),
            "redis": b"\n".join(self._redis()),
            "replies": b"\n".join(self.replies),
        }

    def _redis(self) -> Iterator[bytes]:
        with self.server.client() as redis:
            for key in redis.scan_iter():
                yield key
                kind = redis.type(key)
                if kind == b"stream":
                    for entry, fields in redis.xrange(key):
                        yield entry
                        yield from itertools.chain.from_iterable(fields.items())
                else:
                    yield redis.dump(key)
            yield repr(redis.info("all")).encode()


@asynccontextmanager
async def witness(
    folder: Path, capfd: pytest.CaptureFixture[str], **profile: Any
) -> AsyncIterator[Witness]:
    """Serve, and look everywhere afterwards."""
    logs = io.StringIO()
    configure_logging("debug", as_json=True, stream=logs)
    spans = InMemorySpanExporter()
    telemetry = Telemetry(CollectorRegistry(), OpenTelemetry(SimpleSpanProcessor(spans)))
    engine, script = Engine(), Script(whole("a kind answer"))

    with redis_server(folder) as server:
        async with RedisClient(server.url, seconds=5, observer=telemetry) as shared:

            @asynccontextmanager
            async def opened() -> AsyncIterator[Breaking]:
                limits = {"max_batch_tokens": 99, "max_waiting": 99}
                async with Batched(engine, **limits, observer=telemetry) as batched:
                    cached = Cached(
                        Resilient(batched, seconds=5, observer=telemetry),
                        secret=b"0123456789abcdef",
                        max_entries=0,
                        second=RedisScoreCache(shared, secret=b"x" * 16, keep_seconds=60),
                        observer=telemetry,
                    )
                    yield Breaking(cached, engine)

            sink = RedisAuditStream(shared, "audit", length=1000, lost=telemetry.audit_unconfirmed)
            async with (
                serving(script) as url,
                gateway(
                    FakeScorer(),
                    LoadingScorer(opened),
                    upstream=Upstream(url),
                    profile={"streaming": Streaming(first=8, growth=2.0, most=16), **profile},
                    audit=sink,
                    telemetry=telemetry,
                    max_body_bytes=20_000,
                ) as served,
            ):
                async with asyncio.timeout(10):
                    while not served.metric("shieldgate_ready"):
                        await asyncio.sleep(0)
                seen = Witness(served, telemetry, script, engine, server, shared, spans, logs)
                yield seen
                places = await seen.places()
    places["output"] = "".join(capfd.readouterr()).encode()
    for place, left in places.items():
        found = leaks(left, seen.canaries)
        assert not found, f"{place}: {found}"


Open = Callable[..., AbstractAsyncContextManager[Witness]]


@pytest.fixture
def opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Open:
    return partial(witness, tmp_path, capfd)


async def test_nothing_is_left_of_what_is_judged(opened: Open) -> None:
    async with opened() as w:
        for mark in ("", " crude"):
            texts = [w.new() + mark, w.new() + mark]
            await w.send("/v1/moderations", json={"input": texts})
            parts = [{"type": "text", "text": w.new() + mark}]
            await w.send("/v1/moderations", json={"input": parts, "model": w.new()})
            for profile in ("default", "monitor", "open"):
                exchange = {"prompt": w.new(), "response": w.new() + mark}
                await w.send("/v1/screen", json={**exchange, "profile": profile})
            await w.chat(w.new() + mark, user=w.new(), metadata={"note": w.new()})
            w.script.body = whole(w.new() + mark, tool_calls=[_call(w.new())])
            await w.chat(w.new(), quotes=not mark)
            w.script.body = [delta(w.new() + mark), delta(w.new(), finish="stop"), DONE]
            await w.chat(w.new(), stream=True, quotes=not mark)
            w.script.body = whole(w.new())
            await w.send(
                "/v1/completions", json={"model": "m", "prompt": w.new() + mark}, quotes=True
            )
        places = await w.places()
        assert places["logs"].count(b'"event": "decision"') > 20
        assert b"blocked" in places["traces"]
        assert b"response_digest" in places["redis"]


def _call(text: str) -> dict[str, Any]:
    function = {"name": "look_up", "arguments": json.dumps({"query": text})}
    return {"id": "1", "type": "function", "function": function}


MALFORMED: list[Callable[[str], dict[str, Any]]] = [
    lambda text: {"content": f'{{"input": "{text}'},
    lambda text: {"content": text},
    lambda text: {"content": b'{"prompt": "\xff\xfe' + text.encode("utf-16")},
    lambda text: {"json": text},
    lambda text: {"json": [text]},
    lambda text: {"json": {"input": {"deep": text}, "prompt": {"deep": text}, "messages": text}},
    lambda text: {"json": {"input": [[text]], "prompt": [[text]], "messages": [text]}},
    lambda text: {"json": {text: text}},
    lambda text: {"json": {"prompt": "bread", text: text, "input": "bread", "messages": []}},
    lambda text: {"json": {"prompt": "bread", "profile": text, "policies": [text]}},
    lambda text: {"json": {"prompt": "bread", "policies": [text], "input": [], "model": [text]}},
    lambda text: {"json": {"messages": [{"role": text, "content": text}], "model": "m"}},
    lambda text: {"json": {"messages": [{"role": "user", "content": [{"type": text}]}]}},
    lambda text: {"json": {"messages": [{"role": "user", "content": [_image(text)]}]}},
    lambda text: {"json": {"input": [_image(text)], "prompt": None, "response": text}},
    lambda text: {"json": {"input": "\ud800" + text, "prompt": "\ud800" + text}},
    lambda text: {"json": {"input": text * 400, "prompt": text * 400}},
    lambda text: {"json": {"messages": [], "moderation": {"model": text, "policy": text}}},
    lambda text: {"json": {"messages": [], "n": text, "stream": text, "stream_options": text}},
    lambda text: {"data": {"input": text}},
    lambda text: {"files": {"input": (text, text.encode())}},
    lambda text: {"json": {"input": text}, "headers": {"content-encoding": "gzip"}},
]


def _image(text: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}


async def test_nothing_is_left_of_bodies_that_are_refused(opened: Open) -> None:
    """A key or a name that looks like one may come back to its caller: it is what was misspelt."""
    paths = ("/v1/moderations", "/v1/screen", "/v1/chat/completions", "/v1/completions")
    async with opened() as w:
        w.script.body = whole("a kind answer")
        refused = 0
        for path, malformed in itertools.product(paths, MALFORMED):
            how = malformed(w.new())
            if "json" in how:  # as the client would refuse to write a lone surrogate
                how["content"] = json.dumps(how.pop("json"))
                headers = {"content-type": "application/json", **how.pop("headers", {})}
                how["headers"] = headers
            reply = await w.send(path, **how)
            assert reply.status_code != 500
            refused += reply.status_code >= 400
        assert refused > 60


async def test_nothing_is_left_of_heads(opened: Open) -> None:
    async with opened() as w:
        names = (
            *("authorization", "cookie", "user-agent", "referer", "x-request-id", "baggage"),
            *("tracestate", "traceparent", "x-forwarded-for", "forwarded", "accept", "host"),
            *("openai-organization", "content-type", "idempotency-key", "x-anything", "range"),
        )
        for name in names:
            headers = {"content-type": "application/json", name: w.new(ascii_only=True)}
            for path, body in (
                ("/v1/screen", {"prompt": "bread"}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "bread"}]}),
            ):
                await w.send(path, content=json.dumps(body), headers=headers)
            await w.send("/healthz", method="GET", headers=headers)
        for path in (f"/{w.new()}", f"/v1/screen?{w.new()}", f"/v1/policies/{w.new()}?a={w.new()}"):
            for method in ("GET", "POST", "DELETE"):
                await w.send(path, method=method)
        w.replies.append(await _raw(w, f"{w.new()} HTTP/1.1\r\n\r\n"))
        w.replies.append(await _raw(w, f"GET / HTTP/1.1\r\n{w.new()}\r\n\r\n"))
        verb = w.new(ascii_only=True).replace(" ", "")
        w.replies.append(await _raw(w, f"{verb} /v1/screen HTTP/1.1\r\nhost: localhost\r\n\r\n"))


async def _raw(w: Witness, request: str) -> bytes:
    url = httpx.URL(w.served.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request.encode())
    writer.write_eof()
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply


@pytest.mark.parametrize("breaks", ["prepare", "forward", "scorer"])
async def test_nothing_is_left_where_the_scorer_fails(opened: Open, breaks: str) -> None:
    async with opened() as w:
        w.engine.breaks = breaks
        for path in ("/v1/moderations", "/v1/screen"):
            for _ in range(6):
                reply = await w.send(path, json=_texts(path, w.new()))
                assert reply.status_code == (500 if breaks == "scorer" else 503)
        await w.chat(w.new())
        await w.chat(w.new(), stream=True)
        reply = await w.send("/v1/screen", json={"prompt": w.new(), "profile": "open"})
        assert reply.status_code == (500 if breaks == "scorer" else 200)


def _texts(path: str, text: str) -> dict[str, Any]:
    return {"input": text} if path.endswith("moderations") else {"prompt": text}


@pytest.mark.parametrize("breaks", ["prepare", "forward", "scorer"])
async def test_nothing_is_left_of_a_stream_whose_guard_dies(opened: Open, breaks: str) -> None:
    async with opened() as w:
        gate = asyncio.Event()
        held = [delta(w.new()), delta(w.new(), finish="stop"), DONE]
        w.script.body = [delta("x" * 8), gate, *held]
        body = {"messages": [{"role": "user", "content": w.new()}], "stream": True}
        raw = b""
        with suppress(httpx.RemoteProtocolError):
            async with w.served.client.stream("POST", "/v1/chat/completions", json=body) as reply:
                async for data in reply.aiter_bytes():
                    raw += data
                    w.engine.breaks = breaks
                    gate.set()
        assert b"xxxxxxxx" in raw
        w.replies.append(raw)


async def test_nothing_is_left_where_upstream_fails(opened: Open) -> None:
    """Upstream's own words reach the caller, and nobody else; what was held back reaches nobody."""
    async with opened() as w:
        for status in (400, 401, 404, 429, 500, 503):
            w.script.status = status
            error = {"message": w.new(), "type": w.new(), "code": w.new(), "param": w.new()}
            for body in ({"error": error}, {"error": w.new()}, {"detail": w.new()}, [w.new()]):
                w.script.body = body
                w.script.headers = {"x-request-id": w.new(ascii_only=True).replace(" ", "-")}
                await w.chat(w.new(), quotes=True)
        w.script.status, w.script.headers = 200, {"x-anything": w.new(ascii_only=True)}
        for body in (w.new(), [], {"choices": w.new()}, {"choices": [w.new()]}, {"error": w.new()}):
            w.script.body = body
            await w.chat(w.new(), quotes=isinstance(body, dict) and "error" in body)
        bad = (
            b"data: {" + w.new().encode() + b"\n\n",
            b"event: error\ndata: {}\n\n",
            w.new().encode(),
            delta(w.new(), index=7),
            DONE,
            RuntimeError(w.new()),
        )
        for end in bad:
            w.script.body = [delta(w.new()), end]
            await w.chat(w.new(), stream=True, quotes=True)
        w.script.body = [RuntimeError(w.new())]
        await w.chat(w.new(), stream=True)


async def test_nothing_is_left_of_callers_who_hang_up(opened: Open) -> None:
    never = asyncio.Event()
    async with opened() as w:
        w.script.body = [delta(w.new()), never]
        body = {"messages": [{"role": "user", "content": w.new()}], "stream": True}
        async with w.served.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            await anext(reply.aiter_bytes())
        await asyncio.wait_for(w.script.left.wait(), 10)


async def test_nothing_is_left_where_redis_fails(opened: Open) -> None:
    async with opened() as w:
        with w.server.client() as redis:
            redis.set("shieldgate:audit", "no stream")
            redis.config_set("maxmemory", "1")
        for _ in range(8):
            await w.send("/v1/screen", json={"prompt": w.new()})
        w.server.kill()
        for _ in range(8):
            await w.send("/v1/screen", json={"prompt": w.new()})
        w.server.start()


def test_nothing_is_left_of_what_is_evaluated(tmp_path: Path, hot_checkpoint: Path) -> None:
    """Unless its page is to show the texts of mistakes, which it does by default."""
    texts = [canary() for _ in range(12)]
    rows = [
        json.dumps({"id": n, "prompt": prompt, "response": response, "harmful": n % 2})
        for n, (prompt, response) in enumerate(zip(texts[:4], texts[4:8], strict=True))
    ]
    refused = [
        '{"prompt": "' + texts[8],
        json.dumps({"prompt": [texts[9]], "harmful": 1}),
        json.dumps({"prompt": "bread", "harmful": texts[10]}),
        json.dumps([texts[11]]),
    ]
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    data.write_text("\n".join(rows + refused))
    words = ["evaluate", str(data), "--out", str(out), "--model", str(hot_checkpoint)]
    done = CliRunner().invoke(app, [*words, "--policy", "shieldgemma/hate", "--no-examples"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "4 bad rows were left out" in done.output
    left = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"report.html", "report.json", "scores.jsonl"} <= left.keys()
    for name, written in {**left, "output": done.output.encode()}.items():
        assert not leaks(written, texts), name
