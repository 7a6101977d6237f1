"""Days of a load on a deployment: what callers saw, how busy each part was, with intervals."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np
from scipy.stats import t as student
from simpy import Environment

from benchmarks.scaling.deployment import REFUSED, Deployment, Outcome, Plan
from benchmarks.scaling.load import Load, Request
from benchmarks.scaling.machines import Steps
from benchmarks.scaling.times import Times

PARTS = 12  # of a day, for what changes in it


@dataclass(frozen=True)
class Answer:
    """What became of a request; its `seconds` are those of its caller."""

    at: float
    seconds: float
    outcome: Outcome


@dataclass(frozen=True)
class Day:
    """One run; `busy` and `waiting` are of each kind of part: [its number][part of the day]."""

    seconds: float
    answers: list[Answer]
    busy: dict[str, list[list[float]]]
    waiting: dict[str, list[list[int]]]

    def percentile(self, percent: float, part: int | None = None) -> float:
        """Give the seconds within which so many percent were answered; nan where none was."""
        found = [
            answer.seconds
            for answer in self.answers
            if answer.outcome not in REFUSED and part in (None, self.part(answer))
        ]
        return float(np.percentile(found, percent)) if found else math.nan

    def share(self, *outcomes: Outcome) -> float:
        """Give the share of the requests that ended so."""
        found = Counter(answer.outcome for answer in self.answers)
        return sum(found[outcome] for outcome in outcomes) / max(1, len(self.answers))

    def part(self, answer: Answer) -> int:
        """Tell in which part of the day a request came."""
        return int(answer.at / self.seconds * PARTS)

    def busiest(self, kind: str) -> float:
        """Give how busy the busiest one of a kind was in its busiest part of the day."""
        return max(max(parts) for parts in self.busy[kind])


@dataclass(frozen=True)
class Interval:
    """A mean over days, and its 95 % interval by Student's t."""

    mean: float
    low: float
    high: float

    def shown(self, scale: float = 1.0, digits: int = 0) -> str:
        """Write it, times a scale."""
        if math.isnan(self.mean):
            return "-"
        mean, low, high = (
            f"{value * scale:,.{digits}f}" for value in (self.mean, self.low, self.high)
        )
        return mean if low == high else f"{mean} ({low}-{high})"


def over(days: Sequence[Day], of: Callable[[Day], float], *, ratio: bool = False) -> Interval:
    """Take the mean of a figure over days, at least two.

    Where it is a `ratio` scale, as of latencies, of which one day may have ten times another's, it
    is the geometric mean. Other figures are shares, from 0 to 1.
    """
    values = np.array([of(day) for day in days])
    values = np.log(values) if ratio else values
    middle = float(values.mean())
    quantile = float(student.ppf(0.975, len(values) - 1))
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    if ratio:
        return Interval(*map(math.exp, (middle, middle - half, middle + half)))
    return Interval(middle, max(0.0, middle - half), min(1.0, middle + half))


def simulate(times: Times, plan: Plan, load: Load, seed: int) -> Day:
    """Run one day until all who asked in it have an answer."""
    env = Environment()
    deployment = Deployment(env, times, plan, load.seconds, PARTS)
    answers: list[Answer] = []

    def ask(request: Request) -> Steps:
        outcome = yield from deployment.answer(request)
        answers.append(Answer(request.at, env.now - request.at, outcome))

    def come() -> Steps:
        for request in load.requests(seed):
            yield env.timeout(request.at - env.now)
            env.process(ask(request))

    env.process(come())
    env.run()
    meters = deployment.meters.items()
    return Day(
        load.seconds,
        answers,
        {kind: [meter.busy for meter in of_kind] for kind, of_kind in meters},
        {kind: [meter.longest for meter in of_kind] for kind, of_kind in meters},
    )


def simulate_all(
    times: Times, plan: Plan, load: Load, seeds: int, processes: int | None = None
) -> list[Day]:
    """Run a day for each seed, several at a time; `processes` is 1 for none beside this one."""
    one = partial(simulate, times, plan, load)
    if processes == 1 or seeds == 1:
        return [one(seed) for seed in range(seeds)]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(simulate, repeat(times), repeat(plan), repeat(load), range(seeds)))
