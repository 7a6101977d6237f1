"""Who may in without a key: this machine, by its own names."""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shieldgate.errors import NotAllowed
from shieldgate.gateway.errors import problem_of, respond
from shieldgate.gateway.state import state_of


class LoopbackMiddleware:
    """Refuses what web pages of others make a browser on this machine ask `below` a path.

    A page can let its own name point here (DNS rebinding), which `Host` shows, and it can send
    what needs no leave of ours, which `Origin` shows. Pages of `origins` may.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], below: str) -> None:
        self._app = app
        self._origins = origins
        self._below = below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer that it is not allowed."""
        here = scope["type"] == "http" and scope["path"].startswith(self._below)
        if here and (why := self._refusal(Headers(scope=scope))):
            reply = respond(problem_of(NotAllowed(why)), state_of(scope).wording)
            await reply(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        if not all(_is_loopback(f"//{host}") for host in headers.getlist("host")):
            return (
                "Without API keys this server is asked by a name of its own machine, such as "
                "localhost. The operator can give it --keys, or --keyless to answer to any name "
                "outside /admin/."
            )
        for origin in headers.getlist("origin"):
            if not ({origin, "*"} & {*self._origins} or _is_loopback(origin)):
                return (
                    "Without API keys this server is asked by pages of its own machine only. The "
                    "operator can name other pages with --cors-origins."
                )
        return None


def _is_loopback(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
    except ValueError:
        return False
    # RFC 6761: nobody else can have a name under it.
    if f".{name.removesuffix('.')}".endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
