"""Check the model against a real run on this machine: what it predicts, and what was seen.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling.validate times.json seen.json [--seconds 30]

Two gateways before two scorers, all real, and their caller share the cores, which the model takes
into account. `times.json` is what benchmarks.scaling.measure wrote here; capacity is the rate at
which the cores have work for all of the time, by those times. What is seen is written to
`seen.json`, and not run again where that is there. The predictions are of other draws of the same
load. Wants a quiet machine while it runs; loopback only.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import orjson
from pydantic import TypeAdapter
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.scaling.deployment import REFUSED, Plan
from benchmarks.scaling.load import Load
from benchmarks.scaling.real import Client, others_seconds, processor_seconds, running
from benchmarks.scaling.report import latency
from benchmarks.scaling.scorer import Limits
from benchmarks.scaling.simulation import Answer, Day, over, simulate_all
from benchmarks.scaling.times import Times

# Small, so that what is too much is refused within a short run.
LIMITS = Limits(max_waiting=16, guard_seconds=5.0)
PLAN = Plan(gateways=2, scorers=2, limits=LIMITS)
PERCENTILES = (50, 95, 99)
SEEDS = 6


@dataclass(frozen=True)
class Seen:
    """A real run of one load.

    `worked` is what gateways, scorers and client did for a request; `others` is how many cores
    worked for other processes on average.
    """

    share: float
    load: Load
    cores: float
    others: float
    worked: tuple[float, ...]
    answers: list[Answer]

    def day(self) -> Day:
        return Day(self.load.seconds, self.answers, {}, {})


def main() -> None:
    """Run what was not run yet, predict, and print both."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling.validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("times", help="the file that was measured on this machine")
    parser.add_argument("seen", type=Path, help="what was seen; written where it is not there")
    parser.add_argument("--seconds", type=float, default=30, help="of each load")
    parser.add_argument("--repeats", type=float, default=0.2, help="share of texts that come again")
    parser.add_argument(
        "--loads", type=float, nargs="*", default=(0.3, 0.7, 1.1), help="shares of the capacity"
    )
    parser.add_argument("--only-run", action="store_true", help="leave the prediction for later")
    arguments = parser.parse_args()
    times = Times.read(arguments.times)
    if not times.speeds:
        parser.error("these times are of machines apart; measure them here")
    if not arguments.seen.exists():
        whole = capacity(times, arguments.repeats)
        loads = {
            share: Load(round(share * whole, 1), arguments.seconds, repeats=arguments.repeats)
            for share in arguments.loads
        }
        seen = asyncio.run(_run(loads))
        arguments.seen.write_bytes(orjson.dumps(seen, option=orjson.OPT_SERIALIZE_DATACLASS))
    if not arguments.only_run:
        found = TypeAdapter(list[Seen]).validate_json(arguments.seen.read_bytes())
        console = Console(highlight=False, width=110)
        console.print(f"{times.source}. Capacity: {capacity(times, arguments.repeats):.0f}/s.")
        console.print(_table(times, found))


def capacity(times: Times, repeats: float) -> float:
    """Give the rate at which shared cores have work for all of the time, in passes of 8 texts."""
    lengths = [times.prompt_tokens + r.tokens for r in Load(1000.0, 10.0).requests(0)]
    batches = [lengths[n : n + 8] for n in range(0, len(lengths), 8)]
    forward = sum(map(times.forward, batches)) / len(lengths)
    again = repeats / PLAN.gateways  # where it came to the same gateway
    scored = times.scored + times.scorer + forward
    work = again * times.cached + (1 - again) * scored + times.client
    return len(times.speeds) * times.speeds[-1] / work


async def _run(loads: Mapping[float, Load]) -> list[Seen]:
    """Put loads on the real ones, one after the other."""
    seen = []
    with running(PLAN.gateways, PLAN.scorers, LIMITS) as servers:
        processes = servers.gateway_ids, servers.scorer_ids, [os.getpid()]
        async with Client(servers.gateways) as client:
            for number, (share, load) in enumerate(loads.items()):
                # Draws that nothing is predicted from, and texts that no load before had.
                requests = [
                    replace(one, text=one.text + number * 10**6)
                    for one in load.requests(seed=SEEDS + number)
                ]
                await asyncio.gather(*(client.ask("Hello.") for _ in range(8)))
                every = [*chain(*processes)]
                others = others_seconds(every)
                before, began = [*map(processor_seconds, processes)], time.perf_counter()
                answers = await client.ask_all(requests)
                length = time.perf_counter() - began
                others = (others_seconds(every) - others) / length
                after = map(processor_seconds, processes)
                worked = [b - a for a, b in zip(before, after, strict=True)]
                each = tuple(one / len(answers) for one in worked)
                seen.append(Seen(share, load, sum(worked) / length, others, each, answers))
                print(f"{share:.0%}: {len(answers)} requests; of two cores {others:.2f} for others")
                await asyncio.sleep(1)
    return seen


def _table(times: Times, seen: Sequence[Seen]) -> Table:
    made = Table(box=box.MARKDOWN)
    for column in (
        "load",
        "requests/s",
        "cores, others",
        "",
        "predicted",
        "seen",
        "predicted / seen",
    ):
        made.add_column(column, justify="right")
    for one in seen:
        # What others took is no part of the model: all cores are slower by it.
        left = 1 - one.others / len(times.speeds)
        rest = replace(times, speeds=tuple(speed * left for speed in times.speeds))
        days, real = simulate_all(rest, PLAN, one.load, SEEDS), one.day()
        cells = f"{one.share:.0%}", f"{one.load.rate:.0f}", f"{one.cores:.2f} + {one.others:.2f}"
        for percent in PERCENTILES:
            expected, found = latency(days, percent), real.percentile(percent)
            figures = expected.shown(1e3), f"{found * 1e3:.0f}", f"{expected.mean / found:.2f}"
            made.add_row(*cells, f"p{percent}, ms", *figures)
            cells = "", "", ""
        refused = over(days, lambda day: day.share(*REFUSED))
        figures = refused.shown(100, 1), f"{100 * real.share(*REFUSED):.1f}", ""
        made.add_row(*cells, "refused, %", *figures)
    return made


if __name__ == "__main__":
    main()
