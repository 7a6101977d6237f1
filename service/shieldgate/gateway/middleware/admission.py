"""Who may in: a key for each request, and no more requests than it allows."""

import math
from collections.abc import Iterable

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from shieldgate.access.keys import Key, LiveKeys
from shieldgate.access.rate_limits import RateLimiter, Standing
from shieldgate.dialects.interface import Wording
from shieldgate.errors import LimitReached, NotAllowed, ShieldgateError, UnknownKey
from shieldgate.gateway import console, docs_page
from shieldgate.gateway.errors import problem_of, respond
from shieldgate.gateway.state import state_of
from shieldgate.scoring import turn

# What probes and newcomers read: nothing of anybody's.
OPEN = frozenset(
    {"/healthz", "/health", "/readyz", "/openapi.json", *docs_page.PATHS, *console.PATHS}
)
ADMIN = ("/metrics", "/admin/")
LIMIT_HEADERS = ("x-ratelimit-limit-{}", "x-ratelimit-remaining-{}", "x-ratelimit-reset-{}")


class AdmissionMiddleware:
    """Admits requests that bear a key, before their body is read.

    By `routes` the refused ones are counted.
    """

    def __init__(
        self, app: ASGIApp, keys: LiveKeys, limiter: RateLimiter, routes: Iterable[BaseRoute]
    ) -> None:
        self._app = app
        self._keys = keys
        self._limiter = limiter
        self._routes = {getattr(route, "path", ""): route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit a request, or answer that it is not admitted."""
        # Browsers ask for OPTIONS before they show a key.
        if scope["type"] != "http" or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        state = state_of(scope)
        try:
            state.key = key = self._key(scope, state.wording)
            state.limits = lambda: _headers(self._limiter.standing(key.allowed))
            turn.caller.set(key.name)
            async with self._limiter.admit(key.allowed):
                with structlog.contextvars.bound_contextvars(caller=key.name):
                    await self._app(scope, receive, send)
        except (UnknownKey, NotAllowed, LimitReached) as refused:
            scope["route"] = self._routes.get(scope["path"])
            await _refusal(refused, state.wording)(scope, receive, send)

    def _key(self, scope: Scope, wording: Wording) -> Key:
        """Find the key of a request; raise UnknownKey and NotAllowed."""
        headers = Headers(scope=scope)
        shown = (credential.secret(headers) for credential in wording.credentials)
        secret = next((secret for secret in shown if secret is not None), None)
        if secret is None:
            wanted = wording.credentials[0]
            raise UnknownKey(
                f"Give an API key of this server: `{wanted.header}: {wanted.value('sg-...')}`."
            )
        key = self._keys.current.find(secret)
        if key is None:
            raise UnknownKey("The API key is not one of this server's.")
        if scope["path"].startswith(ADMIN) and not key.admin:
            raise NotAllowed("This takes a key with `admin: true`.")
        return key


def _headers(standings: Iterable[Standing]) -> dict[str, str]:
    """Write how a caller stands as OpenAI does (its guide on rate limits), in our units."""
    headers: dict[str, str] = {}
    for one in standings:
        said = (one.limit, one.remaining, duration(one.seconds))
        names = (name.format(one.what) for name in LIMIT_HEADERS)
        headers |= {name: str(value) for name, value in zip(names, said, strict=True)}
    return headers


def duration(seconds: float) -> str:
    """Write a time of up to a minute as OpenAI does: 120ms, 1.5s, 1m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds / 1000, 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"


def _refusal(error: ShieldgateError, wording: Wording) -> Response:
    response = respond(problem_of(error), wording)
    if isinstance(error, UnknownKey) and (scheme := wording.credentials[0].scheme):
        response.headers["www-authenticate"] = scheme
    return response
