"""The metrics as a few figures for people, and how they changed in the last minutes."""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from time import time
from typing import get_args

import structlog
from prometheus_client import Metric

from shieldgate.drift import Drift
from shieldgate.telemetry.metrics import SECONDS, BreakerState, Phase, Telemetry

_BREAKER: tuple[BreakerState, ...] = get_args(BreakerState)

# Ten minutes, in steps in which a person sees a chart move.
_STEP_SECONDS = 10.0
_STEPS = 60

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was counted until `time`, in seconds since the epoch, and how things stood then.

    `requests` are counted by outcome, `verdicts` by (policy, result), `lookups` by where scores
    were found, `failures` of the guard by reason. `phases` are counted by (phase, seconds): how
    often it took at most so long. `scores` counts those of the last day that are compared with
    others, by policy and direction, and `drift` says how far they have moved from which, where that
    can be told.
    """

    time: float
    requests: Counter[str]
    verdicts: Counter[tuple[str, str]]
    lookups: Counter[str]
    failures: Counter[str]
    phases: Counter[tuple[str, float]]
    in_progress: int
    queued: int
    breakers: Mapping[str, BreakerState]
    policies_refused: bool
    keys_refused: bool
    scores: Counter[tuple[str, str]]
    drift: Mapping[tuple[str, str, str], Drift]

    @classmethod
    def of(cls, metrics: Iterable[Metric], counted: Callable[[str], bool]) -> "Figures":
        """Read metrics; of requests only those to routes that are `counted`."""
        requests, verdicts, lookups = Counter[str](), Counter[tuple[str, str]](), Counter[str]()
        failures, phases = Counter[str](), Counter[tuple[str, float]]()
        breakers: dict[str, BreakerState] = {}
        gauges: dict[str, float] = {}
        scores, psi = Counter[tuple[str, str]](), dict[tuple[str, str, str], float]()
        by_chance: dict[tuple[str, str, str], float] = {}
        for metric in metrics:
            for name, labels, value, *_ in metric.samples:
                match name.removeprefix("shieldgate_"):
                    case "requests_total" if counted(labels["route"]):
                        requests[labels["outcome"]] += int(value)
                    case "verdicts_total":
                        verdicts[labels["policy"], labels["result"]] += int(value)
                    case "cache_lookups_total":
                        lookups[labels["level"]] += int(value)
                    case "guard_failures_total":
                        failures[labels["reason"]] += int(value)
                    case "phase_seconds_bucket":
                        phases[labels["phase"], float(labels["le"])] += int(value)
                    case "breaker_state":
                        breakers[labels["breaker"]] = _BREAKER[int(value)]
                    case "drift_scores":
                        scores[labels["policy"], labels["direction"]] += int(value)
                    case "drift_psi" | "drift_psi_by_chance" as index if not math.isnan(value):
                        at = labels["policy"], labels["direction"], labels["expected"]
                        (psi if index == "drift_psi" else by_chance)[at] = value
                    case other if not labels:
                        gauges[other] = value
        return cls(
            time=time(),
            requests=requests,
            verdicts=verdicts,
            lookups=lookups,
            failures=failures,
            phases=phases,
            in_progress=int(gauges.get("requests_in_progress", 0)),
            queued=int(gauges.get("queued_pieces", 0)),
            breakers=breakers,
            policies_refused=bool(gauges.get("policies_refused")),
            keys_refused=bool(gauges.get("keys_refused")),
            scores=scores,
            drift={at: Drift(psi[at], by_chance[at]) for at in psi.keys() & by_chance.keys()},
        )

    def since(self, earlier: "Figures") -> "Figures":
        """Give what was counted since then; how things stand is as it is now."""
        return replace(
            self,
            requests=self.requests - earlier.requests,
            verdicts=self.verdicts - earlier.verdicts,
            lookups=self.lookups - earlier.lookups,
            failures=self.failures - earlier.failures,
            phases=self.phases - earlier.phases,
        )

    def results(self, result: str) -> int:
        """Count the verdicts of one result, on all policies."""
        return sum(number for (_, found), number in self.verdicts.items() if found == result)

    def longest(self, phase: Phase, share: float) -> float | None:
        """Estimate within how many seconds a share of a phase's times lies; None where it has none.

        Between the bounds of a bucket they are taken to lie evenly, as by Prometheus'
        histogram_quantile; what is beyond the last bound counts as that.
        """
        wanted = share * self.phases[phase, float("inf")]
        if not wanted:
            return None
        for below, bound in pairwise((0.0, *SECONDS)):
            before, until = self.phases[phase, below], self.phases[phase, bound]
            if until >= wanted:
                return below + (bound - below) * (wanted - before) / (until - before)
        return SECONDS[-1]


class RecentFigures:
    """Takes the figures every few seconds and keeps those of the last minutes.

    Of requests it takes those to routes that are `counted`, by their patterns.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        counted: Callable[[str], bool],
        *,
        step_seconds: float = _STEP_SECONDS,
        steps: int = _STEPS,
    ) -> None:
        self._telemetry = telemetry
        self._counted = counted
        self._step_seconds = step_seconds
        self._taken: deque[Figures] = deque(maxlen=steps + 1)

    async def run(self) -> None:
        """Take figures until cancelled."""
        while True:
            try:
                self._taken.append(await self._take())
            except Exception:  # of a directory of metrics that others write to, too
                log.exception("figures could not be taken")
            await asyncio.sleep(self._step_seconds)

    async def until_now(self) -> list[Figures]:
        """Give what was taken, the oldest first, and what can be taken now."""
        return [*self._taken, await self._take()]

    async def _take(self) -> Figures:
        # In a thread, because the files of several processes are read.
        return await asyncio.to_thread(self._read)

    def _read(self) -> Figures:
        return Figures.of(self._telemetry.gathered().collect(), self._counted)
