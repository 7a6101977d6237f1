"""`GET /admin/figures`: how the server fares now, and did in the last minutes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Self, get_args

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from shieldgate.drift import ScoreHistogram, State
from shieldgate.gateway.services import ServicesDep
from shieldgate.telemetry import BreakerState, Figures, Phase, RecentFigures, expected_by
from shieldgate.types import Direction

router = APIRouter()


class Times(BaseModel):
    """How long something took, in seconds: half of the times at most `half`, 95 % `most`."""

    half: float
    most: float


class Point(BaseModel):
    """What happened in the `seconds` before `time`, which is in seconds since the epoch.

    `blocked`, `would_block` and `failed` count verdicts, each on one policy.
    """

    time: float
    seconds: float
    requests: int
    blocked: int
    would_block: int
    failed: int
    queued: int

    @classmethod
    def between(cls, earlier: Figures, later: Figures) -> Self:
        """Compare figures with earlier ones."""
        new = later.since(earlier)
        return cls(
            time=later.time,
            seconds=later.time - earlier.time,
            requests=new.requests.total(),
            blocked=new.results("blocked"),
            would_block=new.results("would_block"),
            failed=new.results("failed_open") + new.results("failed_closed"),
            queued=later.queued,
        )


class ScoreDrift(BaseModel):
    """How far the `scores` of the last day have moved from what is expected.

    `psi`, `by_chance` and `state` are as in docs/drift.md; null where there are too few. `of` says
    which scores are expected, where they aren't those of the calibration itself.
    """

    policy: str
    direction: Direction
    scores: int
    of: str
    psi: float | None
    by_chance: float | None
    state: State | None


class FiguresReply(BaseModel):
    """How things stand, and what was counted in the last `seconds`.

    `requests` are counted by outcome, `verdicts` by policy and result, `lookups` of scores by where
    they were found, `failures` of the guard by reason. `times` are those of phases.
    docs/metrics.md says what each word means. `drift` has the policies whose scores can be compared
    with those of their calibration. `points` are steps of those seconds. What is
    `in_progress` is so beside the request that asked.
    """

    seconds: float
    ready: bool
    scorer: str
    policy_book: str
    policies_refused: bool
    keys_refused: bool
    in_progress: int
    queued: int
    breakers: Mapping[str, BreakerState]
    requests: Mapping[str, int]
    verdicts: Mapping[str, Mapping[str, int]]
    lookups: Mapping[str, int]
    failures: Mapping[str, int]
    times: Mapping[Phase, Times]
    drift: Sequence[ScoreDrift]
    points: Sequence[Point]


@router.get("/admin/figures")
async def figures(
    request: Request, services: ServicesDep, minutes: Annotated[int, Query(ge=1, le=10)] = 10
) -> FiguresReply:
    """Show figures of the last minutes, out of the metrics.

    They are those of all processes that add their metrics up. The start, or what this process has
    seen, is as far back as they go.
    """
    recent: RecentFigures = request.app.state.figures
    taken = await recent.until_now()
    now = taken[-1]
    taken = [then for then in taken if then.time >= now.time - 60 * minutes]
    new = now.since(taken[0])
    verdicts: dict[str, dict[str, int]] = {}
    for (policy, result), number in new.verdicts.items():
        verdicts.setdefault(policy, {})[result] = number
    return FiguresReply(
        seconds=now.time - taken[0].time,
        ready=services.screener.scorer.ready,
        scorer=services.screener.name,
        policy_book=services.policies.current.version,
        policies_refused=now.policies_refused,
        keys_refused=now.keys_refused,
        in_progress=max(0, now.in_progress - 1),
        queued=now.queued,
        breakers=now.breakers,
        requests=new.requests,
        verdicts=verdicts,
        lookups=new.lookups,
        failures=new.failures,
        times=_times(new),
        drift=_drift(now, services.policies.current.expected_scores(services.screener.name)),
        points=[Point.between(*pair) for pair in pairwise(taken)],
    )


def _drift(
    now: Figures, compared: Mapping[tuple[str, Direction], ScoreHistogram]
) -> list[ScoreDrift]:
    return [
        ScoreDrift(
            policy=policy,
            direction=direction,
            scores=now.scores[policy, direction],
            of=reference.of,
            psi=found.psi if found else None,
            by_chance=found.by_chance if found else None,
            state=found.state if found else None,
        )
        for (policy, direction), reference in compared.items()
        for found in (now.drift.get((policy, direction, expected_by(reference))),)
    ]


def _times(new: Figures) -> dict[Phase, Times]:
    found = {}
    for phase in get_args(Phase):
        half, most = new.longest(phase, 0.5), new.longest(phase, 0.95)
        if half is not None and most is not None:
            found[phase] = Times(half=half, most=most)
    return found
