"""Keeps a process of ours running, and never outlives or is outlived by it."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import structlog

from shieldgate.errors import ConfigurationError
from shieldgate.settings import PREFIX

READY = b"ready\n"

log = structlog.get_logger(__name__)


def exponential_backoff() -> Iterator[float]:
    """Yield the seconds before each restart: 1, 2, 4, up to 30."""
    seconds = 1.0
    while True:
        yield seconds
        seconds = min(30.0, 2 * seconds)


class Supervisor:
    """Runs `command` with `--supervised FD`, where FD is an inherited socket that listens.

    The process writes `ready` to its standard output once it is, and ends when its standard input
    does, which happens however this process ends. Because the socket stays here, the address
    stays the same over restarts. Settings go by flags: unless there is an `environment`, our
    variables are kept from it, since they are those of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket | None,
        backoff: Callable[[], Iterator[float]] = exponential_backoff,
        *,
        name: str = "worker",
        environment: Mapping[str, str] | None = None,
        grace_seconds: float = 0.0,
    ) -> None:
        """Take the command, the socket, and the seconds before one restart after another.

        Without a socket, the command is run as it is. In the end the process gets a SIGTERM, and a
        SIGKILL `grace_seconds` later; at 0 the SIGKILL alone.
        """
        self._command = command
        self._listener = listener
        self._backoff = backoff
        self._name = name
        self._environment = environment
        self._grace_seconds = grace_seconds
        self._process: asyncio.subprocess.Process | None = None
        self.ready = False

    def send_hangup(self) -> None:
        """Send SIGHUP to the process, if there is one."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    async def run(self) -> None:
        """Keep the process running until cancelled.

        Raises ConfigurationError when it gives up before it was ever ready: it can't load its
        model or is told something wrong, and a restart would mend neither.
        """
        ever_ready = False
        backoff = self._backoff()
        while True:
            was_ready, code = await self._run_once()
            ever_ready |= was_ready
            if code > 0 and not ever_ready:
                raise ConfigurationError(
                    f"The {self._name} ended with exit code {code} before it was ready. What it "
                    "logged above says why."
                )
            if was_ready:
                backoff = self._backoff()
            seconds = next(backoff)
            log.error(f"{self._name} ended", exit_code=code, restart_in_seconds=seconds)
            await asyncio.sleep(seconds)

    async def _run_once(self) -> tuple[bool, int]:
        """Start the process and wait for its end; tells whether it was ready, and its exit code."""
        environment = self._environment
        if environment is None:
            kept = (item for item in os.environ.items() if not item[0].upper().startswith(PREFIX))
            environment = dict(kept)
        given = [self._listener.fileno()] if self._listener else []
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            *(word for descriptor in given for word in ("--supervised", str(descriptor))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=given,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for us, and we let it finish first
        )
        log.info(f"{self._name} started", process=process.pid)
        was_ready = False
        try:
            while process.stdout and (line := await process.stdout.readline()):
                if line == READY:
                    was_ready = self.ready = True
                    log.info(f"{self._name} ready", process=process.pid)
            return was_ready, await process.wait()
        finally:
            self.ready = False
            if process.returncode is None and self._grace_seconds:
                process.terminate()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._grace_seconds):
                        await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
