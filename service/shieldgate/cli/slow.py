"""What uvicorn leaves open: how long a caller may take to send a head, or to read a reply."""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded(seconds: float) -> type[H11Protocol]:
    """Make a protocol that closes a connection whose next head is not there within `seconds`.

    uvicorn itself closes connections that are silent between two requests, and waits for ever for
    a first head, and for any that comes byte by byte.
    """

    class Bounded(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._giving_up: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._hurry()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._hurry()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
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
