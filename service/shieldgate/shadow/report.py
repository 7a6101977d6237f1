"""What records of second opinions say: agreement, flips, and how far they may be by chance."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shieldgate.shadow.records import ShadowRecord
from shieldgate.statistics import clopper_pearson
from shieldgate.telemetry.shadow import Flip
from shieldgate.types import DIRECTIONS, Direction

_MOST_IDS = 20


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many; the share in 0..1 with its 95 % interval, None of nothing."""

    count: int
    of: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def among(cls, count: int, of: int) -> "Share":
        """Bound a share by Clopper and Pearson, as if exchanges were independent."""
        found = clopper_pearson(count, of)
        return cls(count, of, found.value, found.low, found.high)


@dataclass(frozen=True, slots=True)
class Differences:
    """By how much the candidate's probability is above that in force, where both judged."""

    exchanges: int
    mean: float | None
    mean_absolute: float | None
    percentiles: dict[int, float]


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """One policy in one direction; `new` and `gone` where only one of the two judges by it.

    What one of them doesn't judge by counts as not violated there.
    """

    policy: str
    new: bool
    gone: bool
    violated_in_force: int
    violated_by_candidate: int
    newly_violated: Share
    no_longer_violated: Share
    difference: Differences


@dataclass(frozen=True, slots=True)
class DirectionReport:
    """One direction: how often both act alike, what is stopped, and each policy.

    `same` are those with one action. What a candidate refuses for its language is blocked, too. The
    ids are of decisions' records, some of each kind.
    """

    direction: Direction
    exchanges: int
    same: Share
    blocked_in_force: int
    blocked_by_candidate: int
    newly_blocked: Share
    no_longer_blocked: Share
    policies: tuple[PolicyReport, ...]
    newly_blocked_ids: tuple[str, ...]
    no_longer_blocked_ids: tuple[str, ...]


class Who(NamedTuple):
    """A scorer and a version of a policy book."""

    scorer: str
    policy_book: str


@dataclass(frozen=True, slots=True)
class PairReport:
    """What was in force, a candidate, and how they compare.

    `profiles` are those in force, each with the candidate's. `shares` are those of all decisions
    that were judged twice. `otherwise` are those that the two act on otherwise. `tokens` and
    `seconds` are what was computed for the candidate.
    """

    in_force: Who
    candidate: Who
    profiles: tuple[tuple[str, str], ...]
    shares: tuple[float, ...]
    exchanges: int
    otherwise: Share
    directions: tuple[DirectionReport, ...]
    tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Give all figures as plain data."""
        plain = asdict(self)
        return plain | {"in_force": self.in_force._asdict(), "candidate": self.candidate._asdict()}


def report(records: Iterable[ShadowRecord]) -> list[PairReport]:
    """Compare by records, in the order in which pairs first came; in bounded memory."""
    pairs: dict[tuple[Who, Who], _Pair] = {}
    for record in records:
        sides = record.in_force, record.candidate
        before, after = (Who(side.scorer, side.policy_book) for side in sides)
        pairs.setdefault((before, after), _Pair()).add(record)
    return [pair.report(*who) for who, pair in pairs.items()]


@dataclass(slots=True)
class _Policy:
    in_force: int = 0
    candidate: int = 0
    violated: Counter[str] = field(default_factory=Counter)
    flips: Counter[Flip] = field(default_factory=Counter)
    differences: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass(slots=True)
class _Direction:
    exchanges: int = 0
    same: int = 0
    blocked: Counter[str] = field(default_factory=Counter)
    ids: dict[str, list[str]] = field(default_factory=lambda: {"newly": [], "no_longer": []})
    flipped: Counter[str] = field(default_factory=Counter)
    policies: dict[str, _Policy] = field(default_factory=dict)

    def add(self, record: ShadowRecord) -> None:
        before, after = record.in_force, record.candidate
        self.exchanges += 1
        self.same += before.action is after.action
        stopped = before.action.stops, after.action.stops
        self.blocked.update(in_force=stopped[0], candidate=stopped[1])
        if stopped[0] != stopped[1]:
            change = "newly" if stopped[1] else "no_longer"
            self.flipped[change] += 1
            if len(self.ids[change]) < _MOST_IDS:
                self.ids[change].append(record.id)
        for policy, readings in record.policies.items():
            found = self.policies.setdefault(policy, _Policy())
            violated = policy in before.violated, policy in after.violated
            found.in_force += readings.in_force is not None
            found.candidate += readings.candidate is not None
            found.violated.update(in_force=violated[0], candidate=violated[1])
            if violated[0] != violated[1]:
                found.flips["newly_violated" if violated[1] else "no_longer_violated"] += 1
            if readings.in_force and readings.candidate:
                found.differences.append(
                    readings.candidate.probability - readings.in_force.probability
                )

    def report(self, direction: Direction) -> DirectionReport:
        return DirectionReport(
            direction=direction,
            exchanges=self.exchanges,
            same=Share.among(self.same, self.exchanges),
            blocked_in_force=self.blocked["in_force"],
            blocked_by_candidate=self.blocked["candidate"],
            newly_blocked=Share.among(self.flipped["newly"], self.exchanges),
            no_longer_blocked=Share.among(self.flipped["no_longer"], self.exchanges),
            policies=tuple(self._policies()),
            newly_blocked_ids=tuple(self.ids["newly"]),
            no_longer_blocked_ids=tuple(self.ids["no_longer"]),
        )

    def _policies(self) -> Iterator[PolicyReport]:
        for policy, found in sorted(self.policies.items()):
            judged = max(found.in_force, found.candidate)
            yield PolicyReport(
                policy=policy,
                new=not found.in_force,
                gone=not found.candidate,
                violated_in_force=found.violated["in_force"],
                violated_by_candidate=found.violated["candidate"],
                newly_violated=Share.among(found.flips["newly_violated"], judged),
                no_longer_violated=Share.among(found.flips["no_longer_violated"], judged),
                difference=_differences(found.differences),
            )


@dataclass(slots=True)
class _Pair:
    profiles: dict[tuple[str, str], None] = field(default_factory=dict)
    shares: dict[float, None] = field(default_factory=dict)
    directions: dict[Direction, _Direction] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    def add(self, record: ShadowRecord) -> None:
        self.profiles[record.in_force.profile, record.candidate.profile] = None
        self.shares[record.share] = None
        self.directions.setdefault(record.direction, _Direction()).add(record)
        self.tokens += record.tokens
        self.seconds += record.seconds

    def report(self, in_force: Who, candidate: Who) -> PairReport:
        found = self.directions.values()
        exchanges = sum(direction.exchanges for direction in found)
        return PairReport(
            in_force=in_force,
            candidate=candidate,
            profiles=tuple(self.profiles),
            shares=tuple(self.shares),
            exchanges=exchanges,
            otherwise=Share.among(exchanges - sum(d.same for d in found), exchanges),
            directions=tuple(
                self.directions[d].report(d) for d in DIRECTIONS if d in self.directions
            ),
            tokens=self.tokens,
            seconds=self.seconds,
        )


def _differences(found: "array[float]") -> Differences:
    if not found:
        return Differences(0, None, None, {})
    values = np.array(found)
    places = (5, 50, 95)
    percentiles = dict(zip(places, np.percentile(values, places).tolist(), strict=True))
    return Differences(values.size, float(values.mean()), float(np.abs(values).mean()), percentiles)
