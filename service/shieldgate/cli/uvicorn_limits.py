"""What uvicorn leaves open: how long a head may take and be, and how long a reply goes unread."""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_MOST_HEAD_BYTES = 65_536


def bounded(seconds: float) -> type[HttpToolsProtocol]:
    """Make a protocol that closes a connection whose next head is not there within `seconds`.

    uvicorn itself closes connections that are silent between two requests, and waits for ever for
    a first head, and for any that comes byte by byte, however long it grows. And of requests that
    are sent one after another without waiting for replies, it tells only the last that the caller
    has left.
    """

    class Bounded(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._giving_up: asyncio.TimerHandle | None = None
            self._unread = 0
            self._served: RequestResponseCycle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._hurry()

        def data_received(self, data: bytes) -> None:
            self._unread += len(data)
            super().data_received(data)
            if self._unread > _MOST_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")
            self._hurry()

        def on_headers_complete(self) -> None:
            self._unread = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._unread = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._unread = 0
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
            self._relax()

        def _hurry(self) -> None:
            """Start the clock where a head is awaited, once for each; else stop it."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._relax()
            elif self._giving_up is None:
                self._giving_up = self.loop.call_later(seconds, self._give_up)

        def _relax(self) -> None:
            if self._giving_up is not None:
                self._giving_up.cancel()
                self._giving_up = None

        def _give_up(self) -> None:
            self._giving_up = None
            # A pipelined head may have been completed without a byte more.
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Bounded


def drop_silent_readers(listener: socket.socket, seconds: float) -> None:
    """Let the system end connections that take nothing of what was sent for `seconds`.

    Does nothing where the system can't.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, int(seconds * 1000))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
