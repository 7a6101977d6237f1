"""Who may in: a key for each request, and no more requests than it allows."""

from collections.abc import Iterable

import structlog
from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from shieldgate.access.keys import Key, LiveKeys
from shieldgate.access.rate_limits import RateLimiter
from shieldgate.errors import LimitReached, NotAllowed, UnknownKey
from shieldgate.gateway.errors import answer

# What probes and newcomers read: nothing of anybody's.
OPEN = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
ADMIN = frozenset({"/metrics"})


class Admission:
    """Admits requests that bear a key, before their body is read."""

    def __init__(
        self, app: ASGIApp, keys: LiveKeys, limiter: RateLimiter, routes: Iterable[BaseRoute]
    ) -> None:
        """Wrap an app; by its `routes` refusals are counted."""
        self._app = app
        self._keys = keys
        self._limiter = limiter
        self._routes = {getattr(route, "path", ""): route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        try:
            key = self._key(scope)
            scope.setdefault("state", {})["key"] = key
            async with self._limiter.admit(key.allowed):
                with structlog.contextvars.bound_contextvars(caller=key.name):
                    await self._app(scope, receive, send)
        except (UnknownKey, NotAllowed, LimitReached) as refused:
            scope["route"] = self._routes.get(scope["path"])
            await answer(refused)(scope, receive, send)

    def _key(self, scope: Scope) -> Key:
        """Find the key of a request; raise UnknownKey and NotAllowed."""
        scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise UnknownKey("Give an API key of this server: `authorization: Bearer sg-...`.")
        key = self._keys.current.find(secret.strip())
        if key is None:
            raise UnknownKey("The API key is not one of this server's.")
        if scope["path"] in ADMIN and not key.admin:
            raise NotAllowed("This takes a key with `admin: true`.")
        return key
