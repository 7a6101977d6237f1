"""The client of the model, against real servers that answer, refuse, stall and break off."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import running
from starlette.types import Receive, Scope, Send

from shieldgate.dialects.openai import MODELS
from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.errors import ConfigurationError, UpstreamError
from shieldgate.upstream import Upstream

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "unknown": {"x": 1}}
CHAT, is_end = OpenAIChat.endpoint, OpenAIChat().is_end


@asynccontextmanager
async def upstream(answer: Answer, **how: Any) -> AsyncIterator[Upstream]:
    """An Upstream before a server whose every reply is `answer`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer(scope, receive, send)

    async with running(app) as url, Upstream(f"{url}/v1/", **how) as opened:
        yield opened


async def head(send: Send, status: int = 200, **headers: str) -> None:
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def more(send: Send, body: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})


def says(body: bytes | str | Any, status: int = 200, **headers: str) -> Answer:
    """A server that always gives this reply."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await head(send, status, **headers)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        await more(send, raw, last=True)

    return answer


def streams(*pieces: bytes) -> Answer:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await head(send, content_type="text/event-stream; charset=utf-8", x_request_id="r-1")
        for piece in pieces:
            await more(send, piece)
        await more(send, b"", last=True)

    return answer


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """A server that replies with what it was sent."""
    body = b""
    while (message := await receive()).get("more_body") or message.get("body"):
        body += message["body"]
        if not message["more_body"]:
            break
    request = {
        "method": scope["method"],
        "path": scope["path"],
        "headers": {k.decode(): v.decode("latin-1") for k, v in scope["headers"]},
        "body": json.loads(body or b"null"),
    }
    await head(send, x_request_id="r-1", set_cookie="session=alice")
    await more(send, json.dumps(request).encode(), last=True)


async def all_chunks(opened: Upstream, headers: dict[str, str] | None = None) -> list[Any]:
    async with opened.stream(CHAT, BODY, headers or {}, is_end) as stream:
        return [chunk async for _, chunk in stream.events]


async def refusal(answer: Answer, **how: Any) -> UpstreamError:
    """The error of a call that is not streamed; a streamed call is made sure to have it too."""
    async with upstream(answer, **how) as opened:
        with pytest.raises(UpstreamError) as plain:
            await opened.post(CHAT, BODY, {})
        with pytest.raises(UpstreamError) as streamed:
            await all_chunks(opened)
    assert vars(plain.value) == vars(streamed.value)
    assert str(plain.value) == str(streamed.value)
    return plain.value


# What is sent


async def test_the_body_arrives_as_it_was_given_and_the_reply_comes_back_with_its_id():
    async with upstream(echo) as opened:
        reply = await opened.post(CHAT, BODY, {})
    assert reply.request_id == "r-1"
    assert (reply.body["method"], reply.body["path"]) == ("POST", "/v1/chat/completions")
    assert reply.body["body"] == BODY
    assert reply.body["headers"]["content-type"] == "application/json"


CALLER = {
    "authorization": "Bearer callers",
    "openai-organization": "org",
    "openai-project": "proj",
    "traceparent": "00-1-2-01",
    "cookie": "session=bob",
    "connection": "x-hop",
    "x-hop": "1",
    "keep-alive": "timeout=5",
    "te": "trailers",
    "transfer-encoding": "chunked",
    "upgrade": "h2c",
    "proxy-authorization": "Basic x",
    "host": "elsewhere",
    "content-length": "1",
    "content-type": "text/plain",
    "accept-encoding": "br",
    "x-forwarded-for": "10.0.0.1",
    "x-grün": "ü",
}


async def test_of_the_callers_headers_only_account_and_tracing_go_on():
    async with upstream(echo) as opened:
        sent = (await opened.post(CHAT, BODY, CALLER)).body["headers"]
    host = opened.url.split("/")[2]
    assert sent.pop("user-agent").startswith("shieldgate/")
    assert int(sent.pop("content-length")) > 1
    assert sent == {
        "host": host,
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "authorization": "Bearer callers",
        "openai-organization": "org",
        "openai-project": "proj",
        "traceparent": "00-1-2-01",
    }


async def test_the_operators_key_takes_the_place_of_all_that_says_who_the_caller_is():
    async with upstream(echo, key=" operators\n") as opened:
        sent = (await opened.post(CHAT, BODY, CALLER)).body["headers"]
    assert sent["authorization"] == "Bearer operators"
    assert sent["traceparent"] == "00-1-2-01"
    assert not {"openai-organization", "openai-project"} & sent.keys()


async def test_a_header_goes_on_byte_for_byte():
    async with upstream(echo) as opened:
        # As ASGI has it: each character is one byte.
        given = "Grüße".encode().decode("latin-1")
        sent = await opened.post(CHAT, BODY, {"openai-project": given})
        assert sent.body["headers"]["openai-project"] == given
        with pytest.raises(UpstreamError, match="UTF-8") as refused:
            await opened.post(CHAT, BODY, {"openai-project": "Grüße"})
    assert refused.value.status == 400


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nx-evil: 1", "a\0"])
async def test_a_header_can_not_smuggle_another_one_in(value: str):
    reached = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        reached.set()
        await says({})(scope, receive, send)

    async with upstream(answer) as opened:
        with pytest.raises(ValueError, match=r"header|Newline"):
            await opened.post(CHAT, BODY, {"authorization": value})
    assert not reached.is_set()


async def test_headers_of_the_operator_and_those_that_callers_may_set_go_on():
    own = "X-Team=search , cf-access-client-secret=a=b,openai-beta, x-absent,"
    async with upstream(echo, headers=own) as opened:
        caller = {"openai-beta": "assistants=v2", "x-team": "mine", "x-other": "1"}
        sent = (await opened.post(CHAT, BODY, caller)).body["headers"]
    assert (sent["x-team"], sent["cf-access-client-secret"]) == ("search", "a=b")
    assert sent["openai-beta"] == "assistants=v2"
    assert not {"x-absent", "x-other"} & sent.keys()


async def test_a_header_of_the_operators_takes_the_place_of_the_callers_key_too():
    async with upstream(echo, headers="api-key=operators") as opened:
        sent = (await opened.post(CHAT, BODY, {"api-key": "callers"})).body["headers"]
    assert sent["api-key"] == "operators"


@pytest.mark.parametrize(
    "headers",
    [
        *("host=secret", "Content-Length=7", "transfer-encoding", "x y=secret", "=secret"),
        *("x=sécret", "x=a\r\ny: secret", "authorization", "API-Key", "cookie", "upgrade=h2c"),
    ],
)
def test_headers_that_can_not_be_sent_are_refused_without_being_repeated(headers: str):
    with pytest.raises(ConfigurationError, match="headers for upstream are refused") as refused:
        Upstream("http://h/v1", headers=headers)
    assert "secret" not in str(refused.value)


@asynccontextmanager
async def proxying() -> AsyncIterator[tuple[str, list[str]]]:
    """An HTTP proxy; gives its address, and notes what it is asked for, and with which password."""
    seen: list[str] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        words = [line for line in head.split("\r\n") if line.lower().startswith("proxy-auth")]
        seen.append(" ".join([*head.split()[:2], *words]))
        await reader.readexactly(len(json.dumps(BODY, separators=(",", ":"))))
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"by": "it"}')
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("way", ["given", "environment"])
async def test_upstream_is_reached_through_a_proxy_where_that_is_asked_for(
    way: str, monkeypatch: pytest.MonkeyPatch
):
    async with proxying() as (address, seen):
        proxy = f"http://me:pw@{address}"
        monkeypatch.setenv("HTTP_PROXY", proxy)
        given = proxy if way == "given" else way
        async with Upstream("http://model.invalid/v1", proxy=given) as opened:
            reply = await opened.post(CHAT, BODY, {"authorization": "Bearer callers"})
    assert reply.body == {"by": "it"}
    url = "http://model.invalid/v1/chat/completions"
    assert seen == [f"POST {url} Proxy-Authorization: Basic bWU6cHc="]


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("way", [None, "environment"])
async def test_the_environment_says_so_only_where_it_is_asked_and_names_exceptions(
    way: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login netrc password netrc\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    async with proxying() as (address, seen):
        monkeypatch.setenv("HTTP_PROXY", f"http://{address}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1" if way else "")
        async with upstream(echo, proxy=way) as opened:
            sent = (await opened.post(CHAT, BODY, {"authorization": "Bearer callers"})).body
    assert sent["headers"]["authorization"] == "Bearer callers"
    assert seen == []


async def test_a_proxy_that_is_not_there_is_said():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with Upstream("http://h/v1", proxy=f"http://127.0.0.1:{port}") as opened:
        with pytest.raises(UpstreamError, match=r"^The proxy to upstream can't be reached"):
            await opened.post(CHAT, BODY, {})


@pytest.mark.parametrize("proxy", ["proxy:3128", "socks5://secret@h", "", "http://", "yes"])
def test_a_proxy_that_can_not_be_one_is_refused_without_being_repeated(proxy: str):
    with pytest.raises(ConfigurationError, match="proxy to upstream is refused") as refused:
        Upstream("http://h/v1", proxy=proxy)
    assert "secret" not in str(refused.value)


async def test_a_cookie_of_one_reply_is_not_sent_with_the_next_request():
    async with upstream(echo) as opened:
        await opened.post(CHAT, BODY, {})
        second = await opened.post(CHAT, BODY, {})
    assert "cookie" not in second.body["headers"]


# What comes back

EVENTS = b': ping\n\ndata: {"a": 1}\n\ndata:\n\ndata: {"b": "\xc3\xbc"}\n\n'


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data: [DONE]\n\ndata: nonsense\n\n", b""])
async def test_chunks_end_with_done_or_with_the_stream(end: bytes):
    async with (
        upstream(streams(EVENTS + end)) as opened,
        opened.stream(CHAT, BODY, {}, is_end) as stream,
    ):
        assert stream.request_id == "r-1"
        assert [chunk async for _, chunk in stream.events] == [{"a": 1}, {"b": "ü"}]


async def test_a_chunk_is_given_before_the_next_one_is_sent():
    first_read = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await head(send, content_type="text/event-stream")
        await more(send, b'data: {"a": 1}\n\n')
        await first_read.wait()
        await more(send, b"data: [DONE]\n\n", last=True)

    async with upstream(answer) as opened, opened.stream(CHAT, BODY, {}, is_end) as stream:
        assert await anext(stream.events) == ("", {"a": 1})
        first_read.set()
        assert [chunk async for _, chunk in stream.events] == []


async def test_upstreams_models_are_listed_as_they_are():
    models = [{"id": "gemma", "object": "model", "extra": 1}]
    async with upstream(says({"object": "list", "data": models})) as opened:
        assert await opened.models(MODELS, {}) == models


@pytest.mark.parametrize("body", [{"data": "x"}, {"data": [1]}, {}])
async def test_a_list_of_models_in_another_form_is_refused(body: Any):
    async with upstream(says(body)) as opened:
        with pytest.raises(UpstreamError, match="unknown form"):
            await opened.models(MODELS, {})


# What goes wrong


async def test_an_error_keeps_its_status_its_object_its_id_and_its_wait():
    said = {"message": "Slow down: hello", "type": "rate_limit_error", "param": None, "code": "rpm"}
    error = await refusal(says({"error": said}, 429, x_request_id="r-9", retry_after="7"))
    assert (error.status, error.code, error.request_id) == (429, "rpm", "r-9")
    assert (error.body, error.retry_after) == (said, 7.0)
    assert str(error) == "Upstream answered with an error (429)."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": "too long"}, "too long"),
        ({"object": "error", "message": "too long", "code": 400}, "too long"),
        ({"detail": "too long"}, "too long"),
        ({"detail": [{"msg": "x"}]}, "Upstream answered 400."),
        ({"error": {"message": None}}, "Upstream answered 400."),
        ([1], "Upstream answered 400."),
        (b"<html>", "Upstream answered 400."),
    ],
)
async def test_the_message_of_an_error_is_a_string_whatever_the_server_writes(
    body: Any, message: str
):
    error = await refusal(says(body, 400))
    assert error.body is not None
    assert error.body["message"] == message
    assert (error.status, error.code) == (400, "upstream_error")


async def test_a_request_id_or_a_wait_that_is_none_is_left_out():
    error = await refusal(says({}, 503, x_request_id="a b", retry_after="Fri, 31 Dec 1999"))
    assert (error.status, error.request_id, error.retry_after) == (503, None, None)


@pytest.mark.parametrize("status", [401, 403])
async def test_that_the_operators_key_is_refused_is_not_the_callers_error(status: int):
    said = {"error": {"message": "Incorrect API key: operators"}}
    error = await refusal(says(said, status), key="operators")
    assert (error.status, error.code, error.body) == (502, "upstream_refused_key", None)
    own = await refusal(says(said, status))
    assert (own.status, own.body) == (status, said["error"])


async def test_a_redirect_is_not_followed():
    error = await refusal(says(b"", 307, location="http://127.0.0.1:1/"))
    assert (error.status, error.code) == (502, "upstream_invalid")
    assert "answered 307" in str(error)


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"a": nan}', b'{"a":' * 5000, b""])
async def test_a_reply_that_is_no_json_object_is_refused(body: bytes):
    async with upstream(says(body)) as opened:
        with pytest.raises(UpstreamError, match="no JSON object") as refused:
            await opened.post(CHAT, BODY, {})
    assert (refused.value.status, refused.value.code) == (502, "upstream_invalid")


@pytest.mark.parametrize("data", [b"{", b"[1]", b"null"])
async def test_a_chunk_that_is_no_json_object_ends_the_stream_after_what_came_before(data: bytes):
    async with (
        upstream(streams(EVENTS, b"data: " + data + b"\n\n")) as opened,
        opened.stream(CHAT, BODY, {}, is_end) as stream,
    ):
        assert await anext(stream.events) == ("", {"a": 1})
        assert await anext(stream.events) == ("", {"b": "ü"})
        with pytest.raises(UpstreamError, match="no JSON object") as refused:
            await anext(stream.events)
    assert refused.value.request_id == "r-1"


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {"message": "broke", "code": "c"}}\n\n',
        b'event: error\ndata: {"message": "broke", "code": "c"}\n\n',
    ],
)
async def test_an_error_within_a_stream_is_an_error(event: bytes):
    async with upstream(streams(EVENTS, event)) as opened:
        with pytest.raises(UpstreamError) as reported:
            await all_chunks(opened)
    assert (reported.value.status, reported.value.code) == (502, "c")
    assert reported.value.body == {"message": "broke", "code": "c"}


@pytest.mark.parametrize(("code", "status"), [(429, 429), (200, 502), ("c", 502), (None, 502)])
async def test_an_error_that_comes_with_a_200_has_the_status_it_names(code: Any, status: int):
    body = {"error": {"message": "broke", "code": code}}
    async with upstream(says(body)) as opened:
        with pytest.raises(UpstreamError) as reported:
            await opened.post(CHAT, BODY, {})
    assert (reported.value.status, reported.value.body) == (status, body["error"])
    async with upstream(streams(b"data: " + json.dumps(body).encode() + b"\n\n")) as opened:
        with pytest.raises(UpstreamError) as reported:
            await all_chunks(opened)
    assert (reported.value.status, reported.value.body) == (status, body["error"])


async def test_a_server_that_does_not_stream_is_refused():
    async with upstream(says({"choices": []}, content_type="application/json")) as opened:
        with pytest.raises(UpstreamError, match="without a stream"):
            await all_chunks(opened)


async def test_a_reply_beyond_the_limit_is_refused_streamed_or_not():
    long = b'data: {"a": 1}\n\n' * 8
    async with upstream(streams(long), max_reply_bytes=100) as opened:
        with pytest.raises(UpstreamError, match="more than 100 bytes"):
            await all_chunks(opened)
    async with upstream(says({"a": "x" * 100}), max_reply_bytes=100) as opened:
        with pytest.raises(UpstreamError, match="more than 100 bytes"):
            await opened.post(CHAT, BODY, {})


async def test_a_server_that_breaks_off_is_told_from_one_that_ends():
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await head(send, content_type="text/event-stream", content_length="1000")
        await more(send, EVENTS)
        raise ConnectionResetError

    async with upstream(answer) as opened, opened.stream(CHAT, BODY, {}, is_end) as stream:
        assert await anext(stream.events) == ("", {"a": 1})
        assert await anext(stream.events) == ("", {"b": "ü"})
        with pytest.raises(UpstreamError) as broken:
            await anext(stream.events)
    assert (broken.value.status, broken.value.code) == (502, "upstream_cut_off")


async def test_silence_is_a_time_out_before_the_head_and_within_the_body():
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        await gone(receive)

    async def stalls(scope: Scope, receive: Receive, send: Send) -> None:
        await head(send, content_type="text/event-stream")
        await more(send, EVENTS)
        await gone(receive)

    for answer in (never, stalls):
        error = await refusal(answer, silence_seconds=0.05)
        assert (error.status, error.code) == (504, "upstream_timeout")


@pytest.mark.filterwarnings("ignore:Sending a large body")
async def test_so_is_a_body_that_is_not_taken():
    done = asyncio.Event()

    async def takes_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(takes_nothing, "127.0.0.1", 0)
    url = "http://{}:{}/v1".format(*server.sockets[0].getsockname())
    async with server, Upstream(url, connect_seconds=0.1, silence_seconds=0.1) as opened:
        with pytest.raises(UpstreamError) as stuck:
            await opened.post(CHAT, {"x": "a" * 50_000_000}, {})
        done.set()
    assert (stuck.value.status, stuck.value.code) == (504, "upstream_timeout")


async def gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def hangs_up(scheme: str) -> AsyncIterator[tuple[Upstream, list[bytes]]]:
    """A server that closes each connection with the first bytes it gets; it notes them."""
    seen: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Upstream(f"{scheme}://127.0.0.1:{port}/v1") as opened:
        yield opened, seen


async def test_connecting_is_tried_three_times_but_a_request_is_sent_once():
    async with hangs_up("https") as (opened, seen):
        with pytest.raises(UpstreamError) as unreachable:
            await opened.post(CHAT, BODY, {})
        assert (unreachable.value.status, unreachable.value.code) == (502, "upstream_unreachable")
        assert len(seen) == 3
    async with hangs_up("http") as (opened, seen):
        with pytest.raises(UpstreamError) as broken:
            await opened.post(CHAT, BODY, {})
        assert broken.value.code == "upstream_cut_off"
        assert [s[:4] for s in seen] == [b"POST"]


def self_signed(folder: Path) -> ssl.SSLContext:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split()
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path, scheme: str):
    seen: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=self_signed(tmp_path))
    port = server.sockets[0].getsockname()[1]
    async with server, Upstream(f"{scheme}://127.0.0.1:{port}/v1") as opened:
        with pytest.raises(UpstreamError) as refused:
            await opened.post(CHAT, BODY, {})
    assert refused.value.code == "upstream_untrusted"
    assert str(refused.value) == "Upstream's certificate is not trusted: self-signed certificate."
    assert seen == []


def test_ssl_cert_file_says_whom_to_trust(tmp_path: Path):
    """In a process of its own, as the variable is read when it starts."""
    program = """
import asyncio
from test_upstream import BODY, CHAT, self_signed
from pathlib import Path
from shieldgate.upstream import Upstream

async def accept(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n{}")
    await writer.drain()

async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/certificate.pem", f"{folder}/key.pem")
    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with Upstream(f"https://127.0.0.1:{port}/v1") as opened:
        print((await opened.post(CHAT, BODY, {})).body)

import ssl, sys
folder = sys.argv[1]
asyncio.run(main())
"""
    self_signed(tmp_path)
    environment = {
        **os.environ,
        "SSL_CERT_FILE": str(tmp_path / "certificate.pem"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "{}\n"


async def test_a_server_without_tls_is_said_to_have_none():
    async with running(says({})) as url, Upstream(url.replace("http:", "https:")) as opened:
        with pytest.raises(UpstreamError, match="can't be reached by TLS") as refused:
            await opened.post(CHAT, BODY, {})
    assert refused.value.code == "upstream_unreachable"


async def test_a_server_that_is_not_there_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with Upstream(f"http://127.0.0.1:{port}") as opened:
        with pytest.raises(UpstreamError, match="can't be reached") as unreachable:
            await opened.models(MODELS, {})
    assert unreachable.value.code == "upstream_unreachable"


async def test_a_server_that_takes_no_connection_is_a_time_out():
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        url = "http://{}:{}/v1".format(*listener.getsockname())
        async with Upstream(url, connect_seconds=0.05) as opened:
            with pytest.raises(UpstreamError, match="take the connection") as late:
                await opened.post(CHAT, BODY, {})
    assert (late.value.status, late.value.code) == (504, "upstream_timeout")


# Leaving


@pytest.mark.parametrize("streamed", [True, False])
async def test_who_is_cancelled_closes_the_connection_at_once(streamed: bool):
    entered, left = asyncio.Event(), asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if streamed:
            await head(send, content_type="text/event-stream")
            await more(send, EVENTS)
        entered.set()
        await gone(receive)
        left.set()

    async with upstream(answer) as opened:
        call = all_chunks(opened) if streamed else opened.post(CHAT, BODY, {})
        calling = asyncio.create_task(call)
        await asyncio.wait_for(entered.wait(), 10)
        calling.cancel()
        await asyncio.wait_for(left.wait(), 10)
        with pytest.raises(asyncio.CancelledError):
            await calling


async def test_who_leaves_a_stream_before_its_end_closes_the_connection_at_once():
    left = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await head(send, content_type="text/event-stream")
        await more(send, EVENTS)
        await gone(receive)
        left.set()

    async with upstream(answer) as opened:
        async with opened.stream(CHAT, BODY, {}, is_end) as stream:
            assert await anext(stream.events) == ("", {"a": 1})
        await asyncio.wait_for(left.wait(), 10)


async def test_two_hundred_streams_are_open_at_once_and_none_waits_for_another():
    together = asyncio.Barrier(200)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope["headers"])[b"openai-project"].decode()
        await head(send, content_type="text/event-stream")
        await asyncio.wait_for(together.wait(), 20)
        await more(send, f'data: {{"for": "{name}"}}\n\n'.encode(), last=True)

    async with upstream(answer) as opened:
        names = [str(n) for n in range(200)]
        answers = await asyncio.gather(*(all_chunks(opened, {"openai-project": n}) for n in names))
    assert answers == [[{"for": n}] for n in names]


# What an Upstream is made of


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/v1",
        "localhost:8000",
        "ftp://h/v1",
        "http://",
        "http://[::1/v1",
        "http://u:secret@h/v1",
        "http://h/v1?a=secret",
        "http://h/v1#secret",
    ],
)
def test_a_url_that_can_not_be_one_is_refused_without_being_repeated(url: str):
    with pytest.raises(ConfigurationError, match=r"http://localhost:8000/v1") as refused:
        Upstream(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["", " ", "sec ret", "sec\nret", "secrét"])
def test_a_key_that_is_no_header_is_refused_without_being_repeated(key: str):
    with pytest.raises(ConfigurationError, match="key is refused") as refused:
        Upstream("http://h/v1", key=key)
    assert "sec" not in str(refused.value)


async def test_an_upstream_that_is_not_open_says_so():
    with pytest.raises(RuntimeError, match="async with"):
        await Upstream("http://h/v1").post(CHAT, BODY, {})
