"""What a simulation found, as tables and a sentence."""

from collections.abc import Callable, Sequence
from statistics import mean

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.scaling.deployment import REFUSED, Plan
from benchmarks.scaling.load import Load
from benchmarks.scaling.simulation import PARTS, Day, Interval, over

FULL = 0.95  # busy, as a share of the time
GROWING = 0.05  # of what comes, and more than a FEW, where it is left
FEW = 10

# What may be the limit, the last on a request's way first, and what to do then.
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
    """Say when queues grow, and which part is the limit; or which is the busiest."""
    parts = [part for part in range(PARTS) if _grows(days, part)]
    kinds = _kinds(days)

    def busy(kind: str, among: Sequence[int]) -> float:
        return mean(max(one[part] for one in day.busy[kind] for part in among) for day in days)

    busiest = {kind: busy(kind, parts or range(PARTS)) for kind in kinds}
    # Where one is full all before it fill, too.
    full = (kind for kind in kinds if busiest[kind] > FULL)
    kind = next(full, max(kinds, key=busiest.__getitem__))
    if parts:
        names = ", ".join(str(part + 1) for part in parts)
        return f"Queues grow in part {names} of the day: the limit is the {kind}. {MEND[kind]}"
    return (
        f"No queue grows for long. The busiest is the {kind}, {busiest[kind]:.0%} in its busiest "
        f"{PARTS}th of the day."
    )


def _grows(days: Sequence[Day], part: int) -> bool:
    """Tell whether much of what came in a part of the day was not answered by its end."""
    came = answered = 0
    for day in days:
        begin, end = (number * day.seconds / PARTS for number in (part, part + 1))
        came += sum(day.part(answer) == part for answer in day.answers)
        answered += sum(
            begin <= answer.at + answer.seconds < end and answer.outcome not in REFUSED
            for answer in day.answers
        )
    return came - answered > max(GROWING * came, FEW * len(days))


def latency(days: Sequence[Day], percent: float) -> Interval:
    """Give the seconds within which so many percent of those who were answered were."""
    return over(days, lambda day: day.percentile(percent), ratio=True)


def _table(*columns: str) -> Table:
    """Begin a table of figures."""
    made = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        made.add_column(column, justify="right")
    return made


def _kinds(days: Sequence[Day]) -> list[str]:
    return [kind for kind in MEND if any(any(map(any, day.busy[kind])) for day in days)]


def _callers(days: Sequence[Day]) -> Table:
    made = _table("p50, ms", "p95, ms", "p99, ms", "cached, %", "in Redis, %", "429, %", "503, %")
    times = (latency(days, percent).shown(1e3) for percent in (50, 95, 99))
    outcomes = ("cached", "shared", "full", "late")
    shares = (over(days, lambda day, o=o: day.share(o)).shown(100, 1) for o in outcomes)
    made.add_row(*times, *shares)
    return made


def _parts(days: Sequence[Day]) -> Table:
    made = _table("", "busy, %", f"in its busiest {PARTS}th, %", "longest queue", "full at about")
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
    made = _table("part", "requests/s", *columns)
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
