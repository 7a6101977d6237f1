"""The client of the model behind the gateway: any deployment that speaks JSON and streams events.

Nothing is sent twice, except where no connection came about: once a request is on its way, the
model may be at work, and its answer costs whether it is read or not. Callers' clients retry by
themselves.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import aiohttp
import orjson

from shieldgate.dialects.interface import Endpoint
from shieldgate.errors import UpstreamError
from shieldgate.lenient_json import JsonReader
from shieldgate.sse import Decoder, Event
from shieldgate.upstream.configured import checked_key, checked_proxy, checked_url, read_headers
from shieldgate.upstream.failures import refuse, reported, request_id, transport_errors
from shieldgate.version import __version__

_TRACING = ("traceparent", "tracestate")

# How long to wait, in seconds, before connecting is tried another time.
_PAUSES = (0.0, 0.5)
_UNCONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: its JSON object, and upstream's request id where it gave one."""

    body: dict[str, Any]
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Stream:
    """A streamed reply: the name and JSON object of each event in order; raises UpstreamError.

    It ends with what the dialect takes for the end, or with the connection, because not every
    server says that it has finished. So an answer that was cut off shows only in what it says.
    """

    events: AsyncIterator[tuple[str, dict[str, Any]]]
    request_id: str | None


class Upstream:
    """Calls one deployment; `async with` opens and closes its connections."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        headers: str = "",
        proxy: str | None = None,
        passes_account: bool = True,
        connect_seconds: float = 5.0,
        silence_seconds: float = 300.0,
        max_reply_bytes: int = 64 * 2**20,
    ) -> None:
        """Take the base URL, such as `http://localhost:8000/v1`; raise ConfigurationError.

        `key` is the operator's, sent in place of what tells who the caller is; without it, the
        caller's own goes on where `passes_account` says so. `headers` are parted by commas: those
        with `=` and a value are sent with each request, of the others the caller's goes on.
        `proxy` is a URL, or `environment` for what its variables say. `silence_seconds` is the
        longest wait for the next byte; a reply that is not streamed is silent until it is complete.
        `max_reply_bytes` bounds a reply, streamed or not.
        """
        self.url = checked_url(url)
        self._key = None if key is None else checked_key(key)
        self._own_headers, self._passed_headers = read_headers(headers)
        self._proxy = checked_proxy(proxy, self.url)
        self._passes_account = passes_account and key is None
        self._connect_seconds = connect_seconds
        self._silence_seconds = silence_seconds
        self._max_bytes = max_reply_bytes
        self._client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        self._client = aiohttp.ClientSession(
            # Shorter than uvicorn's 5 s, so as not to send into a connection being closed.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            timeout=aiohttp.ClientTimeout(
                sock_connect=self._connect_seconds, sock_read=self._silence_seconds
            ),
            headers={"user-agent": f"shieldgate/{__version__}", "accept-encoding": "identity"},
            auto_decompress=False,
            # One caller's cookies are nothing for the next one's request.
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        await self._opened().close()

    async def post(
        self, endpoint: Endpoint, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Reply:
        """Send `body` to `endpoint` and read the whole reply; raise UpstreamError.

        `headers` are the caller's, their names in lower case; only what upstream needs to know
        goes on.
        """
        async with self._request("POST", endpoint, headers, orjson.dumps(body)) as response:
            return await self._whole(response)

    @asynccontextmanager
    async def stream(
        self,
        endpoint: Endpoint,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        is_end: Callable[[Event], bool],
    ) -> AsyncIterator[Stream]:
        """Send `body` to `endpoint` and give the reply as it comes; raise UpstreamError.

        `headers` as for `post`. An event that `is_end` is the last one, and not given. Whoever
        leaves the block before the end, or is cancelled, closes the connection at once, so that
        the model can stop.
        """
        async with self._request("POST", endpoint, headers, orjson.dumps(body)) as response:
            kind = response.headers.get("content-type", "")
            if not kind.lower().startswith("text/event-stream"):
                refuse(response, "answered without a stream; does it support `stream: true`?")
            async with aclosing(self._events(response, is_end)) as events:
                yield Stream(events, request_id(response))

    async def models(self, endpoint: Endpoint, headers: Mapping[str, str]) -> list[dict[str, Any]]:
        """List upstream's models; raise UpstreamError. `headers` as for `post`."""
        async with self._request("GET", endpoint, headers) as response:
            models = (await self._whole(response)).body.get("data")
            if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
                refuse(response, "listed its models in an unknown form")
            return models

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and give the reply's head, unless it is a refusal."""
        response = await self._sent(
            method, endpoint.path, self._headers(endpoint, headers), content
        )
        try:
            if not 200 <= response.status <= 299:
                await self._raise_refusal(response, endpoint.path)
            if _encoded(response):
                refuse(response, "compressed its reply, which it was asked not to")
            yield response
        finally:
            response.close()

    async def _sent(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the reply's head; only connecting is tried again."""

        async def send() -> aiohttp.ClientResponse:
            # Around it all, because by itself aiohttp waits for ever for a body to be taken.
            async with asyncio.timeout(self._connect_seconds + self._silence_seconds):
                return await self._opened().request(
                    method,
                    self.url + path,
                    headers=headers,
                    data=content,
                    proxy=self._proxy,
                    allow_redirects=False,
                )

        with transport_errors():
            for pause in _PAUSES:
                try:
                    return await send()
                except aiohttp.ClientConnectorCertificateError:
                    raise  # which no second try heals
                except _UNCONNECTED:
                    await asyncio.sleep(pause)
            return await send()

    def _headers(self, endpoint: Endpoint, caller: Mapping[str, str]) -> dict[str, str]:
        account = endpoint.account if self._passes_account else ()
        names = (*_TRACING, *endpoint.passes, *self._passed_headers, *account)
        headers = {name: _utf8(name, caller[name]) for name in names if name in caller}
        headers |= self._own_headers
        headers["content-type"] = "application/json"
        if self._key:
            headers[endpoint.credential.header] = endpoint.credential.value(self._key)
        return headers

    async def _whole(self, response: aiohttp.ClientResponse) -> Reply:
        body = _json_object(await self._read(response))
        if body is None:
            refuse(response, "answered with something that is no JSON object")
        # A response that failed has the form of one that didn't.
        if body.get("error") and body.get("object") != "response":
            raise reported(body, response)
        return Reply(body, request_id(response))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        return b"".join([piece async for piece in self._pieces(response)])

    async def _events(
        self, response: aiohttp.ClientResponse, is_end: Callable[[Event], bool]
    ) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        decoder, reader = Decoder(self._max_bytes), JsonReader(streamed=True)
        async with aclosing(self._pieces(response)) as pieces:
            async for piece in pieces:
                for event in decoder.feed(piece):
                    if is_end(event):
                        return
                    if event.data:
                        yield event.name, _payload(event, reader, response)

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        """Give the body as it comes, up to the limit."""
        size = 0
        while True:
            with transport_errors():
                piece = await response.content.readany()
            if not piece:
                return
            size += len(piece)
            if size > self._max_bytes:
                refuse(response, f"answered with more than {self._max_bytes} bytes")
            yield piece

    async def _raise_refusal(self, response: aiohttp.ClientResponse, path: str) -> NoReturn:
        status = response.status
        if not 400 <= status <= 599:
            refuse(response, f"answered {status}; give the URL that serves {path}")
        if status in (401, 403) and not self._passes_account:
            # Not the caller's doing, so neither its status nor its text is for the caller.
            why = "refused the operator's key" if self._key else "wants a key of the operator"
            refuse(response, f"{why} ({status})", "upstream_refused_key")
        payload = None if _encoded(response) else _json_object(await self._read(response))
        raise reported(payload, response, status)

    def _opened(self) -> aiohttp.ClientSession:
        if self._client is None:
            raise RuntimeError("Open the upstream first: `async with upstream`.")
        return self._client


def _utf8(name: str, value: str) -> str:
    """Give a header's bytes, which ASGI reads as Latin-1, as aiohttp will write them."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise UpstreamError(
            f"The header {name} can't go upstream: it is not written in UTF-8.",
            status=400,
            code="invalid_header",
        ) from None


def _payload(event: Event, reader: JsonReader, response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Read one event of a stream; raise UpstreamError, also where it reports an error."""
    payload = _json_object(event.data, reader)
    if event.name == "error" or (payload and payload.get("error")):
        raise reported(payload, response)
    if payload is None:
        refuse(response, "streamed something that is no JSON object")
    return payload


def _json_object(text: bytes | str, reader: JsonReader | None = None) -> dict[str, Any] | None:
    try:
        value = (reader or JsonReader()).read(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _encoded(response: aiohttp.ClientResponse) -> bool:
    """Tell whether the body is compressed; a few bytes of it could then be any number."""
    return str(response.headers.get("content-encoding", "identity")).lower() != "identity"
