"""Small files of scores, as `shieldgate evaluate` writes them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shieldgate.evaluation.score_file import Header, ScoredRow, ScoreFile, wording_digest
from shieldgate.policy import PolicyBook
from shieldgate.types import Direction

SCORER = "scorer@1"


def header(book: PolicyBook, policies: Sequence[str], **changes: object) -> Header:
    known = [book.policies[policy] for policy in policies if policy in book.policies]
    plain = Header(
        dataset="data.jsonl",
        dataset_digest="d1",
        scorer=SCORER,
        identity="1|float32|chat|none",
        template="chat",
        book=book.version,
        guidelines={policy.id: wording_digest(policy) for policy in known},
        policies=tuple(policies),
        protocol=None,
        options={},
        version="0.1.0",
    )
    return replace(plain, **changes)


def scored(
    policies: Sequence[str],
    rows: int,
    *,
    seed: int = 0,
    directions: Sequence[Direction] = ("prompt",),
    skill: float = 3.0,
    start: int = 0,
) -> list[ScoredRow]:
    """Rows whose margins are `skill` higher where the label, known for most, is 1."""
    random = np.random.default_rng(seed)
    made = []
    for row in range(start, start + rows):
        truth = {policy: int(random.random() < 0.25) for policy in policies}
        made.append(
            ScoredRow(
                row=row,
                id=f"r{row}",
                direction=directions[row % len(directions)],
                margins={
                    policy: float(np.float32(random.normal(skill * label - 2, 1.5)))
                    for policy, label in truth.items()
                },
                labels={p: label for p, label in truth.items() if random.random() < 0.9},
                harmful=max(truth.values()),
                groups={"source": f"<s{row % 3}>"},
            )
        )
    return made


def write_scores(path: Path, header: Header, rows: Iterable[ScoredRow]) -> Path:
    with ScoreFile(path, header) as file:
        file.append(rows)
    return path
