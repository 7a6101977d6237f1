"""A server that is told to stop says so, finishes what it has begun, and cuts nothing in two."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import responding
from fakes import FakeScorer
from front import Open
from test_cli_serve import Server
from test_cli_serve import serving as serving_process
from test_processes import alive, alone
from test_serve_chat import lenient  # noqa: F401 - a fixture
from upstream import DONE, ENVELOPE, Script, data_of, delta, serving, sse, text_of, whole

HEAD = "A loaf needs flour, water, salt and time. " * 3
TAIL = "And an oven."
PADDING = "x" * 2**24  # more than the buffers between server and caller hold
FILLING = sse({**ENVELOPE, "choices": [], "padding": PADDING})
CHAT = {"model": "m", "messages": [{"role": "user", "content": "How do I bake bread?"}]}


class Waiting(Script):
    """Writes the beginning of an answer, and the end when it is `released`.

    The model `stuck` never writes the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()

    def reply(self, request: dict[str, Any] | None) -> Any:
        if request and request.get("stream"):
            rest = [delta(TAIL), delta(finish="stop"), DONE]
            wait = asyncio.Event() if request["model"] == "stuck" else self.released
            return [delta(HEAD), wait, *rest]
        return whole(HEAD + TAIL)


@asynccontextmanager
async def front(
    script: Script, checkpoint: Path, policies: Path, *more: str
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A `shieldgate serve` of its own before a scripted model."""
    arguments = ("--model", checkpoint, "--policies", policies, "--profile", "strict", *more)
    async with serving(script) as upstream:
        with serving_process(*arguments, "--upstream", upstream) as server:
            url = (await asyncio.to_thread(server.line, "listening"))["url"]
            # With --processes, every gateway says so, and then its parent.
            for event in ["gateway ready"] * 2 if "--processes" in more else ["ready"]:
                await asyncio.to_thread(server.line, event)
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                yield server, client


class Stream:
    """A streamed answer, read in the background."""

    def __init__(self, client: httpx.AsyncClient, model: str = "m") -> None:
        self.raw = ""
        self.begun = asyncio.Event()
        self.reading = asyncio.create_task(self._read(client, model))

    async def _read(self, client: httpx.AsyncClient, model: str) -> None:
        body = {**CHAT, "model": model, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            assert reply.status_code == 200
            async for piece in reply.aiter_text():
                self.raw += piece
                if HEAD[:20] in self.raw:
                    self.begun.set()


async def test_sigterm_under_load_lets_streams_end_and_exits_with_0(
    hot_checkpoint: Path,
    lenient: Path,  # noqa: F811
) -> None:
    script = Waiting()
    async with front(script, hot_checkpoint, lenient) as (server, client):
        streams = [Stream(client) for _ in range(5)]
        await asyncio.gather(*(stream.begun.wait() for stream in streams))

        server.process.send_signal(signal.SIGTERM)
        assert (await asyncio.to_thread(server.line, "draining"))["requests"] == 5
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "stopping"})
        assert ready.headers["connection"] == "close"
        assert (await client.get("/healthz")).status_code == 200
        # Balancers take a moment to hear of it, so who still comes is still served.
        late = await client.post("/v1/moderations", json={"input": "bread"})
        assert (late.status_code, late.headers["connection"]) == (200, "close")

        script.released.set()
        await asyncio.gather(*(stream.reading for stream in streams))
        for stream in streams:
            events = data_of(stream.raw)
            assert text_of(events) == HEAD + TAIL
            assert events[-1] == "[DONE]"
        assert await asyncio.to_thread(server.process.wait, 30) == 0


@pytest.mark.parametrize("seconds", ["0", "1"])
async def test_what_does_not_end_in_time_ends_in_a_well_formed_way(
    seconds: str,
    hot_checkpoint: Path,
    lenient: Path,  # noqa: F811
) -> None:
    script = Waiting()
    more = ("--drain-seconds", seconds)
    async with front(script, hot_checkpoint, lenient, *more) as (server, client):
        stream = Stream(client)
        await stream.begun.wait()
        script.asked.clear()
        script.waits = asyncio.Event()  # from here on upstream is silent
        whole_answer = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await script.asked.wait()

        server.process.send_signal(signal.SIGTERM)
        await stream.reading
        *said, last = data_of(stream.raw)
        assert text_of(said) == HEAD
        assert last["error"]["code"] == "server_stopping"
        reply = await whole_answer
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json()["error"]["code"] == "server_stopping"
        assert reply.headers["x-request-id"]
        assert await asyncio.to_thread(server.end, signal.SIGCONT) == 0
    assert '"outcome": "cut_off"' in server.raw
    assert '"level": "error"' not in server.raw


async def test_several_gateways_let_streams_end_and_cut_those_that_do_not(
    hot_checkpoint: Path,
    lenient: Path,  # noqa: F811
) -> None:
    script = Waiting()
    more = ("--processes", "2", "--drain-seconds", "5")
    async with front(script, hot_checkpoint, lenient, *more) as (server, client):
        gateways = [line["process"] for line in server.lines if line["event"] == "gateway started"]
        slow, stuck = [], []
        for gateway in gateways:
            with alone(gateway, gateways):
                ours = [Stream(client, "m"), Stream(client, "m"), Stream(client, "stuck")]
                await asyncio.gather(*(stream.begun.wait() for stream in ours))
            slow += ours[:2]
            stuck += ours[2:]

        server.process.send_signal(signal.SIGTERM)
        draining = [await asyncio.to_thread(server.line, "draining") for _ in gateways]
        assert [line["requests"] for line in draining] == [3, 3]
        # What is written from here on is judged by a scorer that is still there.
        script.released.set()
        await asyncio.gather(*(stream.reading for stream in (*slow, *stuck)))
        for stream in slow:
            events = data_of(stream.raw)
            assert text_of(events) == HEAD + TAIL
            assert events[-1] == "[DONE]"
        for stream in stuck:
            *said, last = data_of(stream.raw)
            assert text_of(said) == HEAD
            assert last["error"]["code"] == "server_stopping"
        assert await asyncio.to_thread(server.end, signal.SIGCONT) == 0
        assert not any(map(alive, gateways))
    assert server.raw.count('"outcome": "cut_off"') == 2
    assert '"level": "error"' not in server.raw


@pytest.mark.parametrize(
    ("script", "lasts"),
    [
        # What comes last of all leaves together with the end.
        ([delta(HEAD), delta(finish="stop"), FILLING, DONE], True),
        ([delta(HEAD, padding=PADDING, finish="stop"), DONE], False),
    ],
    ids=["its end is on its way", "its end waits"],
)
async def test_a_caller_who_does_not_read_gets_an_end_or_is_told_that_there_is_none(
    front: Open, script: list[bytes], lasts: bool
) -> None:
    # Reading millions of letters in further ways takes a minute.
    profile = {"mode": "monitor", "normalise": False}
    async with front(script, profile=profile) as f:
        address = httpx.URL(f.gateway.url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        body = json.dumps(f.body("bread", stream=True)).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await reader.readuntil(b'"padding"')
        f.gateway.drain.begin(0)
        rest = await reader.read()
        writer.close()
    assert (b"data: [DONE]\n\n" in rest) == lasts
    assert (b"server_stopping" in rest) == (not lasts)


async def test_what_a_caller_has_not_read_leaves_no_gap_before_the_error(
    scorer: FakeScorer,
) -> None:
    said = responding.streamed(responding.message(PADDING), piece=2**20)
    script = Script([*said[:-1], asyncio.Event()])
    profile = {"mode": "monitor", "normalise": False}
    async with responding.responding(scorer, script=script, profile=profile) as front:
        address = httpx.URL(front.gateway.url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        body = json.dumps({"model": "m", "input": "bread", "stream": True}).encode()
        writer.write(
            b"POST /v1/responses HTTP/1.0\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await reader.readuntil(b"\r\n\r\n")
        first = await reader.readuntil(b"output_text.delta")
        front.gateway.drain.begin(0)
        *_, last = responding.read(first + await reader.read())
        writer.close()
    assert last["code"] == "server_stopping"
