"""Flood a server with the longest texts allowed, and see how the small requests of others fare.

    python -m benchmarks.load.flood [--seconds 60] [--keys]

A flood of several connections sends texts of 199,000 random Chinese characters, texts of 20,000,
which are long and still possible, and asks for a streamed answer of 621 KB; each begins again as
soon as it is answered. Beside it two callers send a sentence that is new each time, one request
at a time. Those are also timed alone before, and so is a text that fills the scorer's context:
the longest piece of work, and so the longest forward pass, that nobody can cut.

Without --keys each connection is a caller of its own; with it, the flood has one key.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.load.servers import asgi, shieldgate

LONGEST, LONG, ANSWER = 199_000, 20_000, 207_000
PAUSE_SECONDS = 0.1
REFUSED_PAUSE_SECONDS = 0.05  # so that a flood of refusals is one of the server, not of this client


@dataclass
class Seen:
    """What callers of one kind got: how many replies of each status, and the seconds of those."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)

    async def count(self, asking: Awaitable[int]) -> int:
        began = time.perf_counter()
        status = await asking
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(time.perf_counter() - began)
        return status

    @property
    def answered(self) -> float:
        return self.statuses[200] / max(1, self.statuses.total())

    def percentile(self, percent: int, status: int = 200) -> float:
        """Give the seconds within which so many were answered; nan where none was."""
        found = sorted(self.seconds.get(status, ()))
        return found[min(len(found) - 1, len(found) * percent // 100)] if found else float("nan")


def main() -> None:
    """Start the servers, flood them, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load.flood",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60, help="of the flood")
    parser.add_argument("--keys", action="store_true", help="give the flood and the others keys")
    arguments = parser.parse_args()
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        upstream = running.enter_context(asgi("benchmarks.load.flood:upstream"))
        flags = ["--keys", str(_keys(folder))] if arguments.keys else []
        url, _ = running.enter_context(shieldgate(upstream, *flags))
        found = asyncio.run(_flood(url, arguments.seconds))
    Console(highlight=False, width=120).print(_table(*found))


def _keys(folder: Path) -> Path:
    file = folder / "keys.yaml"
    keys = {
        name: {"sha256": sha256(name.encode()).hexdigest(), "profile": "default"}
        for name in ("flood", "small-1", "small-2")
    }
    file.write_text(json.dumps(keys))
    return file


async def _flood(url: str, seconds: float) -> tuple[float, Seen, dict[str, Seen]]:
    async with AsyncExitStack() as stack:

        async def client(name: str) -> httpx.AsyncClient:
            one = httpx.AsyncClient(
                base_url=url, timeout=300, headers={"authorization": f"Bearer {name}"}
            )
            return await stack.enter_async_context(one)

        small = [await client(f"small-{n + 1}") for n in range(2)]
        await _moderate(small[0], _sentence())
        alone = Seen()
        # About what the shipped starter's context of 2,048 tokens holds.
        passes = [
            await alone.count(_moderate(small[0], _characters(440))) and alone.seconds[200][-1]
            for _ in range(5)
        ]
        idle, beside = Seen(), {"small, beside it": Seen()}
        await asyncio.gather(*(_ask(c, idle, _small, time.monotonic() + 10) for c in small))
        until = time.monotonic() + seconds + 5
        flood = []
        for name, send, connections in (
            (f"{LONGEST:,} characters", _longest, 3),
            (f"{LONG:,} characters", _long, 3),
            ("a streamed answer of 621 KB", _stream, 1),
        ):
            beside[name] = Seen()
            for _ in range(connections):
                flood.append(_ask(await client("flood"), beside[name], send, until))
        flooding = [asyncio.create_task(f) for f in flood]
        await asyncio.sleep(5)
        await asyncio.gather(*(_ask(c, beside["small, beside it"], _small, until) for c in small))
        for task in flooding:
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)
    return sorted(passes)[2], idle, beside


async def _ask(
    client: httpx.AsyncClient,
    seen: Seen,
    send: Callable[[httpx.AsyncClient], Awaitable[int]],
    until: float,
) -> None:
    """Ask again and again."""
    while time.monotonic() < until:
        status = await seen.count(send(client))
        if send is _small:
            await asyncio.sleep(PAUSE_SECONDS)
        elif status != 200:
            await asyncio.sleep(REFUSED_PAUSE_SECONDS)


def _characters(count: int) -> str:
    return "".join(map(chr, random.choices(range(0x4E00, 0x9FA6), k=count)))


def _body(count: int) -> tuple[bytes, bytes]:
    """Write what goes before and after a number that makes a text new; it costs the client little.

    As plain UTF-8: escaped, the longest would be beyond what a body may have.
    """
    before, after = json.dumps({"input": f"%{_characters(count)}"}, ensure_ascii=False).split("%")
    return before.encode(), after.encode()


BODIES = {count: _body(count) for count in (LONGEST, LONG)}


def _sentence() -> str:
    return f"How long do I bake loaf number {random.randrange(10**9)}, and at which temperature?"


async def _moderate(client: httpx.AsyncClient, text: str) -> int:
    return (await client.post("/v1/moderations", json={"input": text})).status_code


async def _moderate_long(client: httpx.AsyncClient, count: int) -> int:
    before, after = BODIES[count]
    body = b"%s%d%s" % (before, random.randrange(10**9), after)
    head = {"content-type": "application/json"}
    return (await client.post("/v1/moderations", content=body, headers=head)).status_code


async def _small(client: httpx.AsyncClient) -> int:
    return await _moderate(client, _sentence())


async def _long(client: httpx.AsyncClient) -> int:
    return await _moderate_long(client, LONG)


async def _longest(client: httpx.AsyncClient) -> int:
    return await _moderate_long(client, LONGEST)


async def _stream(client: httpx.AsyncClient) -> int:
    messages = [{"role": "user", "content": _sentence()}]
    body = {"model": "m", "stream": True, "messages": messages}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for _ in reply.aiter_bytes():
            pass
    return reply.status_code


def _table(one_pass: float, idle: Seen, beside: Mapping[str, Seen]) -> Table:
    small = beside["small, beside it"]
    bound = 3 * idle.percentile(95) + one_pass
    table = Table(title="A flood", title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(("", "answered", "p50 s", "p95 s", "replies by status")):
        table.add_column(column, justify="right" if 0 < number < 4 else "left")
    for name, seen in {"small, alone": idle, **beside}.items():
        statuses = ", ".join(
            f"{status}: {count} (p50 {seen.percentile(50, status):.2f} s)"
            for status, count in sorted(seen.statuses.items())
        )
        cells = f"{seen.percentile(50):.3f}", f"{seen.percentile(95):.3f}"
        table.add_row(name, f"{seen.answered:.0%}", *cells, statuses)
    table.caption = (
        f"A text that fills the context, alone: {one_pass:.2f} s. Allowed for p95 of the small: "
        f"3 x {idle.percentile(95):.3f} s + {one_pass:.2f} s = {bound:.2f} s; "
        f"found {small.percentile(95):.2f} s, {small.answered:.1%} answered."
    )
    return table


def _event(delta: Mapping[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c", "created": 0, "model": "m", "object": "chat.completion.chunk"}
    return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()


EVENTS = [
    *(_event({"content": _characters(1000)}) for _ in range(ANSWER // 1000)),
    _event({}, "stop"),
    b"data: [DONE]\n\n",
]


async def upstream(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Stream an answer of 621 KB in events of 1,000 characters, to any request; raw ASGI."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for event in EVENTS:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    main()
