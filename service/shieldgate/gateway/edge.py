"""The outermost layers around the routes: request ids, accounts, and the limit on bodies."""

import asyncio
from collections.abc import MutableMapping
from time import perf_counter
from typing import Any
from uuid import uuid4

import structlog
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shieldgate.access.keys import Key
from shieldgate.gateway.errors import reply
from shieldgate.telemetry import Outcome, Telemetry

log = structlog.get_logger(__name__)

_PROBES = {"/healthz", "/readyz", "/metrics"}
_REFUSALS: dict[int, Outcome] = {429: "limited", 499: "left"}


class Account:
    """Gives each request an id, answers unknown exceptions, and accounts for every reply."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        """Wrap an app."""
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid4().hex}"
        started = perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if headers.get("content-type", "").startswith("text/event-stream"):
                    self._telemetry.first_byte(_route(scope), perf_counter() - started)
            await send(message)

        self._telemetry.began()
        outcome: Outcome = "cut_off"  # for a server that stops meanwhile
        traces = self._telemetry.traces
        with (
            traces.request(Headers(scope=scope).get("traceparent")) as answered,
            structlog.contextvars.bound_contextvars(request_id=request_id, **traces.ids()),
        ):
            try:
                await self._app(scope, receive, send_with_id)
                outcome = _outcome(scope, status)
            except Exception:
                log.exception("unexpected error", route=_route(scope))
                outcome = "failed"
                if status is None:
                    message = f"Something went wrong on our side. Request id: {request_id}."
                    answer = reply(500, message, "server_error", code="internal_error")
                    await answer(scope, receive, send_with_id)
            finally:
                route, seconds = _route(scope), perf_counter() - started
                self._telemetry.ended(route, status or 500, outcome, seconds)
                answered(route, status or 500, outcome)
                write = log.debug if route in _PROBES else log.info
                write(
                    "request",
                    route=route,
                    status=status,
                    outcome=outcome,
                    seconds=round(seconds, 4),
                    **_caller(scope),
                )


class BodyLimit:
    """Refuses bodies that are too long, that take too long to arrive, or that are compressed.

    Whoever reads such a body gets the refusal raised.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        """Wrap an app; a body has `seconds` to arrive, counted from the end of its head."""
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        deadline = asyncio.get_running_loop().time() + self._seconds
        read = 0
        complete = False

        async def receive_some() -> Message:
            nonlocal read, complete
            if complete:
                # What comes now is that the caller hangs up, whenever that is.
                return await receive()
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise HTTPException(
                    415,
                    "The body is compressed. Send it as it is, without `content-encoding`.",
                    {"accept-encoding": "identity"},
                )
            if size > self._max_bytes:
                raise self._too_long()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"The body did not arrive within {self._seconds:g} s.",
                    {"connection": "close"},
                ) from None
            complete = not message.get("more_body")
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise self._too_long()
            return message

        await self._app(scope, receive_some, send)

    def _too_long(self) -> HTTPException:
        return HTTPException(
            413, f"The body is longer than the {self._max_bytes} bytes that are allowed."
        )


def _route(scope: MutableMapping[str, Any]) -> str:
    """Name the route by its pattern: the path itself is what the caller wrote."""
    return str(getattr(scope.get("route"), "path", "unknown"))


def _caller(scope: Scope) -> dict[str, str]:
    key: Key | None = scope.get("state", {}).get("key")
    return {"caller": key.name} if key else {}


def _outcome(scope: Scope, status: int | None) -> Outcome:
    """Give the outcome that a route has named, else what the status says."""
    named: Outcome | None = scope.get("state", {}).get("outcome")
    if named:
        return named
    if status is None or status >= 500:
        return "failed"
    if status < 400:
        return "answered"
    return _REFUSALS.get(status, "refused")
