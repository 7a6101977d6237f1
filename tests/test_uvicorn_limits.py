"""Callers who send heads slowly or without end, or don't read, are left; who waits is not."""

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from serving import running
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http import httptools_impl

from shieldgate.cli.uvicorn_limits import limited_protocol, set_user_timeout

SECONDS = 0.2
HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def patient(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after longer than a head may take."""
    if scope["type"] == "http":
        await asyncio.sleep(2 * SECONDS)
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def connected(app: ASGIApp = patient, seconds: float = SECONDS) -> AsyncIterator[Connection]:
    async with running(app, http=limited_protocol(seconds), timeout_keep_alive=60) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        try:
            async with asyncio.timeout(20):
                yield reader, writer
        finally:
            writer.close()


async def drip(connection: Connection, text: bytes) -> bytes:
    """Send a byte now and then, until the server closes; give what it said."""
    reader, writer = connection
    for byte in text:
        writer.write(bytes([byte]))
        try:
            async with asyncio.timeout(SECONDS / 10):
                return await reader.read()
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
    raise AssertionError("the connection stayed open")


async def answered(connection: Connection) -> None:
    reader, _ = connection
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert await reader.readexactly(2) == b"ok"


def test_uvicorn_has_what_is_overridden() -> None:
    """Private parts: where one is gone, some limit below would hold no longer, or say so late."""
    parts = [
        *("connection_made(", "data_received(", "connection_lost("),
        *("on_headers_complete(", "on_body(", "on_message_complete("),
        *("self._start_asgi_task(", "self.send_400_response(", "self.transport", "self.loop"),
        *("self.cycle", "self.response_started", "self.response_complete", "self.disconnected"),
        *("self.message_event", "self.parser = ", "self.url", "self.headers"),
        *("_unset_keepalive_if_required(", "expected_content_length = 0"),
    ]
    source = inspect.getsource(httptools_impl)
    gone = [part for part in parts if part not in source]
    assert not gone, f"uvicorn {uvicorn.__version__} lacks {gone}: mend cli/uvicorn_limits.py"


async def test_a_connection_without_a_head_is_closed() -> None:
    async with connected() as (reader, _):
        assert await reader.read() == b""


async def test_a_head_that_drips_is_not_waited_for() -> None:
    async with connected() as connection:
        assert await drip(connection, b"GET / HTTP/1.1\r\nx: " + b"a" * 1000) == b""


async def test_neither_is_the_second_head_of_a_connection() -> None:
    async with connected() as connection:
        connection[1].write(HEAD)
        await answered(connection)
        assert await drip(connection, HEAD[:-2] + b"x: " + b"a" * 1000) == b""


async def test_who_waits_for_answers_is_answered_each_time() -> None:
    async with connected() as connection:
        for _ in range(2):
            connection[1].write(HEAD)
            await answered(connection)
        connection[1].write(HEAD * 2)
        await answered(connection)
        await answered(connection)


async def refused(connection: Connection, text: bytes) -> bool:
    """Send text, and tell whether the server closed before it was complete."""
    reader, writer = connection
    writer.write(text)
    try:
        return b" 200 " not in await reader.read()
    except ConnectionError:
        return True  # for whoever still writes


@pytest.mark.parametrize("name", [b"", b"x: "], ids=["a name", "a value"])
async def test_a_head_without_end_is_refused(name: bytes) -> None:
    async with connected(seconds=60) as connection:
        assert await refused(connection, b"GET / HTTP/1.1\r\n" + name + b"a" * 1_000_000)


async def test_so_are_trailers_without_end() -> None:
    async with connected(seconds=60) as connection:
        head = HEAD[:-2] + b"transfer-encoding: chunked\r\n\r\n0\r\n"
        assert await refused(connection, head + b"x: a\r\n" * 200_000)


@pytest.mark.parametrize("second", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000])
async def test_no_error_stands_within_the_reply_to_an_earlier_request(second: bytes) -> None:
    begun = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async with connected(endless) as (reader, writer):
        writer.write(HEAD)
        await begun.wait()
        writer.write(second)
        assert (await reader.read()).count(b"HTTP/1.1") == 1


async def test_who_leaves_is_missed_by_all_that_was_asked_for() -> None:
    left = asyncio.Event()
    asked: list[str] = []

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        asked.append(scope["path"])
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with connected(waits) as (_, writer):
        writer.write(HEAD * 2)
        while not asked:
            await asyncio.sleep(0)
        writer.close()
        await left.wait()
    assert asked == ["/"]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system can't tell")
async def test_a_reply_that_nobody_reads_ends() -> None:
    left = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def write() -> None:
            while True:
                body = {"type": "http.response.body", "body": b"x" * 65_536, "more_body": True}
                await send(body)
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        while (await receive())["type"] != "http.disconnect":
            pass
        writing.cancel()
        left.set()

    listener = socket.create_server(("127.0.0.1", 0))
    set_user_timeout(listener, SECONDS)
    async with (
        running(endless, listener=listener) as url,
        httpx.AsyncClient() as client,
        client.stream("GET", url),
        asyncio.timeout(20),
    ):
        await left.wait()


OFFERS = {
    "h2c": "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
    "tls": "upgrade: TLS/1.2, h2c\r\nconnection: upgrade\r\n",
    "closing": "connection: close, upgrade\r\nupgrade: h2c\r\n",
    "none": "",
}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the method, the path and the body."""
    if scope["type"] == "http":
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        said = b"%s %s %s." % (scope["method"].encode(), scope["raw_path"], body)
        headers = [(b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})


def posting(path: str, offer: str, *, chunked: bool) -> bytes:
    framing = "transfer-encoding: chunked" if chunked else "content-length: 5"
    body = "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n" if chunked else "hello"
    return f"POST {path} HTTP/1.1\r\nhost: a\r\n{offer}{framing}\r\n\r\n{body}".encode()


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
async def test_an_offer_of_another_protocol_is_ignored_and_the_body_read(
    offer: str, chunked: bool, size: int
) -> None:
    """However it is cut into packets, alone or between others on one connection."""
    text = posting("/1", OFFERS[offer], chunked=chunked)
    if offer != "closing":
        text += posting("/2", "", chunked=chunked) + posting("/3", OFFERS[offer], chunked=chunked)
        text += f"GET /4 HTTP/1.1\r\nhost: a\r\n{OFFERS[offer]}connection: close\r\n\r\n".encode()
    async with connected(echo, seconds=20) as (reader, writer):
        for start in range(0, len(text), size):
            writer.write(text[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)  # so that it is sent by itself
        raw = (await reader.read()).decode()
    said = [line.partition(".")[0] for line in raw.split("\r\n\r\n")[1:]]
    all_four = ["POST /1 hello", "POST /2 hello", "POST /3 hello", "GET /4 "]
    assert said == (all_four[:1] if offer == "closing" else all_four)
    assert raw.count("HTTP/1.1 200") == len(said)


async def test_any_number_of_offers_in_one_packet_is_ignored() -> None:
    number = 3000
    offers = f"GET / HTTP/1.1\r\n{OFFERS['h2c']}\r\n".encode() * number
    async with connected(echo, seconds=20) as (reader, writer):
        writer.write(offers + b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.read()).count(b"HTTP/1.1 200") == number + 1


async def test_an_offer_frees_no_head_from_its_limits() -> None:
    async with connected(echo) as connection:
        assert await drip(connection, posting("/", OFFERS["h2c"] * 20, chunked=False)) == b""


async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in pieces, without a length."""
    if scope["type"] == "http":
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in (b"one ", b"", b"two ", b"x" * 500_000):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b" end", "more_body": False})


@pytest.mark.parametrize("more", ["", "connection: keep-alive\r\n", "host: a\r\n"])
async def test_a_stream_for_http_1_0_is_plain_bytes_until_the_connection_ends(more: str) -> None:
    async with connected(streaming) as (reader, writer):
        writer.write(f"GET / HTTP/1.0\r\n{more}\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"one two " + b"x" * 500_000 + b" end"


async def test_a_reply_of_known_length_is_the_same_for_http_1_0() -> None:
    async with connected(echo) as (reader, writer):
        writer.write(b"POST /a HTTP/1.0\r\ncontent-length: 5\r\n\r\nhello")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert (b"content-length: 14" in head, body) == (True, b"POST /a hello.")


@pytest.mark.parametrize("app", [streaming, echo])
async def test_head_gets_no_body_in_http_1_0_either(app: ASGIApp) -> None:
    async with connected(app) as (reader, writer):
        writer.write(b"HEAD / HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\n")


async def test_what_follows_http_1_0_streams_still_comes_in_chunks() -> None:
    async with connected(streaming) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
