"""Scores a dataset's rows into a file: in bounded memory, and so that it can go on.

A scorer is asked in one of two ways. `ReproduciblePacking` takes an engine in this process: which
rows share a forward pass follows from the data alone, so a run that was interrupted and continued
writes the same bytes as one that was not. `Concurrent` takes any Scorer, a few rows at a time.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from shieldgate.evaluation.datasets import Row
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.score_file import ScoredRow, ScoreFile
from shieldgate.policy import Policy
from shieldgate.scoring import Batched, Engine, Identity, Prepared, Scorer
from shieldgate.types import Score

# Rows that are tokenised together: enough to fill forward passes, few enough for any memory.
CHUNK = 256

S = TypeVar("S", bound="_Sized")

Batch = list[tuple[Row, list[Score]]]


@dataclass(frozen=True, slots=True)
class ScoringTask:
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
            weight=row.weight,
        )


class RowScorer(Protocol):
    """A way to have rows scored."""

    @property
    def identity(self) -> Identity:
        """Say what the scores depend on."""
        ...

    def score(
        self, rows: Iterable[Row], policies: Sequence[Policy], held: Callable[[int], bool]
    ) -> AsyncGenerator[Batch]:
        """Give the rows with their scores, but for batches of which all are `held` already.

        Raises ConfigurationError, from the data or the scorer, and ScoringError.
        """
        ...


def sampled(rows: Iterable[Row], size: int, total: int, seed: int) -> Iterator[Row]:
    """Draw `size` of `total` rows without replacement; they keep their order."""
    chosen = frozenset(random.Random(seed).sample(range(total), size))  # noqa: S311 - no secret
    return (row for row in rows if row.number in chosen)


async def score_rows(
    scorer: RowScorer,
    rows: Iterable[Row],
    task: ScoringTask,
    file: ScoreFile,
    *,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Score the rows that `file` lacks, and append them; `progress` hears how many it has.

    Raises what the scorer raises; what was scored before is in the file.
    """
    progress(len(file))
    async with aclosing(scorer.score(rows, task.policies, file.__contains__)) as batches:
        async for batch in batches:
            file.append(task.scored(row, scores) for row, scores in batch)
            progress(len(file))


def row_scorer(scorer: Scorer, *, max_batch_tokens: int, concurrency: int) -> RowScorer:
    """Choose how rows are asked about: reproducibly, where the scorer is an engine's."""
    if isinstance(scorer, Batched):
        return ReproduciblePacking(scorer.engine, max_batch_tokens)
    return Concurrent(scorer, concurrency)


class Concurrent:
    """Asks a Scorer for `concurrency` rows at a time, and gives them in their order."""

    def __init__(self, scorer: Scorer, concurrency: int) -> None:
        self._scorer = scorer
        self._concurrency = concurrency
        self.identity = scorer.identity

    async def score(
        self, rows: Iterable[Row], policies: Sequence[Policy], held: Callable[[int], bool]
    ) -> AsyncGenerator[Batch]:
        """Score row by row."""

        async def one(row: Row) -> tuple[Row, list[Score]]:
            return row, await self._scorer.score(row.example.exchange, policies)

        under_way: deque[asyncio.Task[tuple[Row, list[Score]]]] = deque()
        try:
            for row in (row for row in rows if not held(row.number)):
                under_way.append(asyncio.create_task(one(row)))
                if len(under_way) == self._concurrency:
                    yield [await under_way.popleft()]
            while under_way:
                yield [await under_way.popleft()]
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


class ReproduciblePacking:
    """Fills forward passes of an engine with up to `max_batch_tokens` tokens, in a fixed way.

    A pass always holds one piece of a text, however long. While one chunk of rows is computed, a
    thread reads and tokenises the next.
    """

    def __init__(self, engine: Engine, max_batch_tokens: int) -> None:
        self._engine = engine
        self._budget = max_batch_tokens
        self.identity = engine.identity

    async def score(
        self, rows: Iterable[Row], policies: Sequence[Policy], held: Callable[[int], bool]
    ) -> AsyncGenerator[Batch]:
        """Score batch by batch."""
        unread = iter(rows)

        def prepare() -> list[list[_Ready]] | None:
            chunk = list(islice(unread, CHUNK))
            if not chunk:
                return None
            if all(held(row.number) for row in chunk):
                return []
            ready = [_Ready(r, self._engine.prepare(r.example.exchange, policies)) for r in chunk]
            # Longest first fills the passes best.
            ready.sort(key=lambda r: r.tokens, reverse=True)
            return list(_filled(ready, self._budget))

        loop = asyncio.get_running_loop()
        with (
            ThreadPoolExecutor(1, "tokenise") as reader,
            ThreadPoolExecutor(1, "forward") as computer,
        ):
            upcoming = reader.submit(prepare)
            while (batches := await asyncio.wrap_future(upcoming)) is not None:
                upcoming = reader.submit(prepare)
                for batch in batches:
                    if all(held(ready.row.number) for ready in batch):
                        continue
                    # All of it, though a part may be held: the same pass gives the same numbers.
                    scores = await loop.run_in_executor(computer, self._forward, batch)
                    yield [(r.row, s) for r, s in zip(batch, scores, strict=True)]

    def _forward(self, batch: Sequence["_Ready"]) -> list[list[Score]]:
        """Score a batch; the windows of a long text may need several passes."""
        work = [piece for ready in batch for piece in ready.prepared.work]
        passes = _filled(work, self._budget)
        margins = iter([m for part in passes for m in self._engine.forward(part)])
        return [r.prepared.scores([next(margins) for _ in r.prepared.work]) for r in batch]


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
