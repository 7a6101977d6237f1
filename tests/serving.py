"""A real server on a free port, in the test's own event loop."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from fakes import FakeScorer, FixedPolicies, small_book
from prometheus_client import CollectorRegistry

from shieldgate import moderation
from shieldgate.access.keys import LiveKeys
from shieldgate.access.rate_limits import RateLimiter
from shieldgate.dialects import DIALECTS, Dialect
from shieldgate.gateway.app import create_app
from shieldgate.gateway.middleware.drain import Drain
from shieldgate.gateway.screening import Screener
from shieldgate.gateway.services import Policies, Services, Worker
from shieldgate.history import History, SharedHistory
from shieldgate.kept_texts.keeper import Keeper
from shieldgate.redis.client import RedisClient
from shieldgate.review.desk import Desk
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.settings import ServeSettings
from shieldgate.shadow.shadow import Shadow
from shieldgate.telemetry import Audit, Sink, Telemetry
from shieldgate.upstream import Upstream

AUDIT_SECRET = b"the key of the audit's digests"


def read_where(
    monkeypatch: pytest.MonkeyPatch, how: str = "readings", owner: Any = moderation
) -> list[str]:
    """Collect the names of the threads in which texts are read from now on."""
    threads: list[str] = []
    read = getattr(owner, how)

    def seen(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return read(*given)

    monkeypatch.setattr(owner, how, seen)
    return threads


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.ending = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the signals are pytest's

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        await self.ending.wait()


@dataclass
class Gateway:
    """A running gateway, and what a test wants to touch of it."""

    url: str
    client: httpx.AsyncClient
    registry: CollectorRegistry
    scorer: FakeScorer
    stopped_by: list[Exception]
    drain: Drain
    audit: Audit

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def running(
    app: object, *, listener: socket.socket | None = None, **config: object
) -> AsyncIterator[str]:
    """Serve an ASGI app; gives its URL. `config` is for uvicorn."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    # As the program has it.
    own = {"log_config": None, "access_log": False, "server_header": False}
    server = _Server(uvicorn.Config(app, timeout_graceful_shutdown=5, **own, **config))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.wait_for(server.listening.wait(), 10)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.ending.set()
        await serving


@asynccontextmanager
async def gateway(
    scorer: FakeScorer,
    loading: LoadingScorer | None = None,
    *,
    upstream: Upstream | None = None,
    policies: Policies | None = None,
    worker: Worker | None = None,
    profile: Mapping[str, object] | None = None,
    audit: Sink | None = None,
    keeper: Keeper | None = None,
    shadow: Shadow | None = None,
    telemetry: Telemetry | None = None,
    shared: RedisClient | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
    drain: Drain | None = None,
    shared_history: SharedHistory | None = None,
    desk: Desk | None = None,
    **settings: object,
) -> AsyncIterator[Gateway]:
    """Serve the gateway around a scorer, with the small policy book.

    `profile` changes the default profile; `policies` are others than the small book's;
    `audit` takes the records of decisions, `keeper` their texts, which `desk` hands out, and
    `shadow` both.
    """
    telemetry = telemetry or Telemetry(CollectorRegistry())
    stopped_by: list[Exception] = []
    given = ServeSettings(**settings)
    policies = policies or FixedPolicies(small_book(**(profile or {})))
    services = Services(
        settings=given,
        policies=policies,
        screener=Screener(
            loading or LoadingScorer(scorer.opened),
            telemetry,
            Audit(AUDIT_SECRET, audit),
            seconds=given.guard_seconds,
            keeper=keeper,
            shadow=shadow,
        ),
        telemetry=telemetry,
        stop=stopped_by.append,
        worker=worker,
        upstream=upstream,
        keys=LiveKeys(given.keys, lambda: policies.current) if given.keys else None,
        limiter=RateLimiter(shared),
        shared=shared,
        drain=drain or Drain(),
        history=History(
            secret=AUDIT_SECRET,
            max_bytes=given.history_bytes,
            max_entry_bytes=given.max_body_bytes,
            keep_seconds=given.history_seconds,
            shared=shared_history,
        ),
        desk=desk,
    )
    async with (
        running(create_app(services, dialects)) as url,
        httpx.AsyncClient(base_url=url, timeout=20, verify=False) as client,
    ):
        audit = services.screener.audit
        yield Gateway(url, client, telemetry.registry, scorer, stopped_by, services.drain, audit)
