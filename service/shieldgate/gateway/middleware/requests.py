"""The outermost layer around the routes: request ids, the request's state, metrics and logs."""

from collections.abc import Mapping, MutableMapping
from time import perf_counter
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shieldgate.dialects.interface import Problem, Wording
from shieldgate.gateway.errors import respond
from shieldgate.gateway.state import RequestState
from shieldgate.scoring import turn
from shieldgate.telemetry import Outcome, Telemetry

log = structlog.get_logger(__name__)

# Probes, the files of one page, and what that asks every few seconds.
_OFTEN = {
    *("/healthz", "/readyz", "/metrics"),
    *("/console/{name}", "/admin/figures", "/admin/decisions"),
}
_REFUSALS: dict[int, Outcome] = {429: "limited", 499: "left"}


class RequestMiddleware:
    """Gives each request an id and a state, answers unknown exceptions, and counts every reply.

    `wordings` are those of their paths and of what is below; whatever else is worded by `default`.
    A proxy may serve all paths under `root_path`.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        wordings: Mapping[str, Wording],
        default: Wording,
        root_path: str,
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._root_path = root_path
        self._wordings = wordings
        self._default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and count how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._as_routed(scope)
        state = RequestState(self._wording(scope["path"]))
        state.attach(scope)
        # Without keys, those on a connection take turns with those on others.
        turn.caller.set("{}:{}".format(*scope["client"]) if scope.get("client") else "")
        request_id = f"req_{uuid4().hex}"
        started = perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers[state.wording.request_id] = request_id
                if state.profile:
                    headers["x-shieldgate-profile"] = state.profile
                if state.unscreened:
                    headers["x-shieldgate-unscreened"] = str(state.unscreened)
                if state.limits:
                    headers.update(state.limits())
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
                outcome = state.outcome or _outcome(status)
            except Exception:
                log.exception("unexpected error", route=_route(scope))
                outcome = "failed"
                if status is None:
                    message = f"Something went wrong on our side. Request id: {request_id}."
                    reply = respond(Problem(500, "internal_error", message), state.wording)
                    await reply(scope, receive, send_with_id)
            finally:
                route, seconds = _route(scope), perf_counter() - started
                self._telemetry.ended(route, status or 500, outcome, seconds)
                answered(route, status or 500, outcome)
                write = log.debug if route in _OFTEN else log.info
                write(
                    "request",
                    route=route,
                    status=status,
                    outcome=outcome,
                    seconds=round(seconds, 4),
                    **({"caller": state.key.name} if state.key else {}),
                )

    def _wording(self, path: str) -> Wording:
        """Find the wording of a path: its own, or that of the path that it is below."""
        while path not in self._wordings and path:
            path = path.rpartition("/")[0]
        return self._wordings.get(path, self._default)

    def _as_routed(self, scope: Scope) -> Scope:
        """Give the request that the routes know: without prefix, and HEAD as the GET that it is.

        The server, whose own scope stays as it is, leaves out the body of what answers HEAD.
        """
        path, method = scope["path"], scope["method"]
        if self._root_path and f"{path}/".startswith(f"{self._root_path}/"):
            path = path.removeprefix(self._root_path) or "/"
        return {
            **scope,
            "root_path": "",  # else the router would take the prefix away once more
            "path": path,
            "method": "GET" if method == "HEAD" else method,
        }


def _route(scope: MutableMapping[str, Any]) -> str:
    """Name the route by its pattern: the path itself is what the caller wrote."""
    return str(getattr(scope.get("route"), "path", "unknown"))


def _outcome(status: int | None) -> Outcome:
    """Give the outcome that the status says."""
    if status is None or status >= 500:
        return "failed"
    if status < 400:
        return "answered"
    return _REFUSALS.get(status, "refused")
