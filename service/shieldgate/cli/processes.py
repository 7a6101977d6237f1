"""Several gateway processes that share a port, and one scorer in a process of its own."""

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import structlog
from prometheus_client import CollectorRegistry

from shieldgate.cli.listening import end_with_supervisor, start_logging, tell_supervisor
from shieldgate.cli.shadow_serving import candidate_socket, hold_candidate
from shieldgate.errors import ConfigurationError
from shieldgate.given_settings import variable
from shieldgate.scoring import OpenScorer
from shieldgate.scoring.factory import open_candidate, open_served
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.scoring.precedence import Precedence
from shieldgate.scoring.unix_socket import listening
from shieldgate.settings import ServeSettings
from shieldgate.telemetry import Telemetry
from shieldgate.worker.supervisor import Supervisor

# What a gateway may take, beyond draining, to end.
_ENDING_SECONDS = 10

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """One of several gateway processes: their socket, and where the scorer is."""

    listener: socket.socket
    scorer: Path

    @classmethod
    def of(cls, supervised: int | None, scorer: Path | None) -> Self | None:
        """Take what a parent handed down, if one did; from then on this process ends with it."""
        if supervised is None or scorer is None:
            return None
        end_with_supervisor()
        return cls(socket.socket(fileno=supervised), scorer)


def run_processes(settings: ServeSettings, listener: socket.socket) -> None:
    """Keep gateways and their scorer running until a signal; exit with 1 where they can't start.

    They get the flags and variables of this process, whose other command is `serve`.
    """
    # The folder is this user's alone, and so is the scorer's socket in it.
    with TemporaryDirectory(prefix="shieldgate-") as folder:
        metrics = Path(folder, "metrics")
        metrics.mkdir()
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        if settings.audit_secret is None:
            # So that the digests of all of them are of one kind.
            environment[variable("audit_secret")] = secrets.token_hex(32)
        program = [sys.executable, "-m", "shieldgate"]
        there = [*sys.argv[2:], "--scorer", str(Path(folder, "scorer"))]
        scorer = Supervisor(
            [*program, "scorer-of-gateways", *there], None, name="scorer", environment=environment
        )
        gateways = [
            Supervisor(
                [*program, "serve", *there],
                listener,
                name="gateway",
                environment=environment,
                grace_seconds=settings.drain_seconds + _ENDING_SECONDS,
            )
            for _ in range(settings.processes)
        ]
        failure = asyncio.run(_supervise(scorer, gateways, listener))
    if failure is not None:
        log.error("stopped", why=str(failure))
        sys.exit(1)


async def _supervise(
    scorer: Supervisor, gateways: Sequence[Supervisor], listener: socket.socket
) -> BaseException | None:
    """Run all until a signal; gives why that was not possible."""
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            os._exit(0)  # told twice, so at once; the others notice
        stopping.set()

    def hang_up() -> None:
        for gateway in gateways:
            gateway.send_hangup()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)

    scoring = asyncio.create_task(scorer.run())
    serving = [asyncio.create_task(gateway.run()) for gateway in gateways]
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait((stopped, scoring, *serving), return_when=asyncio.FIRST_COMPLETED)
    # Before the gateways end, so that nobody is let in who will not be answered.
    listener.close()
    failures = await _end(serving) + await _end([scoring])
    stopped.cancel()
    return next(iter(failures), None)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> list[BaseException]:
    """Cancel tasks and wait for them; gives what had ended them before."""
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    return [e for e in ended if e is not None and not isinstance(e, asyncio.CancelledError)]


def run_scorer(settings: ServeSettings, path: Path) -> None:
    """Score for the gateways until they end; exit with 1 where the scorer can't be loaded."""
    start_logging(settings)
    end_with_supervisor()
    try:
        asyncio.run(_score(settings, path))
    except* ConfigurationError as wrong:
        log.error("stopped", why=str(wrong.exceptions[0]))
        sys.exit(1)


async def _score(settings: ServeSettings, path: Path) -> None:
    telemetry, precedence = Telemetry(CollectorRegistry()), Precedence()

    @asynccontextmanager
    async def opened() -> AsyncIterator[OpenScorer]:
        async with (
            open_served(settings, telemetry) as scorer,
            listening(precedence.before(scorer), path),
        ):
            tell_supervisor()
            yield scorer

    @asynccontextmanager
    async def candidate_opened() -> AsyncIterator[OpenScorer]:
        async with (
            open_candidate(settings, precedence) as scorer,
            listening(scorer, candidate_socket(path)),
        ):
            yield scorer

    async with asyncio.TaskGroup() as running:
        # One elsewhere may not be there yet. Whether it is there later on, the gateways find out.
        running.create_task(LoadingScorer(opened).hold(telemetry.ready))
        if settings.shadow_scorer():
            running.create_task(hold_candidate(LoadingScorer(candidate_opened)))
