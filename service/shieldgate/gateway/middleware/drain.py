"""A stopping server finishes what it has begun, up to a deadline."""

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shieldgate.dialects.interface import Problem
from shieldgate.gateway.errors import respond
from shieldgate.gateway.state import state_of

_STOPPING = Problem(
    503,
    "server_stopping",
    "The server is stopping, and this could not be finished in time. Try again.",
    headers={"retry-after": "1"},
)


class Drain:
    """Knows the requests in progress, and bounds them once the server stops."""

    def __init__(self) -> None:
        self._running: set[asyncio.Timeout] = set()
        self._awaited: set[asyncio.Timeout] = set()
        self._deadline: float | None = None

    @property
    def stopping(self) -> bool:
        """Tell whether the server was told to stop."""
        return self._deadline is not None

    @property
    def awaited(self) -> int:
        """Count the requests that were in progress when the server was told to stop, and still are.

        Those that come later are answered, but not waited for: under load they would never end.
        """
        return len(self._awaited)

    def begin(self, seconds: float) -> None:
        """Give all requests, and those yet to come, `seconds` from now."""
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._awaited = set(self._running)
        for limit in self._running:
            limit.reschedule(self._deadline)

    def enter(self) -> asyncio.Timeout:
        """Count a request in; gives its limit, to be entered at once."""
        limit = asyncio.timeout_at(self._deadline)
        self._running.add(limit)
        return limit

    def leave(self, limit: asyncio.Timeout) -> None:
        """Count a request out."""
        self._running.discard(limit)
        self._awaited.discard(limit)


class DrainMiddleware:
    """Counts requests in and out, and ends in a well-formed way those that meet the deadline."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a request in and out."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = state_of(scope)
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if self._drain.stopping:
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)
            # Not before, because sending waits for a slow reader, and the deadline may come first.
            if message["type"] == "http.response.body":
                state.complete |= not message.get("more_body")

        limit = self._drain.enter()
        try:
            async with limit:
                await self._app(scope, receive, watched)
        except TimeoutError:
            if not limit.expired():
                raise
            state.outcome = "cut_off"
            if not begun:
                await respond(_STOPPING, state.wording)(scope, receive, watched)
            elif state.stream and not state.complete:
                last = state.stream.error_event(state.wording.error(_STOPPING), state.left)
                await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            self._drain.leave(limit)
