"""One server elsewhere, asked over HTTP: what its statuses mean, and what may be asked again."""

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.given_settings import flag
from shieldgate.scoring.remote.observer import RemoteObserver, RemoteReply
from shieldgate.version import __version__

CONNECT_SECONDS = 5.0
_MAX_REPLY_BYTES = 16 * 2**20


class NothingSpent(ScorerUnavailable):
    """A server did not begin with a request, so that it may be sent again, or to another."""


class Busy(NothingSpent):
    """A server takes nothing more for now."""


class RequestRefused(ScorerUnavailable):
    """A server takes the request to be wrong; `detail` is its own word, which may quote it."""

    def __init__(self, message: str, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class Connection:
    """Asks one server; `engine` is its kind, once that is known, for the metrics."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        seconds: float,
        texts: int,
        observer: RemoteObserver | None = None,
    ) -> None:
        """Take a URL with or without its /v1; `texts` is how many are there at most."""
        self.root = url.rstrip("/").removesuffix("/v1")
        self.name = urlsplit(url).netloc
        self.engine = "unknown"
        self.turn = asyncio.Semaphore(texts)
        self._texts = texts
        self._session = session
        self._seconds = seconds
        self._observer = observer

    def limit(self, slots: int) -> None:
        """Let no more texts in than the server has places for."""
        self.turn = asyncio.Semaphore(min(self._texts, slots))

    async def get(self, path: str) -> Any:
        """Read what is at a path; raise as `post` does."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a request and read its JSON; whoever is cancelled closes the connection.

        Raises NothingSpent, RequestRefused, or ScorerUnavailable.
        """
        return await self._ask("POST", path, orjson.dumps(body))

    async def _ask(self, method: str, path: str, content: bytes | None) -> Any:
        began = perf_counter()
        outcome: RemoteReply | None = None
        try:
            status, retry_after, reply = await self._exchange(method, path, content)
            found = _parsed(reply)
            outcome = _outcome(status)
            if outcome == "answered" and found is None:
                outcome = "failed"
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as failure:
            outcome = "unreachable"
            raise NothingSpent(
                f"{self.name} can't be reached ({type(failure).__name__})."
            ) from None
        except TimeoutError:
            outcome = "timeout"
            raise ScorerUnavailable(
                f"{self.name} did not answer within {self._seconds:g} seconds "
                f"({flag('model_seconds')})."
            ) from None
        except (aiohttp.ClientError, _TooLong) as failure:
            outcome = "failed"
            raise ScorerUnavailable(
                f"{self.name} broke off its reply ({type(failure).__name__})."
            ) from None
        finally:
            if self._observer and outcome:
                self._observer.remote_request(self.engine, outcome, perf_counter() - began)
        match outcome:
            case "answered":
                return found
            case "busy":
                kind = Busy if status == 429 else NothingSpent
                raise kind(
                    f"{self.name} takes nothing now (status {status}).", retry_after=retry_after
                )
            case "refused":
                message = f"{self.name}{path} refused a request (status {status})."
                raise RequestRefused(
                    message, status, _detail(found) or reply[:200].decode("latin-1")
                )
        raise ScorerUnavailable(
            f"{self.name}{path} failed (status {status})."
            if found is not None
            else f"{self.name}{path} answered with something that is no JSON."
        )

    async def _exchange(
        self, method: str, path: str, content: bytes | None
    ) -> tuple[int, float | None, bytes]:
        headers = dict(self._observer.trace_headers()) if self._observer else {}
        headers["content-type"] = "application/json"
        if content is None:
            # Rare, and some servers close after an error, while the next request is on its way.
            headers["connection"] = "close"
        async with (
            asyncio.timeout(self._seconds),
            self._session.request(
                method, self.root + path, data=content, headers=headers, allow_redirects=False
            ) as reply,
        ):
            body = bytearray()
            async for piece in reply.content.iter_any():
                body += piece
                if len(body) > _MAX_REPLY_BYTES:
                    raise _TooLong
            after = reply.headers.get("retry-after", "")
            return reply.status, float(after) if after.isdecimal() else None, bytes(body)


class _TooLong(Exception):
    pass


def open_session(key: str | None) -> aiohttp.ClientSession:
    """Open the connections to servers that take this key; raise ConfigurationError."""
    headers = {"user-agent": f"shieldgate/{__version__}", "accept-encoding": "identity"}
    if key is not None:
        # A file's last line break often comes along.
        key = key.strip()
        if not key.isascii() or not key.isprintable():
            raise ConfigurationError("The model's key can't be sent in a header. Check it.")
        headers["authorization"] = f"Bearer {key}"
    return aiohttp.ClientSession(
        # Shorter than their 5 s, so as not to send into a connection being closed.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS),
        headers=headers,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _outcome(status: int) -> RemoteReply:
    if status in (429, 503):
        return "busy"
    if 200 <= status <= 299:
        return "answered"
    return "failed" if status >= 500 else "refused"


def _parsed(reply: bytes) -> Any:
    try:
        return orjson.loads(reply)
    except orjson.JSONDecodeError:
        return None


def _detail(body: Any) -> str:
    """Find the sentence in an error's JSON, as the servers write it."""
    if isinstance(body, dict):
        error = body.get("error", body)
        found = error.get("message") if isinstance(error, dict) else error
        return found if isinstance(found, str) else ""
    return ""
