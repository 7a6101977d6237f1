"""What a simulation found, as tables and a sentence."""

from collections.abc import Callable, Sequence
from statistics import mean

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.scaling.deployment import REFUSED, Plan
from benchmarks.scaling.load import Load
from benchmarks.scaling.simulation import PARTS, Day, Interval, over

FULL = 0.95  # so busy, a queue does nothing but grow

# What may be the limit, and what to do then. What is full first is it: all before it fills, too.
MEND = {
    "scorer": "Add scorers, or faster ones.",
    "scorer's loop": "Add scorer processes.",
    "Redis": "Take a Redis cluster, or do without Redis.",
    "places": "Raise --model-texts, or add gateways.",
    "gateway": "Add gateways.",
    "balancer": "Take a faster balancer, or two behind one name.",
}


def show(console: Console, plan: Plan, load: Load, days: Sequence[Day]) -> None:
    """Print what callers saw, how busy each part was, the course of the day, and the limit."""
    console.print(
        f"{plan.gateways} gateways, {plan.scorers} scorers ({plan.choice}), "
        f"{mean(len(day.answers) for day in days):,.0f} requests in a day of {load.seconds:g} s; "
        f"mean (95 % interval) of {len(days)} days."
    )
    console.print(_callers(days))
    console.print(_parts(days))
    console.print(_course(load, days))
    console.print(limit(days))


def limit(days: Sequence[Day]) -> str:
    """Say which part is the limit, and when; or which is the busiest."""
    kinds = _kinds(days)
    for kind in kinds:
        full = [
            str(part + 1)
            for part in range(PARTS)
            if mean(max(one[part] for one in day.busy[kind]) for day in days) > FULL
        ]
        if full:
            return (
                f"Queues grow in part {', '.join(full)} of the day: the limit is the {kind}. "
                f"{MEND[kind]}"
            )
    busiest = {kind: mean(day.busiest(kind) for day in days) for kind in kinds}
    kind = max(busiest, key=busiest.__getitem__)
    return (
        f"No queue grows for long. The busiest is the {kind}, {busiest[kind]:.0%} in its busiest "
        f"{PARTS}th of the day."
    )


def latency(days: Sequence[Day], percent: float) -> Interval:
    """Give the seconds within which so many percent of those who were answered were."""
    return over(days, lambda day: day.percentile(percent), ratio=True)


def table(*columns: str) -> Table:
    """Begin a table of figures."""
    made = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        made.add_column(column, justify="right")
    return made


def _kinds(days: Sequence[Day]) -> list[str]:
    return [kind for kind in MEND if any(any(map(any, day.busy[kind])) for day in days)]


def _callers(days: Sequence[Day]) -> Table:
    made = table("p50, ms", "p95, ms", "p99, ms", "cached, %", "in Redis, %", "429, %", "503, %")
    times = (latency(days, percent).shown(1e3) for percent in (50, 95, 99))
    outcomes = ("cached", "shared", "full", "late")
    shares = (over(days, lambda day, o=o: day.share(o)).shown(100, 1) for o in outcomes)
    made.add_row(*times, *shares)
    return made


def _parts(days: Sequence[Day]) -> Table:
    made = table("", "busy, %", f"in its busiest {PARTS}th, %", "longest queue", "full at about")
    answered = mean(1 - day.share(*REFUSED) for day in days)
    rate = answered * mean(len(day.answers) / day.seconds for day in days)
    for kind in _kinds(days):
        usual = over(days, _of(kind))
        made.add_row(
            kind,
            usual.shown(100),
            over(days, lambda day, kind=kind: day.busiest(kind)).shown(100),
            f"{max(max(map(max, day.waiting[kind])) for day in days)}",
            f"{rate / usual.mean:,.0f}/s",
        )
    return made


def _of(kind: str) -> Callable[[Day], float]:
    return lambda day: mean(map(mean, day.busy[kind]))


def _course(load: Load, days: Sequence[Day]) -> Table:
    columns = ("p50, ms", "p99, ms", "refused, %", "scorers busy, %", "longest queue there")
    made = table("part", "requests/s", *columns)
    for part in range(PARTS):
        outcomes = [a.outcome for day in days for a in day.answers if day.part(a) == part]
        refused = sum(outcome in REFUSED for outcome in outcomes)
        busy = mean(mean(one[part] for one in day.busy["scorer"]) for day in days)
        queue = mean(max(one[part] for one in day.waiting["scorer"]) for day in days)
        made.add_row(
            str(part + 1),
            f"{len(outcomes) / len(days) / load.seconds * PARTS:,.0f}",
            *(
                over(days, lambda d, p=p, part=part: d.percentile(p, part), ratio=True).shown(1e3)
                for p in (50, 99)
            ),
            f"{100 * refused / max(1, len(outcomes)):.1f}",
            f"{100 * busy:.0f}",
            f"{queue:.0f}",
        )
    return made
