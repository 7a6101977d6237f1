"""What a candidate says of live traffic beside what is in force: metrics, and a record of each.

As in the records of decisions, no text is in any of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from shieldgate.telemetry.audit import Decision, Sink
from shieldgate.types import Judgement, Verdict

ShadowOutcome = Literal["judged", "failed", "dropped", "skipped"]
Flip = Literal["newly_violated", "no_longer_violated"]

SHADOW = "shadow"
"""The event of the log lines that are records of second opinions."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SecondOpinion:
    """A final decision, and what a candidate says of the same exchange.

    `profile`, `book` and `scorer` are the candidate's. `share` of all decisions in 0..1 are judged
    so. `tokens` were computed for it, in `seconds` of the scorer's time.
    """

    decision: Decision
    verdict: Verdict
    profile: str
    book: str
    scorer: str
    share: float
    tokens: int
    seconds: float

    @property
    def flips(self) -> dict[str, Flip]:
        """Say which policies only one of the two finds violated; one not judged is not violated."""
        before, after = set(self.decision.verdict.violated), set(self.verdict.violated)
        newly: dict[str, Flip] = dict.fromkeys(sorted(after - before), "newly_violated")
        return newly | dict.fromkeys(sorted(before - after), "no_longer_violated")

    def record(self) -> dict[str, Any]:
        """Write it as its record."""
        decision, sides = self.decision, (self.decision.verdict, self.verdict)
        judged = [{j.policy: j for j in verdict.judgements} for verdict in sides]
        before, after = [_side(verdict) for verdict in sides]
        return {
            "id": decision.id,
            "direction": decision.verdict.direction,
            "in_force": before
            | {
                "profile": decision.profile,
                "policy_book": decision.book,
                "scorer": decision.scorer,
            },
            "candidate": after
            | {"profile": self.profile, "policy_book": self.book, "scorer": self.scorer},
            "policies": {
                policy: {
                    "in_force": _judgement(judged[0].get(policy)),
                    "candidate": _judgement(judged[1].get(policy)),
                }
                for policy in dict.fromkeys((*judged[0], *judged[1]))
            },
            "share": self.share,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 6),
        }


def _side(verdict: Verdict) -> dict[str, Any]:
    return {"action": verdict.action.value, "violated": list(verdict.violated)}


def _judgement(judgement: Judgement | None) -> dict[str, Any] | None:
    if judgement is None:
        return None
    return {
        "probability": judgement.probability,
        "margin": judgement.score.margin,
        "threshold": judgement.threshold,
    }


class ShadowTelemetry:
    """Counts second opinions, and writes each into the log and into `sink` where there is one."""

    def __init__(self, registry: CollectorRegistry, sink: Sink | None = None) -> None:
        self._sink = sink
        counter = partial(Counter, registry=registry)
        self._texts = counter(
            "shieldgate_shadow_texts",
            "Exchanges that a candidate was to judge, by what became of them.",
            ["outcome"],
        )
        self._decisions = counter(
            "shieldgate_shadow_decisions",
            "Exchanges that a candidate judged, by both actions.",
            ["direction", "in_force", "candidate"],
        )
        self._flips = counter(
            "shieldgate_shadow_flips",
            "Exchanges that only one of candidate and what is in force finds violating a policy.",
            ["policy", "direction", "flip"],
        )
        self._tokens = counter("shieldgate_shadow_tokens", "Tokens computed for a candidate.")
        self._seconds = counter(
            "shieldgate_shadow_seconds", "Time in which a scorer computed for a candidate."
        )
        self._ready = Gauge(
            "shieldgate_shadow_ready",
            "1 while a candidate can judge.",
            multiprocess_mode="livemin",
            registry=registry,
        )

    def ready(self, ready: bool) -> None:
        """Say whether the candidate can judge."""
        self._ready.set(ready)

    def texts(self, outcome: ShadowOutcome, texts: int = 1) -> None:
        """Count exchanges that were judged, failed, were dropped for want of room, or left out."""
        self._texts.labels(outcome).inc(texts)

    def opinion(self, opinion: SecondOpinion, about: Mapping[str, Any]) -> None:
        """Count an opinion and put it on record, with what is known `about` its request."""
        verdict, other = opinion.decision.verdict, opinion.verdict
        self.texts("judged")
        actions = verdict.action.value, other.action.value
        self._decisions.labels(verdict.direction, *actions).inc()
        for policy, flip in opinion.flips.items():
            self._flips.labels(policy, verdict.direction, flip).inc()
        self._tokens.inc(opinion.tokens)
        self._seconds.inc(opinion.seconds)
        record = {**about, **opinion.record()}
        log.info(SHADOW, **record)
        if self._sink:
            self._sink.write(record)


def shadow_in_short(record: Mapping[str, Any]) -> str:
    """Say a record for people: what is in force, and what the candidate says otherwise."""
    before, after = record["in_force"], record["candidate"]
    said = f"{before['action']} {record['direction']}"
    flipped = sorted(set(before["violated"]) ^ set(after["violated"]))
    if before["action"] == after["action"] and not flipped:
        return f"second opinion on {said}: the same"
    judged = [(policy, record["policies"][policy]) for policy in flipped]
    moved = [
        f", {policy} {_shown(both['in_force'])} -> {_shown(both['candidate'])}"
        for policy, both in judged[:1]
    ]
    more = f" +{len(flipped) - 1}" if len(flipped) > 1 else ""
    return f"second opinion on {said}: {after['action']}{''.join(moved)}{more}"


def _shown(judgement: Mapping[str, Any] | None) -> str:
    return "not judged" if judgement is None else f"{judgement['probability']:.3f}"
