"""Scores a dataset with an engine in this process: in bounded memory, and so that it can go on.

The order in which rows are scored, and what shares a forward pass, follow from the data alone. So
a run that was interrupted and continued writes the same bytes as one that was not.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from shieldgate.evaluation.datasets import Row
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.scores import ScoredRow, ScoreFile
from shieldgate.policy import Policy
from shieldgate.scoring import Engine, Prepared
from shieldgate.types import Score

# Rows that are tokenised together: enough to fill forward passes, few enough for any memory.
CHUNK = 256

S = TypeVar("S", bound="_Sized")


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of each row, and how its labels are read."""

    policies: Sequence[Policy]
    labelling: Labelling

    def scored(self, row: Row, scores: Sequence[Score]) -> ScoredRow:
        """Put a row's scores, in the order of the policies, beside its labels."""
        return ScoredRow(
            row=row.number,
            id=row.id,
            direction=row.example.exchange.direction,
            margins={p.id: s.margin for p, s in zip(self.policies, scores, strict=True)},
            labels=self.labelling.labels(row.example),
            harmful=self.labelling.harmful(row.example),
            groups=row.groups,
        )


def sampled(rows: Iterable[Row], size: int, total: int, seed: int) -> Iterator[Row]:
    """Draw `size` of `total` rows without replacement; they keep their order."""
    chosen = frozenset(random.Random(seed).sample(range(total), size))  # noqa: S311 - no secret
    return (row for row in rows if row.number in chosen)


def score_rows(
    engine: Engine,
    rows: Iterable[Row],
    task: Task,
    file: ScoreFile,
    *,
    max_batch_tokens: int,
    advance: Callable[[int], None],
) -> None:
    """Score the rows that `file` lacks, and append them; `advance` hears how many came.

    A forward pass holds up to `max_batch_tokens` tokens, and always one piece of a text. While
    one chunk of rows is computed, a thread reads and tokenises the next. Raises
    ConfigurationError, from the data or from `Engine.prepare`.
    """
    unread = iter(rows)

    def prepare() -> list[list[_Ready]] | None:
        chunk = list(islice(unread, CHUNK))
        if not chunk:
            return None
        if all(row.number in file for row in chunk):
            return []
        ready = [_Ready(r, engine.prepare(r.example.exchange, task.policies)) for r in chunk]
        # Longest first fills the passes best.
        ready.sort(key=lambda r: r.tokens, reverse=True)
        return list(_filled(ready, max_batch_tokens))

    with ThreadPoolExecutor(1, "tokenise") as reader:
        upcoming = reader.submit(prepare)
        while (batches := upcoming.result()) is not None:
            upcoming = reader.submit(prepare)
            for batch in batches:
                missing = sum(ready.row.number not in file for ready in batch)
                if missing:
                    # All of it, though a part may be there: the same pass gives the same numbers.
                    scores = _forward(engine, batch, max_batch_tokens)
                    file.append(task.scored(b.row, s) for b, s in zip(batch, scores, strict=True))
                    advance(missing)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A row that was tokenised."""

    row: Row
    prepared: Prepared

    @property
    def tokens(self) -> int:
        return sum(work.tokens for work in self.prepared.work)


class _Sized(Protocol):
    @property
    def tokens(self) -> int: ...


def _filled(items: Iterable[S], budget: int) -> Iterator[list[S]]:
    """Cut a sequence into lists of at most `budget` tokens, or of one item."""
    taken: list[S] = []
    tokens = 0
    for item in items:
        if taken and tokens + item.tokens > budget:
            yield taken
            taken, tokens = [], 0
        taken.append(item)
        tokens += item.tokens
    if taken:
        yield taken


def _forward(engine: Engine, batch: Sequence[_Ready], budget: int) -> list[list[Score]]:
    """Score a batch; the windows of a long text may need several passes."""
    work = [piece for ready in batch for piece in ready.prepared.work]
    margins = iter([m for part in _filled(work, budget) for m in engine.forward(part)])
    return [r.prepared.scores([next(margins) for _ in r.prepared.work]) for r in batch]
