"""Load a server with requests: requests/s, latency and memory, beside others in the same run.

    python -m benchmarks.load [--seconds 20] [--litellm PATH/TO/litellm] [--soak 600]

Needs `wrk`, and does nothing without it. All servers run on this machine, one worker each, logging
off, before the same upstream that costs next to nothing. Contestants take turns, so that a busy
machine slows all of them. What a proxy adds is its median at one connection less that of upstream
asked directly.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from threading import Event, Thread

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.load.servers import asgi, free_port, server, shieldgate

OURS, LITELLM, UPSTREAM = "shieldgate", "LiteLLM", "upstream itself"
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


@dataclass(frozen=True)
class Raced:
    """What was found of one contestant: many connections, and one at a time."""

    loads: tuple[Measured, ...]
    alone: tuple[Measured, ...]

    @property
    def rate(self) -> float:
        return median(m.rate for m in self.loads)

    @property
    def single(self) -> float:
        return median(m.p50 for m in self.alone)


def main() -> None:
    """Start the servers, load them in turn, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of each load, split in rounds")
    parser.add_argument("--connections", type=int, default=32, help="of the throughput's load")
    parser.add_argument("--litellm", type=Path, help="LiteLLM's command, to race its proxy too")
    parser.add_argument("--soak", type=float, default=0, help="seconds of all loads, after that")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=120)
    if not shutil.which("wrk"):
        console.print("Left out: the load test. It needs wrk; Debian's package is called so.")
        return
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        null = running.enter_context(asgi("benchmarks.load.upstream:app"))
        ours, process = running.enter_context(shieldgate(null))
        answer = folder / "answer.json"
        answer.write_bytes(_post(f"{ours}/v1/moderations", MODERATION))
        bare = running.enter_context(asgi("benchmarks.load.bare:app", LOAD_ANSWER=str(answer)))
        proxies = {UPSTREAM: null, OURS: ours}
        if arguments.litellm:
            proxies[LITELLM] = running.enter_context(_litellm(arguments.litellm, null, folder))
        for url in proxies.values():
            _post(f"{url}/v1/chat/completions", CHAT)  # warms connections and the score cache
        before = _resident(process)
        soaked = []
        for title, body in (("Chat", CHAT), ("Chat, streamed", {**CHAT, "stream": True})):
            targets = [
                _target(name, url, "chat/completions", body) for name, url in proxies.items()
            ]
            console.print(_table(title, _race(targets, arguments, folder)))
            soaked.append(replace(targets[1], name=title))
        cached = _target(f"{OURS}, cached", ours, "moderations", MODERATION)
        new = _target(f"{OURS}, uncached", ours, "moderations", {"input": f"{QUESTION} %d"})
        bound = _target("bare FastAPI, same bytes", bare, "moderations", MODERATION)
        console.print(_table("Moderation", _race([bound, cached, new], arguments, folder)))
        soaked += [replace(cached, name="Moderation, cached"), replace(new, name="Moderation, new")]
        console.print(
            f"Resident memory: {_mib(before)} MiB before, {_mib(_resident(process))} after."
        )
        if arguments.soak:
            console.print(_soak(soaked, arguments, folder, process))


def _target(name: str, url: str, path: str, body: Mapping[str, object]) -> Target:
    return Target(name, f"{url}/v1/{path}", json.dumps(body))


def _race(
    targets: Sequence[Target], arguments: argparse.Namespace, folder: Path
) -> dict[str, Raced]:
    part = arguments.seconds / ROUNDS
    found: dict[str, list[tuple[Measured, Measured]]] = {t.name: [] for t in targets}
    for _ in range(ROUNDS):
        for target in targets:
            load = _wrk(target, arguments.connections, part, folder)
            found[target.name].append((load, _wrk(target, 1, part, folder)))
    return {name: Raced(*zip(*pairs, strict=True)) for name, pairs in found.items()}


def _table(title: str, raced: Mapping[str, Raced]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    for number, column in enumerate(
        ("", "requests/s", "x first", "p50 ms", "p99 ms", "p50 alone ms", "added ms", "failed")
    ):
        table.add_column(column, justify="right" if number else "left")
    first = next(iter(raced.values()))
    for name, found in raced.items():
        table.add_row(
            name,
            f"{found.rate:,.0f}",
            f"{found.rate / first.rate:.3f}",
            f"{median(m.p50 for m in found.loads):.1f}",
            f"{median(m.p99 for m in found.loads):.1f}",
            f"{found.single:.2f}",
            f"{found.single - first.single:.2f}",
            str(sum(m.failed for m in found.loads + found.alone)),
        )
    if LITELLM in raced:
        ours, theirs = raced[OURS], raced[LITELLM]
        added = (ours.single - first.single) / (theirs.single - first.single)
        table.caption = (
            f"Beside LiteLLM: {ours.rate / theirs.rate:.1f} x its requests/s, "
            f"{added:.2f} x the median it adds."
        )
    return table


def _soak(
    targets: Sequence[Target], arguments: argparse.Namespace, folder: Path, process: int
) -> Table:
    """Load one server with each target in turn, and see what memory it takes meanwhile."""
    title = f"{OURS} for {arguments.soak:.0f} s"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    columns = ("", "requests/s", "p50 ms", "p99 ms", "failed", "resident MiB, from start to end")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < number < 5 else "left")
    for target in targets:
        with _sampled(process, arguments.soak / len(targets) / 5.5) as sizes:
            found = _wrk(target, arguments.connections, arguments.soak / len(targets), folder)
        table.add_row(
            target.name,
            f"{found.rate:,.0f}",
            f"{found.p50:.1f}",
            f"{found.p99:.1f}",
            str(found.failed),
            " ".join(map(_mib, sizes)),
        )
    return table


@contextmanager
def _sampled(process: int, seconds: float) -> Iterator[list[int]]:
    """Look at a process's memory every so often, meanwhile; gives the list of what is found."""
    sizes: list[int] = []
    over = Event()

    def look() -> None:
        while not over.wait(seconds if sizes else 0):
            sizes.append(_resident(process))

    looking = Thread(target=look)
    looking.start()
    try:
        yield sizes
    finally:
        over.set()
        looking.join()


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
def _litellm(command: Path, upstream: str, folder: Path) -> Iterator[str]:
    port = free_port()
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
    with server([*argv, "--num_workers", "1"], f"{url}/health/liveliness", **quiet):
        yield url


def _post(url: str, body: Mapping[str, object]) -> bytes:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def _resident(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
