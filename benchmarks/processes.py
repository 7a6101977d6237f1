"""Measure what it costs to ask a scorer in another process instead of in one's own.

Both sides score the same texts: one that costs nothing, so that all there is to see is the way,
and the starter. The other process is real, and so is its socket. On a busy machine each hop waits
for a processor; the processors' own time, of both processes together, is what the way costs.
Linux only.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import clock_gettime, perf_counter

from rich.console import Console
from rich.table import Table

from shieldgate.policy import Policy, load_book
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring import Identity, Scorer, UnixSocketScorer
from shieldgate.scoring.factory import open_scorer
from shieldgate.scoring.unix_socket import listening
from shieldgate.settings import ScoringSettings
from shieldgate.types import Exchange, Score

CHEAP, STARTER = "costs nothing", "the starter"
ROUNDS = {CHEAP: 300, STARTER: 30}
TEXTS = {
    "20 words": "How do I bake a loaf? " * 3,
    "2,000 words": "How do I bake a loaf? " * 333,
}
AT_ONCE = 16


class Cheap:
    """Scores by the length of the text, at once."""

    identity = Identity("cheap@0", "0", "float32", "chat", "none")
    template = TEMPLATES["chat"]

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        return [Score(float(len(exchange.prompt)))] * len(policies)


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[Scorer]:
    """Open a scorer in this process."""
    if name == CHEAP:
        yield Cheap()
    else:
        async with open_scorer(
            ScoringSettings(), max_batch_tokens=16_384, max_waiting=256
        ) as scorer:
            yield scorer


async def serve(name: str, path: Path) -> None:
    """Be the other process, until it is ended."""
    async with opened(name) as scorer, listening(scorer, path):
        await asyncio.Event().wait()


@asynccontextmanager
async def elsewhere(name: str) -> AsyncIterator[tuple[Scorer, int]]:
    """Open a scorer in a process of its own; gives its id, too."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "scorer")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.processes", name, str(path)
        )
        try:
            async with UnixSocketScorer(path) as scorer:
                yield scorer, process.pid
        finally:
            process.kill()
            await process.wait()


async def race(name: str, table: Table) -> None:
    """Score each text here and there in turn, alone and `AT_ONCE`, and add the medians."""
    policies = tuple(load_book(None).policies.values())[:4]
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(opened(name))
        there, process = await stack.enter_async_context(elsewhere(name))
        for label, text in TEXTS.items():
            exchange = Exchange(text)
            if await here.score(exchange, policies) != await there.score(exchange, policies):
                raise SystemExit("The two processes score differently.")
            if name == STARTER and label != next(iter(TEXTS)):
                continue  # a forward pass that long hides the way altogether
            for callers in (1, AT_ONCE):
                seconds: dict[Scorer, list[float]] = {here: [], there: []}
                worked: dict[Scorer, list[float]] = {here: [], there: []}
                for _ in range(ROUNDS[name] // (1 if callers == 1 else 4)):
                    for scorer, taken in seconds.items():
                        before = _processor_seconds(os.getpid(), process)
                        started = perf_counter()
                        calls = (scorer.score(exchange, policies) for _ in range(callers))
                        await asyncio.gather(*calls)
                        taken.append((perf_counter() - started) / callers)
                        after = _processor_seconds(os.getpid(), process)
                        worked[scorer].append((after - before) / callers)
                table.add_row(name, label, str(callers), *_cells(seconds), *_cells(worked))


def _processor_seconds(*processes: int) -> float:
    # The id of a process's clock, as clock_getcpuclockid(3) makes it.
    return sum(clock_gettime((~process << 3) | 2) for process in processes)


def _cells(seconds: dict[Scorer, list[float]]) -> tuple[str, str, str]:
    own, other = (median(taken) * 1e6 for taken in seconds.values())
    return f"{own:,.0f}", f"{other:,.0f}", f"{other / own:.2f}"


def main() -> None:
    """Race both scorers and print the table; or be the other process."""
    if len(sys.argv) > 1:
        asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
        return
    sides = ("here", "there", "ratio")
    columns = ("scorer", "text", "callers", *sides, *(f"{side}, worked" for side in sides))
    table = Table(*columns, title="µs of one score, by the median: passed, and worked")
    for name in (CHEAP, STARTER):
        asyncio.run(race(name, table))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
