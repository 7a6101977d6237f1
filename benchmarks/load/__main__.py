"""Load a server with requests: requests/s, latency and memory, beside others in the same run.

    python -m benchmarks.load [--seconds 20] [--litellm PATH/TO/litellm]

Needs `wrk`. All servers run on this machine, one worker each, logging off, before the same
upstream that costs next to nothing. Contestants take turns, so that a busy machine slows all of
them. What a proxy adds is its median at one connection less that of upstream asked directly.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

QUESTION = "How long do I bake a loaf of sourdough, and at which temperature?"
CHAT = {"model": "null", "messages": [{"role": "user", "content": QUESTION}]}
MODERATION = {"input": QUESTION}
ROUNDS = 3


@dataclass(frozen=True)
class Target:
    """What is asked: a URL and the body that is posted to it; `%d` in a body makes texts new."""

    name: str
    url: str
    body: str


@dataclass(frozen=True)
class Measured:
    """What a load of `wrk` found; latencies are in milliseconds."""

    rate: float
    p50: float
    p99: float
    failed: int


def main() -> None:
    """Start the servers, load them in turn, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of each load, split in rounds")
    parser.add_argument("--connections", type=int, default=32, help="of the throughput's load")
    parser.add_argument("--litellm", type=Path, help="LiteLLM's command, to race its proxy too")
    parser.add_argument("--soak", type=float, default=0, help="seconds of chats, to see memory")
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("This needs wrk, which is not on the PATH. Debian's package is called wrk.")
    console = Console(highlight=False, width=120)
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        null = running.enter_context(_asgi("benchmarks.load.upstream:app"))
        ours, process = running.enter_context(_shieldgate(null))
        answer = folder / "answer.json"
        answer.write_bytes(_post(f"{ours}/v1/moderations", MODERATION))
        bare = running.enter_context(_asgi("benchmarks.load.bare:app", LOAD_ANSWER=str(answer)))
        proxies = {"upstream itself": null, "shieldgate": ours}
        if arguments.litellm:
            proxies["LiteLLM"] = running.enter_context(_litellm(arguments.litellm, null, folder))
        moderations = {"bare FastAPI, same bytes": bare, "shieldgate, cached": ours}
        for url in proxies.values():
            _post(f"{url}/v1/chat/completions", CHAT)  # warms connections and the score cache
        before = _resident(process)
        for title, path, servers, body in (
            ("Chat", "chat/completions", proxies, CHAT),
            ("Chat, streamed", "chat/completions", proxies, {**CHAT, "stream": True}),
            ("Moderation", "moderations", moderations, MODERATION),
        ):
            targets = [
                Target(name, f"{url}/v1/{path}", json.dumps(body)) for name, url in servers.items()
            ]
            if title == "Moderation":
                new = json.dumps({"input": f"{QUESTION} %d"})
                targets.append(Target("shieldgate, uncached", targets[-1].url, new))
            console.print(_race(title, targets, arguments, folder))
        if arguments.soak:
            target = Target("soak", f"{ours}/v1/chat/completions", json.dumps(CHAT))
            found = _wrk(target, arguments.connections, arguments.soak, folder)
            console.print(
                f"{arguments.soak:.0f} s of chats: {found.rate:.0f}/s, {found.failed} failed"
            )
        console.print(
            f"shieldgate's resident memory: {before / 2**20:.0f} MiB before, "
            f"{_resident(process) / 2**20:.0f} MiB after."
        )


def _race(
    title: str, targets: Sequence[Target], arguments: argparse.Namespace, folder: Path
) -> Table:
    part = arguments.seconds / ROUNDS
    loads: dict[str, list[Measured]] = {t.name: [] for t in targets}
    alone: dict[str, list[Measured]] = {t.name: [] for t in targets}
    for _ in range(ROUNDS):
        for target in targets:
            loads[target.name].append(_wrk(target, arguments.connections, part, folder))
            alone[target.name].append(_wrk(target, 1, part, folder))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(
        ("", "requests/s", "x first", "p50 ms", "p99 ms", "p50 alone ms", "added ms", "failed")
    ):
        table.add_column(column, justify="right" if number else "left")
    first = targets[0].name
    for name, found in loads.items():
        rate = median(m.rate for m in found)
        single = median(m.p50 for m in alone[name])
        table.add_row(
            name,
            f"{rate:,.0f}",
            f"{rate / median(m.rate for m in loads[first]):.3f}",
            f"{median(m.p50 for m in found):.1f}",
            f"{median(m.p99 for m in found):.1f}",
            f"{single:.2f}",
            f"{single - median(m.p50 for m in alone[first]):.2f}",
            str(sum(m.failed for m in found + alone[name])),
        )
    return table


_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer none"
local body, count, thread = %s, 0, 0
function setup(t) thread = thread + 1; t:set("start", thread * 1e9) end
function request()
  count = count + 1
  return wrk.format(nil, nil, nil, (body:gsub("%%%%d", tostring(start + count + %d))))
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %%f %%f %%f %%d\\n", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def _wrk(target: Target, connections: int, seconds: float, folder: Path) -> Measured:
    script = folder / "load.lua"
    # Other texts in each load: a score that was cached in an earlier one would not be uncached.
    script.write_text(_SCRIPT % (json.dumps(target.body), time.monotonic_ns() // 1000 % 10**9))
    done = subprocess.run(
        [
            *("wrk", "--threads", "1", "--connections", str(connections)),
            *("--duration", f"{max(1, round(seconds))}s", "--timeout", "30s"),
            *("--script", str(script), target.url),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"RESULT (\S+) (\S+) (\S+) (\S+)", done.stdout)
    if not found:
        sys.exit(f"wrk said nothing of {target.name}:\n{done.stdout}{done.stderr}")
    rate, p50, p99, failed = map(float, found.groups())
    return Measured(rate, p50, p99, int(failed))


@contextmanager
def _server(
    command: Sequence[str], url: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
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
def _asgi(app: str, **environment: str) -> Iterator[str]:
    port = _free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", app, "--port", str(port)),
        *("--log-level", "critical", "--no-access-log"),
    ]
    with _server(command, f"http://127.0.0.1:{port}/", **environment):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _shieldgate(upstream: str) -> Iterator[tuple[str, int]]:
    port = _free_port()
    command = [
        *(sys.executable, "-m", "shieldgate.cli", "serve", "--port", str(port)),
        *("--upstream", f"{upstream}/v1", "--log-level", "error"),
    ]
    with _server(command, f"http://127.0.0.1:{port}/readyz") as process:
        yield f"http://127.0.0.1:{port}", process.pid


@contextmanager
def _litellm(command: Path, upstream: str, folder: Path) -> Iterator[str]:
    port = _free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    {
                        "model_name": "null",
                        "litellm_params": {
                            "model": "openai/null",
                            "api_base": f"{upstream}/v1",
                            "api_key": "none",
                        },
                    }
                ],
                "litellm_settings": {"telemetry": False, "set_verbose": False},
            }
        )
    )
    argv = [str(command), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    url = f"http://127.0.0.1:{port}"
    quiet = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_DOCS": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # ours asks for none either
    }
    with _server([*argv, "--num_workers", "1"], f"{url}/health/liveliness", **quiet):
        yield url


def _free_port() -> int:
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


def _post(url: str, body: Mapping[str, object]) -> bytes:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def _resident(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
