"""The metrics of second opinions as a few figures for people."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import Metric


@dataclass(frozen=True, slots=True)
class ShadowFigures:
    """What was counted since the start, by all processes that add their metrics up.

    `texts` are by outcome, `decisions` by (direction, action in force, the candidate's), `flips`
    by (policy, direction, flip); `seconds` are those of computing.
    """

    texts: Counter[str]
    decisions: Counter[tuple[str, str, str]]
    flips: Counter[tuple[str, str, str]]
    tokens: int
    seconds: float
    ready: bool

    @classmethod
    def of(cls, metrics: Iterable[Metric]) -> "ShadowFigures":
        """Read metrics."""
        texts, decisions = Counter[str](), Counter[tuple[str, str, str]]()
        flips, plain = Counter[tuple[str, str, str]](), dict[str, float]()
        for metric in metrics:
            for name, labels, value, *_ in metric.samples:
                match name.removeprefix("shieldgate_shadow_"):
                    case "texts_total":
                        texts[labels["outcome"]] += int(value)
                    case "decisions_total":
                        at = labels["direction"], labels["in_force"], labels["candidate"]
                        decisions[at] += int(value)
                    case "flips_total":
                        flips[labels["policy"], labels["direction"], labels["flip"]] += int(value)
                    case "tokens_total" | "seconds_total" | "ready" as other:
                        plain[other] = value
        return cls(
            texts,
            decisions,
            flips,
            int(plain.get("tokens_total", 0)),
            plain.get("seconds_total", 0.0),
            bool(plain.get("ready")),
        )
