"""Starts the servers of a load test, and waits until they answer."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def server(
    command: Sequence[str], url: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until it answers at `url`, and end it afterwards."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        _wait(process, url)
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def asgi(app: str, **environment: str) -> Iterator[str]:
    """Serve an ASGI app; gives its URL."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", app, "--port", str(port)),
        *("--log-level", "critical", "--no-access-log"),
    ]
    with server(command, f"http://127.0.0.1:{port}/", **environment):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def shieldgate(upstream: str, *flags: str) -> Iterator[tuple[str, int]]:
    """Serve before an upstream; gives the URL and the process."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "shieldgate", "serve", "--port", str(port)),
        *("--upstream", f"{upstream}/v1", "--log-level", "error", *flags),
    ]
    with server(command, f"http://127.0.0.1:{port}/readyz") as process:
        yield f"http://127.0.0.1:{port}", process.pid


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            said = process.stderr.read().decode()[-2000:] if process.stderr else ""
            sys.exit(f"{process.args} ended with {process.returncode}:\n{said}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as answered:
            if answered.code != 503:  # not ready yet
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"{process.args} did not answer at {url} within two minutes.")
