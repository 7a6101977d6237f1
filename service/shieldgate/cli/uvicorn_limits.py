"""What uvicorn lacks of HTTP: limits in time and length, offers to ignore, and HTTP/1.0.

`limited_protocol` overrides methods that are no public interface of uvicorn's, whose next minor
version is therefore ruled out (pyproject.toml). Its other protocol, h11, bounds the length of heads
but not their time, and takes a sixth more of the processor for a moderation that is in the cache.
"""

import asyncio
import socket
from typing import Any

import httptools
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_MAX_HEAD_BYTES = 65_536


def limited_protocol(head_seconds: float) -> type[HttpToolsProtocol]:
    """Make a protocol that closes a connection whose next head is not there in `head_seconds`.

    uvicorn itself closes connections that are silent between two requests, and waits for ever for
    a first head, and for any that comes byte by byte, however long it grows. And of requests that
    are sent one after another without waiting for replies, it tells only the last that the caller
    has left.

    Offers of another protocol (`Upgrade: h2c`) are ignored, as RFC 9110, section 7.8, allows;
    uvicorn would lose the request's body. A reply to HTTP/1.0 that has no length ends with the
    connection; uvicorn would write it in chunks, which came with HTTP/1.1.
    """

    class LimitedProtocol(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._head_timer: asyncio.TimerHandle | None = None
            self._head_bytes = 0
            self._served: RequestResponseCycle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            self._head_bytes += len(data)
            self._feed(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")
            self._watch_head()

        def _feed(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            rest = [memoryview(data)]
            while rest:
                piece = rest.pop()
                try:
                    self.parser.feed_data(piece)
                except httptools.HttpParserError:
                    self.send_400_response("Invalid HTTP request received.")
                    return
                except httptools.HttpParserUpgrade as offer:
                    if self._offers_protocol():
                        rest += [piece[offer.args[0] :], memoryview(self._head_without_offer())]
                        self.parser = httptools.HttpRequestParser(self)
                        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

        def _offers_protocol(self) -> bool:
            # CONNECT offers nothing: it wants a tunnel.
            return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

        def _head_without_offer(self) -> bytes:
            """Write the head anew; the parser takes what follows an offer for no HTTP."""
            version = self.parser.get_http_version().encode()
            start = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
            fields = [b"%s: %s\r\n" % f for f in self.headers if f[0] != b"upgrade"]
            return b"".join([start, *fields, b"\r\n"])

        def on_headers_complete(self) -> None:
            self._head_bytes = 0
            if not self._offers_protocol():
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._head_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._head_bytes = 0
            if not self._offers_protocol():
                super().on_message_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._served = cycle
            http10 = cycle.scope["http_version"] == "1.0"
            super()._start_asgi_task(cycle, _unframed(app, cycle) if http10 else app)

        def send_400_response(self, msg: str) -> None:
            served = self._served
            if served and served.response_started and not served.response_complete:
                # Within another request's reply it would be read as a part of it.
                self.transport.close()
            else:
                super().send_400_response(msg)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._served and not self._served.response_complete:
                self._served.disconnected = True
                self._served.message_event.set()
            self._cancel_head_timer()

        def _watch_head(self) -> None:
            """Start the timer where a head is awaited, once for each; else cancel it."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._cancel_head_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(head_seconds, self._head_timed_out)

        def _cancel_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _head_timed_out(self) -> None:
            self._head_timer = None
            # A pipelined head may have been completed without a byte more.
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return LimitedProtocol


def _unframed(app: Any, cycle: RequestResponseCycle) -> Any:
    """Let `app` end a reply without a length by closing the connection."""

    async def unframed(scope: Scope, receive: Receive, send: Send) -> None:
        writes = False

        async def send_unframed(message: Message) -> None:
            nonlocal writes
            if message["type"] == "http.response.start" and scope["method"] != "HEAD":
                writes = "content-length" not in Headers(raw=message["headers"])
                if writes:
                    # For uvicorn it is a reply without a body, so that it frames none.
                    cycle.scope = {**cycle.scope, "method": "HEAD"}
            elif writes and not cycle.disconnected:
                cycle.transport.write(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_unframed)

    return unframed


def set_user_timeout(listener: socket.socket, seconds: float) -> None:
    """Let the system end connections whose peer takes nothing of what was sent for `seconds`.

    By TCP_USER_TIMEOUT (RFC 5482), which the connections inherit; does nothing where there is none.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, int(seconds * 1000))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
