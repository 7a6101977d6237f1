"""Say how gateways and scorers fare under a day's load, before they are bought.

    python -m benchmarks.scaling --times h200-2b --gateways 2 --scorers 2 --rate 150
    python -m benchmarks.scaling --times h200-2b --gateways 4 --rate 400 --p99 0.3 --seconds 60
    python -m benchmarks.scaling --rate 30 --peak 2 --bursts 4 --redis --repeats 0.3

A discrete-event model, fed with measured times: requests come by a day's curve with bursts, pass
a balancer, a gateway with its cache, Redis, and a scorer that batches as ours does. Each process
has a machine or a core of its own, unless --one-machine says that all share that of the times.

A day is --seconds long: queues come and go in seconds, so minutes tell as much as 24 hours would.
It is run with several seeds; in brackets is the 95 % interval. docs/simulation.md says what is
modelled, what isn't, and how far off a real run it was.
"""

import argparse
from dataclasses import replace
from itertools import islice

from rich.console import Console

from benchmarks.scaling.deployment import BALANCING, CHOICES, REFUSED, Plan
from benchmarks.scaling.load import Load
from benchmarks.scaling.report import limit, show
from benchmarks.scaling.scorer import Limits
from benchmarks.scaling.simulation import Day, simulate_all
from benchmarks.scaling.times import Times, shipped
from shieldgate.errors import ShieldgateError
from shieldgate.evaluation.adapters import ADAPTERS, OURS
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import load_book
from shieldgate.scoring.factory import open_prompts
from shieldgate.types import Exchange

MOST_REFUSED = 0.001  # of the requests, where scorers are enough
ROWS = 2000  # of which lengths are drawn


def main() -> None:
    """Simulate what the arguments say, and print."""
    parser = _parser()
    arguments = parser.parse_args()
    if not 1 <= arguments.peak <= 2:
        parser.error("--peak is from 1 to 2, or some hours had less than no requests")
    if arguments.seeds < 2:
        parser.error("--seeds is at least 2: one day has no interval")
    for name in ("gateways", "scorers", "rate", "seconds", "callers", "median"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name} is more than 0")
    console = Console(highlight=False, width=120)
    times = Times.read(arguments.times)
    if not arguments.one_machine:
        network = arguments.network_ms / 1e3
        times = replace(times, speeds=(), client=0.0, way=times.way + network, redis_way=network)
    elif not times.speeds:
        parser.error(f"{arguments.times} was not measured on one machine for all")
    try:
        plan, load = _plan(arguments), _load(arguments, times)
    except ShieldgateError as wrong:  # of the rows, or of what counts their tokens
        raise SystemExit(str(wrong)) from None
    console.print(f"{times.scorer_name}. {times.source}.")
    if arguments.p99 is None:
        show(console, plan, load, simulate_all(times, plan, load, arguments.seeds))
    else:
        _search(console, times, plan, load, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    deployed = parser.add_argument_group("what is deployed")
    deployed.add_argument(
        "--times",
        default="epyc-starter",
        help=f"measured times: {', '.join(shipped())}, or a .json that benchmarks.scaling.measure "
        "wrote on your hardware",
    )
    deployed.add_argument("--gateways", type=int, default=2)
    deployed.add_argument("--scorers", type=int, default=2)
    deployed.add_argument(
        "--choice",
        choices=CHOICES,
        default="rendezvous",
        help="how a gateway finds a scorer: by hashing (several URLs), by the balancer behind one "
        "URL, or it has its own, in its process or beside it (serve without a URL)",
    )
    deployed.add_argument(
        "--balancing", choices=BALANCING, default="round-robin", help="before the gateways"
    )
    deployed.add_argument(
        "--balancer-us", type=float, default=0, help="work of that balancer for a request"
    )
    deployed.add_argument("--redis", action="store_true", help="gateways share scores")
    deployed.add_argument(
        "--network-ms", type=float, default=0.3, help="a round trip between two machines"
    )
    deployed.add_argument(
        "--one-machine", action="store_true", help="all share the cores of the times' machine"
    )
    for name, value in vars(Limits()).items():
        flag = "--" + name.replace("_", "-")
        deployed.add_argument(flag, type=type(value), default=value, help=f"default: {value}")
    came = parser.add_argument_group("who asks")
    came.add_argument("--rate", type=float, default=20, help="requests/s, the day's average")
    came.add_argument("--seconds", type=float, default=300, help="length of the day")
    came.add_argument(
        "--peak", type=float, default=1.6, help="its highest rate as a multiple of the average"
    )
    came.add_argument("--bursts", type=float, default=2, help="how many a day, on average")
    came.add_argument("--burst-factor", type=float, default=3, help="times the rate, in a burst")
    came.add_argument("--burst-seconds", type=float, default=5, help="how long, on average")
    came.add_argument("--repeats", type=float, default=0.1, help="share of texts that come again")
    came.add_argument("--callers", type=int, default=100)
    came.add_argument("--median", type=float, default=40, help="tokens of a text; lognormal")
    came.add_argument("--sigma", type=float, default=0.8, help="of the logarithm of the tokens")
    came.add_argument("--texts", help="draw the lengths from rows, as evaluate reads them")
    came.add_argument("--adapter", choices=ADAPTERS, default=OURS.name, help="of those rows")
    came.add_argument("--tokenizer", default="starter", help="what counts their tokens")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--seeds", type=int, default=5, help="days that are run")
    asked.add_argument(
        "--p99",
        type=float,
        help="find how few scorers answer 99 %% within so many seconds, day by day",
    )
    asked.add_argument("--most-scorers", type=int, default=64, help="where that search ends")
    return parser


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        gateways=arguments.gateways,
        scorers=arguments.scorers,
        choice=arguments.choice,
        balancing=arguments.balancing,
        balancer=arguments.balancer_us / 1e6,
        redis=arguments.redis,
        limits=Limits(**{name: getattr(arguments, name) for name in vars(Limits())}),
    )


def _load(arguments: argparse.Namespace, times: Times) -> Load:
    names = (
        *("rate", "seconds", "peak", "bursts", "burst_factor", "burst_seconds"),
        *("repeats", "callers", "median", "sigma"),
    )
    return Load(
        **{name: getattr(arguments, name) for name in names},
        longest=times.context - times.prompt_tokens,
        lengths=_lengths(arguments) if arguments.texts else (),
    )


def _lengths(arguments: argparse.Namespace) -> list[int]:
    """Count the tokens that rows take beyond those of an empty text."""
    prompts = open_prompts(arguments.tokenizer, template="chat")
    book = load_book()
    policies = book.select(book.profile("default"))

    def tokens(exchange: Exchange) -> int:
        return sum(work.tokens for work in prompts.prepare(exchange, policies).work)

    empty = tokens(Exchange(""))
    rows = islice(Dataset(open_source(arguments.texts), ADAPTERS[arguments.adapter]).rows(), ROWS)
    return [max(1, tokens(row.example.exchange) - empty) for row in rows]


def _search(
    console: Console, times: Times, plan: Plan, load: Load, arguments: argparse.Namespace
) -> None:
    """Double the scorers until they are enough, then halve the gap."""
    found: dict[int, list[Day]] = {}

    def enough(scorers: int) -> bool:
        days = simulate_all(times, replace(plan, scorers=scorers), load, arguments.seeds)
        found[scorers] = days
        worst = max(day.percentile(99) for day in days)
        refused = max(day.share(*REFUSED) for day in days)
        seen = f"p99 {worst * 1e3:,.0f} ms, {refused:.1%} refused"
        console.print(f"{scorers:3} scorers: {seen} on the worst day")
        return worst < arguments.p99 and refused < MOST_REFUSED

    low, high = 0, 1
    while not enough(high):
        low, high = high, high * 2
        if high > arguments.most_scorers:
            raise SystemExit(
                f"{low} scorers are not enough for a p99 of {arguments.p99:g} s. "
                f"{limit(found[low])}"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    console.print(f"{high} scorers answer 99 % within {arguments.p99:g} s on each of the days.")
    show(console, replace(plan, scorers=high), load, found[high])


if __name__ == "__main__":
    main()
