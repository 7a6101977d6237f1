"""Check the model against a real run on this machine: what it predicts, and what was seen.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling.validate times.json [--seconds 40]

Two gateways before two scorers, all real, and the caller share the cores, which the model takes
into account. `times.json` is what benchmarks.scaling.measure wrote here; capacity is the rate at
which the cores have work for all of the time, by those times. Each load is predicted before it
is run, from other draws of the same load. Wants a quiet machine; loopback only.
"""

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.scaling.deployment import REFUSED, Plan
from benchmarks.scaling.load import Load
from benchmarks.scaling.real import Client, processor_seconds, running
from benchmarks.scaling.scorer import Limits
from benchmarks.scaling.simulation import Day, Interval, over, simulate_all
from benchmarks.scaling.times import Times

# Small, so that what is too much is refused within a short run.
LIMITS = Limits(max_waiting=16, guard_seconds=5.0)
PERCENTILES = (50, 95, 99)
SEEDS = 10


def main() -> None:
    """Predict, run, and print both."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling.validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("times", help="the file that was measured on this machine")
    parser.add_argument("--seconds", type=float, default=40, help="of each load")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--scorers", type=int, default=2)
    parser.add_argument("--repeats", type=float, default=0.2, help="share of texts that come again")
    parser.add_argument(
        "--loads", type=float, nargs="*", default=(0.3, 0.7, 1.1), help="shares of the capacity"
    )
    arguments = parser.parse_args()
    times = Times.read(arguments.times)
    if not times.speeds:
        parser.error("these times are of machines apart; measure them here")
    plan = Plan(arguments.gateways, arguments.scorers, limits=LIMITS)
    whole = capacity(times, Load(1.0, arguments.seconds, repeats=arguments.repeats), plan)
    loads = [
        Load(share * whole, arguments.seconds, repeats=arguments.repeats)
        for share in arguments.loads
    ]
    predicted = [simulate_all(times, plan, load, SEEDS) for load in loads]
    console = Console(highlight=False, width=110)
    table = Table(box=box.MARKDOWN)
    for column in ("load", "requests/s", "", "predicted", "seen", "predicted / seen"):
        table.add_column(column, justify="right")
    with running(arguments.gateways, arguments.scorers, LIMITS) as servers:
        for share, load, days in zip(arguments.loads, loads, predicted, strict=True):
            seen, busy = asyncio.run(_run(servers.gateways, load, _all(servers)))
            _add(table, f"{share:.0%}", f"{load.rate:.0f}", days, seen)
            console.print(f"{share:.0%}: {len(seen.answers)} requests, cores {busy:.0%} busy")
    console.print(f"Capacity by the times: {whole:.0f} requests/s. {times.source}")
    console.print(table)


def capacity(times: Times, load: Load, plan: Plan) -> float:
    """Give the rate at which shared cores have work for all of the time, in full passes."""
    lengths = [r.tokens for r in replace(load, rate=1000.0, seconds=10.0).requests(0)]
    tokens = times.prompt_tokens + float(np.mean(lengths))
    scored = times.scored + times.scorer + times.pass_text + times.pass_token * tokens
    # A text that came before is cached where it came to the same gateway.
    again = load.repeats / plan.gateways
    work = again * times.cached + (1 - again) * scored + times.client
    return len(times.speeds) * times.speeds[-1] / work


def _all(servers: object) -> list[int]:
    return [*servers.gateway_ids, *servers.scorer_ids, os.getpid()]


async def _run(gateways: Sequence[str], load: Load, processes: list[int]) -> tuple[Day, float]:
    """Put a load on the real ones; gives what was seen, and how busy all of it kept the cores."""
    requests = list(load.requests(seed=SEEDS))  # a draw that nothing was predicted from
    async with Client(gateways) as client:
        await asyncio.gather(*(client.ask("Hello.") for _ in range(8)))
        before = processor_seconds(processes)
        answers = await client.ask_all(requests)
        worked = processor_seconds(processes) - before
    length = max(answer.at + answer.seconds for answer in answers)
    return Day(load.seconds, answers, {}, {}), worked / length / (os.cpu_count() or 1)


def _add(table: Table, share: str, rate: str, days: Sequence[Day], seen: Day) -> None:
    for percent in PERCENTILES:
        found = over(days, lambda day, percent=percent: day.percentile(percent))
        real = seen.percentile(percent)
        off = f"{found.mean / real:.2f}"
        table.add_row(share, rate, f"p{percent}, ms", found.shown(1e3), f"{real * 1e3:.0f}", off)
        share = rate = ""
    refused: Interval = over(days, lambda day: day.share(*REFUSED))
    table.add_row("", "", "refused, %", refused.shown(100, 1), f"{seen.share(*REFUSED):.1%}"[:-1])


if __name__ == "__main__":
    main()
