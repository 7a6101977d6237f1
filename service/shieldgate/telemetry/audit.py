"""One record for each decision: who asked, what was found, by which rules; never the text.

In place of a text stands a keyed digest of it (HMAC-SHA256), by which whoever has the text and
the key finds its records, and nobody else learns anything.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import structlog

from shieldgate.telemetry.recent_decisions import RecentDecisions
from shieldgate.types import Exchange, Verdict

log = structlog.get_logger(__name__)

DECISION = "decision"
"""The event of the log lines that are records."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A final verdict on an exchange, and the rules behind it.

    `exchange` is None where nothing was read that could be judged, `failure` names why the guard
    failed where it did. What else is kept of the decision has its `id`.
    """

    exchange: Exchange | None
    verdict: Verdict
    policies: Sequence[str]
    profile: str
    book: str
    scorer: str
    failure: str | None = None
    id: str = field(default_factory=lambda: f"dec_{uuid4().hex}")


class Sink(Protocol):
    """Keeps records; it makes nobody wait, and raises nothing."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take a record, which can be written as JSON."""


class Audit:
    """Writes each decision into the log, and into `sink` where there is one; keeps the last ones.

    `secret` keys the digests of texts.
    """

    def __init__(self, secret: bytes, sink: Sink | None = None) -> None:
        self._secret = secret
        self._sink = sink
        self.recent = RecentDecisions()

    def record(self, decision: Decision) -> None:
        """Record a decision, with the request id and the caller that are bound to the request."""
        found = {j.policy: j for j in decision.verdict.judgements}
        record = {
            "id": decision.id,
            "direction": decision.verdict.direction,
            "action": decision.verdict.action.value,
            "violated": list(decision.verdict.violated),
            "policies": {
                policy: {
                    "probability": found[policy].probability,
                    "margin": found[policy].score.margin,
                    "threshold": found[policy].threshold,
                    "calibrated": found[policy].calibrated,
                }
                if policy in found
                else None
                for policy in decision.policies
            },
            "profile": decision.profile,
            "policy_book": decision.book,
            "scorer": decision.scorer,
            "unsupported_language": decision.verdict.unsupported_language,
            "failure": decision.failure,
        }
        if decision.exchange is not None:
            record["prompt_digest"] = self.digest(decision.exchange.prompt)
            if decision.exchange.response is not None:
                record["response_digest"] = self.digest(decision.exchange.response)
        log.info(DECISION, **record)
        whole = {**structlog.contextvars.get_contextvars(), **record}
        self.recent.write(whole)
        if self._sink:
            self._sink.write(whole)

    def digest(self, text: str) -> str:
        """Digest a text, in hexadecimal digits."""
        return hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), "sha256").hex()


def in_short(record: Mapping[str, Any]) -> str:
    """Say a record for people: what was decided, and the policy that it was decided by.

    That is the most probable one of those violated, of which `+1` counts one more, or of all where
    none is.
    """
    said = f"{record['action']} {record['direction']}"
    found = {policy: judged for policy, judged in record["policies"].items() if judged}
    if not found:
        return f"{said}, {record['failure']}"
    violated = record["violated"]
    worst = max(violated or found, key=lambda policy: found[policy]["probability"])
    more = f" +{len(violated) - 1}" if len(violated) > 1 else ""
    return f"{said}, {worst} {found[worst]['probability']:.3f}{more}"
