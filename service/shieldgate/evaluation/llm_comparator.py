"""A comparison as PAIR's LLM Comparator reads it: rows side by side, in a page of its own.

Its fields are those of `client/lib/types.ts` in https://github.com/PAIR-code/llm-comparator.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldgate.evaluation.decisions import policies, probabilities
from shieldgate.evaluation.score_columns import UNKNOWN, ScoreColumns
from shieldgate.policy import Calibration, PolicyBook, Profile
from shieldgate.statistics import Scores
from shieldgate.types import DIRECTIONS, Exchange

MOST_ROWS = 1000

_RATINGS = {1.0: "A is better", 0.0: "same", -1.0: "B is better"}

Texts = Callable[[Collection[int]], Mapping[int, Exchange]]


@dataclass(frozen=True, slots=True)
class _Side:
    """One side's probabilities and violations by policy, and whether any flags; each [rows]."""

    probability: Mapping[str, Scores]
    threshold: Mapping[str, tuple[float, float]]
    violated: Mapping[str, NDArray[np.bool_]]
    flagged: NDArray[np.bool_]

    @classmethod
    def of(cls, columns: ScoreColumns, book: PolicyBook, profile: Profile) -> "_Side":
        """Judge every row, labelled or not."""
        scorer = columns.header.scorer
        probability, threshold, violated = {}, {}, {}
        flagged = np.zeros(columns.rows.size, np.bool_)
        for policy in policies(columns, book):
            limits = tuple(profile.threshold(policy, d, scorer) for d in DIRECTIONS)
            fitted = [
                policy.calibration(scorer, d) or Calibration(policy.thresholds[d])
                for d in DIRECTIONS
            ]
            margins = columns.margins[policy.id]
            found = np.choose(columns.direction, [probabilities(margins, c) for c in fitted])
            over = found >= np.array(limits)[columns.direction]  # false where nothing was scored
            probability[policy.id], violated[policy.id] = found, over
            threshold[policy.id] = (limits[0], limits[1])
            flagged |= over
        return cls(probability, threshold, violated, flagged)

    def verdict(self, row: int, direction: int) -> str:
        """Say a row's verdict, and each policy's part of it: first what is violated."""
        lines = []
        judged = [(self.violated[p][row], c[row], p) for p, c in self.probability.items()]
        judged = [part for part in judged if not np.isnan(part[1])]
        for _, probability, policy in sorted(judged, reverse=True):
            sign = "violated" if self.violated[policy][row] else "not violated"
            limit = self.threshold[policy][direction]
            lines.append(f"{policy}: {probability:.3f}, {sign} (threshold {limit:.4g})")
        head = "FLAGGED" if self.flagged[row] else "not flagged"
        return "\n".join([head, "", *lines])


def to_llm_comparator(
    a: ScoreColumns,
    b: ScoreColumns,
    books: tuple[PolicyBook, PolicyBook],
    profile: str,
    texts: Texts,
    *,
    seed: int = 0,
    most: int = MOST_ROWS,
) -> dict[str, Any]:
    """Write at most `most` rows of two files of scores, of the same rows, as its JSON.

    First come those that one side alone flags, then others drawn by `seed`. `score` is 1 where A
    alone is right by the label, -1 where B alone is, else 0; None where no label is known. `texts`
    looks rows up by their numbers.
    """
    sides = [
        _Side.of(columns, book, book.profile(profile))
        for columns, book in zip((a, b), books, strict=True)
    ]
    chosen = _choose(sides[0].flagged != sides[1].flagged, most, seed)
    found = texts(frozenset(a.rows[chosen].tolist()))
    names = [_name(columns, book) for columns, book in zip((a, b), books, strict=True)]
    both = [policy for policy in a.header.policies if policy in b.header.policies]
    return {
        "metadata": {
            "source_path": a.header.dataset,
            "custom_fields_schema": [
                {"name": "row", "type": "number"},
                {"name": "direction", "type": "category"},
                {"name": "label", "type": "category"},
                {"name": "decided", "type": "category"},
                {"name": "flagged", "type": "per_model_boolean"},
                *({"name": policy, "type": "per_model_number"} for policy in both),
            ],
        },
        "models": [
            {"name": name if names[0] != names[1] else f"{name} ({side})"}
            for side, name in zip("AB", names, strict=True)
        ],
        "examples": [_example(a, sides, int(at), found[int(a.rows[at])], both) for at in chosen],
    }


def _choose(flips: NDArray[np.bool_], most: int, seed: int) -> NDArray[np.intp]:
    random = np.random.default_rng(seed)
    first, rest = np.flatnonzero(flips), np.flatnonzero(~flips)
    first = np.sort(random.permutation(first)[:most])
    return np.concatenate([first, np.sort(random.permutation(rest)[: most - first.size])])


def _name(columns: ScoreColumns, book: PolicyBook) -> str:
    return f"{columns.header.scorer}, book {book.version}"


def _example(
    columns: ScoreColumns,
    sides: Sequence[_Side],
    at: int,
    exchange: Exchange,
    policies: Sequence[str],
) -> dict[str, Any]:
    direction, label = int(columns.direction[at]), int(columns.harmful[at])
    flagged = [bool(side.flagged[at]) for side in sides]
    decided = {
        (True, False): "only A flags",
        (False, True): "only B flags",
        (True, True): "both flag",
        (False, False): "neither flags",
    }[flagged[0], flagged[1]]
    said = "unknown" if label == UNKNOWN else "harmful" if label else "harmless"
    score = None
    if label != UNKNOWN:
        score = float(flagged[0] == bool(label)) - float(flagged[1] == bool(label))
    return {
        "input_text": _text(exchange),
        "tags": [DIRECTIONS[direction], said, decided],
        "output_text_a": sides[0].verdict(at, direction),
        "output_text_b": sides[1].verdict(at, direction),
        "score": score,
        "individual_rater_scores": []
        if score is None
        else [
            {
                "score": score,
                "rating_label": _RATINGS[score],
                "is_flipped": False,
                "rationale": f"Labelled {said}; {decided}.",
                "custom_fields": {},
            }
        ],
        "rationale_list": [],
        "custom_fields": {
            "row": int(columns.rows[at]),
            "direction": DIRECTIONS[direction],
            "label": said,
            "decided": decided,
            "flagged": flagged,
            **{
                policy: [_number(side.probability[policy][at]) for side in sides]
                for policy in policies
            },
        },
    }


def _text(exchange: Exchange) -> str:
    if exchange.response is None:
        return exchange.prompt
    return f"Prompt:\n{exchange.prompt}\n\nResponse, which is judged:\n{exchange.response}"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
