"""The worker as a process: alone, supervised, killed, and left behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

import httpx
import openai
import pytest
from structlog.testing import capture_logs

from shieldgate.errors import ConfigurationError
from shieldgate.worker.supervisor import Supervisor, exponential_backoff

# A worker that is ready at once, and ends as it is told on its socket.
OBEDIENT = """
import socket, sys, os
listener = socket.socket(fileno=int(sys.argv[2]))
assert sys.argv[1] == "--supervised"
assert not any(name.startswith("SHIELDGATE_") for name in os.environ)
print("ready", flush=True)
listener.setblocking(True)
connection, _ = listener.accept()
connection.sendall(str(os.getpid()).encode() + b" ")
os._exit(int(connection.recv(10) or b"0"))
"""


def once(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@asynccontextmanager
async def supervised(supervisor: Supervisor) -> AsyncIterator[asyncio.Task[None]]:
    running = asyncio.create_task(supervisor.run())
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def ended_with(listener: socket.socket, code: int) -> int:
    """Tell the present worker to end; gives its process id."""
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    process = int(await reader.readuntil(b" "))
    writer.write(str(code).encode())
    await reader.read()
    writer.close()
    return process


async def test_a_worker_that_ends_is_restarted_at_the_same_address(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIELDGATE_MODEL", "the scorer's")
    # One delay each: whoever was ready starts over with the first.
    supervisor = Supervisor(once(OBEDIENT), listener, backoff=lambda: iter([0.0]))
    with capture_logs() as lines:
        async with supervised(supervisor):
            processes = {await ended_with(listener, code) for code in (0, 1, 7)}
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            last = int(await reader.readuntil(b" "))
            writer.close()
            while not supervisor.ready:
                await asyncio.sleep(0)
    assert len({*processes, last}) == 4
    assert [line["exit_code"] for line in lines if line["event"] == "worker ended"] == [0, 1, 7]
    assert not supervisor.ready
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


class EnoughError(Exception):
    """Ends a supervisor that would restart for ever."""


async def test_each_restart_waits_longer_while_the_worker_does_not_become_ready(
    listener: socket.socket,
) -> None:
    waited: list[int] = []

    def delays() -> Iterator[float]:
        for n in range(3):
            waited.append(n)
            yield 0.0
        raise EnoughError

    killed = once("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EnoughError):
        await Supervisor(killed, listener, delays).run()
    assert waited == [0, 1, 2]
    assert list(islice(exponential_backoff(), 7)) == [1, 2, 4, 8, 16, 30, 30]


async def test_a_worker_that_gives_up_before_it_is_ready_is_not_restarted(
    listener: socket.socket,
) -> None:
    supervisor = Supervisor(once("raise SystemExit(2)"), listener)
    with pytest.raises(ConfigurationError, match="exit code 2 before it was ready"):
        await supervisor.run()


COMMAND = [sys.executable, "-m", "shieldgate", "worker"]


async def test_the_real_worker_answers_under_supervision(
    hot_checkpoint: Path, listener: socket.socket
) -> None:
    supervisor = Supervisor([*COMMAND, "--generator", str(hot_checkpoint)], listener)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with (
        supervised(supervisor),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=9) as api,
    ):
        reply = await api.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "tea"}], max_tokens=3, temperature=0
        )
        assert reply.usage
        assert reply.usage.completion_tokens == 3
        assert supervisor.ready


ORPHAN = """
import asyncio, socket, sys
from shieldgate.worker.supervisor import Supervisor
listener = socket.socket(fileno=int(sys.argv[1]))
asyncio.run(Supervisor(sys.argv[2:], listener).run())
"""


def test_a_worker_whose_supervisor_is_killed_ends(
    hot_checkpoint: Path, listener: socket.socket
) -> None:
    command = [*COMMAND, "--generator", str(hot_checkpoint)]
    port = listener.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(listener.fileno()), *command],
        pass_fds=[listener.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        listener.close()
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60).status_code == 200
        process.send_signal(signal.SIGKILL)
        # The pipe ends when the last process that holds it has: supervisor and worker.
        assert process.stdout
        process.stdout.read()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")


@pytest.mark.parametrize(("flag", "warned"), [("--generator", False), ("--model", True)])
def test_a_model_that_is_not_there_is_one_sentence_and_exit_code_1(flag: str, warned: bool) -> None:
    result = subprocess.run(
        [*COMMAND, flag, "/no/such/folder", "--port", "0", "--log-format", "json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "there is no such folder" in result.stderr
    assert "Traceback" not in result.stderr
    assert ("--model is now --generator" in result.stderr) == warned
