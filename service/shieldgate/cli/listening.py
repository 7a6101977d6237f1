"""Listens at an address and runs an app there, until a signal or a failure."""

import asyncio
import errno
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn, TypeAlias

import structlog
import uvicorn
from fastapi import FastAPI

from shieldgate.cli.uvicorn_limits import limited_protocol, set_user_timeout
from shieldgate.errors import ConfigurationError
from shieldgate.gateway.middleware.drain import Drain
from shieldgate.given_settings import flag, variable
from shieldgate.settings import ListenSettings
from shieldgate.telemetry import configure_logging
from shieldgate.worker.supervisor import READY

log = structlog.get_logger(__name__)

# For what is said to those who are cut off, and for letting go.
_LAST_WORDS_SECONDS = 1


def start_logging(settings: ListenSettings) -> None:
    """Log as the settings say, first of all which of them were given by an old name."""
    configure_logging(settings.log_level, as_json=settings.log_format == "json")
    for renamed in settings.warnings:
        log.warning("setting renamed", why=renamed)


def listen(settings: ListenSettings) -> socket.socket:
    """Open the socket that the settings name; raise ConfigurationError."""
    if settings.uds:
        return _listen_unix(settings.uds)
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as refused:
        reason = str(refused.strerror).partition(" (while")[0]
        raise ConfigurationError(
            f"Can't listen on {host}, port {port}: {reason}. "
            f"Choose another {flag('port')} or {flag('host')} "
            f"({variable('port')}, {variable('host')})."
        ) from refused
    # Connections inherit it. Without it a reply's body waits 40 ms for a word from the caller's
    # kernel, and asyncio sets it only on sockets that were opened with their protocol's number.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_user_timeout(listener, settings.receive_seconds)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    with socket.socket(socket.AF_UNIX) as probe:
        left_over = path.is_socket() and probe.connect_ex(str(path)) == errno.ECONNREFUSED
    listener = socket.socket(socket.AF_UNIX)
    try:
        if left_over:
            path.unlink()
        listener.bind(str(path))
        # As with a port of this machine, whoever reaches it may connect: its folder says who can.
        path.chmod(0o666)
        listener.listen(128)
    except OSError as refused:
        listener.close()
        raise ConfigurationError(
            f"Can't listen on {path}: {refused.strerror or refused}. Choose another {flag('uds')} "
            f"({variable('uds')})."
        ) from refused
    return listener


def is_local(listener: socket.socket) -> bool:
    """Tell whether only this machine can reach a socket."""
    unix = listener.family == socket.AF_UNIX
    return unix or ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket) -> str:
    """Write a socket's address as a URL, a Unix socket's as `unix:` and its path."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def end_with_supervisor() -> None:
    """End this process when the Supervisor that started it ends, even by SIGKILL."""

    def wait() -> None:
        # Not sys.stdin.read, whose lock would abort an interpreter that is ending.
        os.read(sys.stdin.fileno(), 1)
        os._exit(0)

    Thread(target=wait, daemon=True).start()


def tell_supervisor() -> None:
    """Tell the Supervisor that started this process that it is ready."""
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()


Reload: TypeAlias = Callable[[], Coroutine[None, None, None]]


def run_app(
    build: Callable[[Callable[[Exception], None]], FastAPI],
    listener: socket.socket,
    settings: ListenSettings,
    *,
    on_hangup: Reload | None = None,
    drain: Drain | None = None,
) -> None:
    """Serve an app until a signal or a failure; exit with 0 or 1.

    Then it still listens until the requests in progress are done, as far as `drain` knows them.

    `build` gets the function by which the app stops the server, with what made that necessary.
    `on_hangup` is run on SIGHUP.
    """
    failures: list[Exception] = []

    def stop(failure: Exception) -> None:
        failures.append(failure)
        server.should_exit = True

    server = _Server(
        uvicorn.Config(
            build(stop),
            http=limited_protocol(settings.receive_seconds),
            ws="none",
            log_config=None,
            access_log=False,  # our own says nothing that callers wrote
            server_header=False,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.drain_seconds,
        ),
        drain,
    )
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_serve(server, listener, on_hangup))
    for failure in failures:
        if isinstance(failure, ConfigurationError):
            log.error("stopped", why=str(failure))
        else:
            log.error("stopped by an unexpected error", exc_info=failure)
    if failures:
        sys.exit(1)


class _Server(uvicorn.Server):
    """Goes on listening while it drains, so that `/readyz` can tell."""

    def __init__(self, config: uvicorn.Config, drain: Drain | None) -> None:
        super().__init__(config)
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._drain is not None:
            await self._finish(self._drain, self.config.timeout_graceful_shutdown or 0)
        await super().shutdown(sockets)

    async def _finish(self, drain: Drain, seconds: int) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds + _LAST_WORDS_SECONDS
        drain.begin(seconds)
        log.info("draining", requests=drain.awaited, seconds=seconds)
        # Polled, as uvicorn does, because a second Ctrl-C sets `force_exit`.
        while drain.awaited and not self.force_exit and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self.config.timeout_graceful_shutdown = math.ceil(max(0, end - loop.time()))


async def _serve(server: _Server, listener: socket.socket, on_hangup: Reload | None) -> None:
    # When uvicorn has shut down in order, it raises the signal again that made it do so.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    asyncio.get_running_loop().set_exception_handler(_log_stray)
    following = None  # kept, as the event loop itself keeps no task alive
    if on_hangup:
        hung_up = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
        following = asyncio.create_task(follow_hangups(hung_up, on_hangup))
    await server.serve(sockets=[listener])
    if following:
        following.cancel()


async def follow_hangups(hung_up: asyncio.Event, reload: Reload) -> None:
    """Reload once for all that was asked for meanwhile, until cancelled."""
    while True:
        await hung_up.wait()
        hung_up.clear()
        try:
            await reload()
        except Exception as failure:
            log.error("unexpected error outside of a request", exc_info=failure)


def _log_stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that nobody awaited; asyncio's own words would quote its message."""
    log.error("unexpected error outside of a request", exc_info=context.get("exception"))


def _exit(*_: object) -> NoReturn:
    # Not sys.exit, which would wait for the thread that may be loading a large model.
    os._exit(0)
