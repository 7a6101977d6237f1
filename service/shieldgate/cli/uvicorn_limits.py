"""Limits that uvicorn lacks: how long a head may take and be, and how long a reply goes unread.

`limited_protocol` overrides methods that are no public interface of uvicorn's, whose next minor
version is therefore ruled out (pyproject.toml). Its other protocol, h11, bounds the length of heads
but not their time, and takes a sixth more of the processor for a moderation that is in the cache.
"""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_MAX_HEAD_BYTES = 65_536


def limited_protocol(head_seconds: float) -> type[HttpToolsProtocol]:
    """Make a protocol that closes a connection whose next head is not there in `head_seconds`.

    uvicorn itself closes connections that are silent between two requests, and waits for ever for
    a first head, and for any that comes byte by byte, however long it grows. And of requests that
    are sent one after another without waiting for replies, it tells only the last that the caller
    has left.
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
            super().data_received(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")
            self._watch_head()

        def on_headers_complete(self) -> None:
            self._head_bytes = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._head_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._head_bytes = 0
            super().on_message_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._served = cycle
            super()._start_asgi_task(cycle, app)

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


def set_user_timeout(listener: socket.socket, seconds: float) -> None:
    """Let the system end connections whose peer takes nothing of what was sent for `seconds`.

    By TCP_USER_TIMEOUT (RFC 5482), which the connections inherit; does nothing where there is none.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, int(seconds * 1000))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
