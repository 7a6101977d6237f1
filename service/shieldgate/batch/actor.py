"""What runs on the cluster: an actor that loads the scorer once, and scores part after part."""

import asyncio
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson
import pyarrow as arrow
from pyarrow import parquet

from shieldgate.batch.manifest import Part
from shieldgate.errors import ConfigurationError, ShieldgateError
from shieldgate.evaluation.datasets import Dataset, Row
from shieldgate.evaluation.examples import Adapter
from shieldgate.evaluation.row_files import BadRow, Parquet
from shieldgate.evaluation.row_scoring import Batch, RowScorer, row_scorer
from shieldgate.evaluation.sources import row_file
from shieldgate.policy import Calibration, Policy
from shieldgate.scoring import Identity
from shieldgate.scoring.factory import open_scorer
from shieldgate.settings import ScoringSettings

ABOUT = b"shieldgate"
"""The key of a file's metadata under which `PartSummary` is."""

_SHOWN = 3
_GATHERED = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """What an actor is to do, the same for all; `identity` is the scorer's that began the run."""

    settings: ScoringSettings
    policies: Sequence[Policy]
    book: str
    adapter: Adapter
    parts: Sequence[Part]
    identity: Identity | None
    strict: bool
    max_batch_tokens: int
    concurrency: int


@dataclass(slots=True)
class PartSummary:
    """What is to say of a part: its good rows, and of its bad ones how many, and the first."""

    identity: Identity
    rows: int = 0
    bad_count: int = 0
    bad: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, written: bytes) -> "PartSummary":
        """Read what `to_json` wrote."""
        fields = orjson.loads(written)
        return cls(**{**fields, "identity": Identity(**fields["identity"])})

    def to_json(self) -> bytes:
        """Write it as JSON."""
        return orjson.dumps(asdict(self))


class PartScorer:
    """Scores the parts whose numbers it is given, for Ray Data's `map_batches`.

    Errors raised on purpose come back as results, so that they reach people as they are worded;
    any other fails the run.
    """

    def __init__(self, job: Job) -> None:
        """Take the job; the scorer is opened with the first part."""
        self._job = job
        self._loop = asyncio.Runner()
        self._opened = AsyncExitStack()
        self._scorer: RowScorer | None = None

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Score one part; gives its number, its summary, the bytes of its Parquet file."""
        [number] = batch["part"]
        result = {
            "part": int(number),
            "summary": b"",
            "parquet": b"",
            "error": "",
            "mistake": False,
        }
        try:
            summary, scores = self._loop.run(self._score(self._job.parts[number]))
            result |= {"summary": summary.to_json(), "parquet": scores}
        except ShieldgateError as refused:
            result |= {
                "error": str(refused),
                "mistake": isinstance(refused, ConfigurationError),
            }
        return {key: [value] for key, value in result.items()}

    def close(self) -> None:
        """Close the scorer; an actor of Ray's just ends."""
        self._loop.run(self._opened.aclose())
        self._loop.close()

    async def _score(self, part: Part) -> tuple[PartSummary, bytes]:
        scorer = self._scorer = self._scorer or await self._open()
        if self._job.identity not in (None, scorer.identity):
            raise ConfigurationError(other_scorer(self._job.identity, scorer.identity))
        summary = PartSummary(scorer.identity)
        tables = [scored_table([], self._job, scorer.identity, part)]
        gathered: Batch = []
        rows = self._rows(part, summary)
        async with aclosing(scorer.score(rows, self._job.policies, lambda row: False)) as batches:
            async for batch in batches:
                summary.rows += len(batch)
                gathered += batch
                if len(gathered) >= _GATHERED:
                    tables.append(scored_table(gathered, self._job, scorer.identity, part))
                    gathered = []
        tables.append(scored_table(gathered, self._job, scorer.identity, part))
        table = arrow.concat_tables(tables).sort_by("row")
        table = table.replace_schema_metadata({ABOUT: summary.to_json()})
        out = io.BytesIO()
        parquet.write_table(table, out, compression="zstd")
        return summary, out.getvalue()

    async def _open(self) -> RowScorer:
        job = self._job
        scorer = await self._opened.enter_async_context(
            open_scorer(
                job.settings, max_batch_tokens=job.max_batch_tokens, max_waiting=sys.maxsize
            )
        )
        await scorer.check(job.policies)
        return row_scorer(
            scorer, max_batch_tokens=job.max_batch_tokens, concurrency=job.concurrency
        )

    def _rows(self, part: Part, summary: PartSummary) -> Iterator[Row]:
        """Read the good rows, and count the bad ones."""
        source = row_file(part.file)
        if isinstance(source, Parquet):
            source = replace(source, row_groups=part.row_groups)
        for row in Dataset(source, self._job.adapter).read():
            if isinstance(row, Row):
                yield row
                continue
            if self._job.strict:
                raise ConfigurationError(f"{part.file}:{row.line}: {row.why}.")
            summary.bad_count += 1
            if len(summary.bad) < _SHOWN:
                summary.bad.append(_placed(part, row))


def _placed(part: Part, bad: BadRow) -> str:
    return f"{part.file.rpartition('/')[2]}:{bad.line} {bad.why}"


def other_scorer(began: Identity | None, here: Identity) -> str:
    """Say that two scorers would have a part in one run."""
    return (
        f"The run began with the scorer {began and began.name} ({began and began.key}), and here "
        f"is {here.name} ({here.key}). Give all nodes the same --model, or choose another --out."
    )


def scored_table(batch: Batch, job: Job, identity: Identity, part: Part) -> arrow.Table:
    """Put scored rows into columns.

    `row` counts the good rows of a part, from 0; `id` is the data's own, or the line in `file`.
    The texts are there as their SHA-256, in hexadecimal digits. For each policy there is a
    column POLICY.margin, in logits, and one POLICY.probability, in 0..1, as it is calibrated.
    """
    rows = [row for row, _ in batch]
    exchanges = [row.example.exchange for row in rows]
    columns = {
        "id": arrow.array([row.id for row in rows], arrow.string()),
        "file": _constant(part.file, rows),
        "row": arrow.array([row.number for row in rows], arrow.int64()),
        "direction": arrow.array([e.direction for e in exchanges], arrow.string()),
        "prompt_sha256": arrow.array([digest(e.prompt) for e in exchanges], arrow.string()),
        "response_sha256": arrow.array([digest(e.response) for e in exchanges], arrow.string()),
    }
    for place, policy in enumerate(job.policies):
        margins = [scores[place].margin for _, scores in batch]
        fitted = {
            e.direction: policy.calibration(identity.name, e.direction)
            or Calibration(policy.thresholds[e.direction])
            for e in exchanges
        }
        probabilities = [
            fitted[e.direction].probability(margin)
            for e, margin in zip(exchanges, margins, strict=True)
        ]
        columns[f"{policy.id}.margin"] = arrow.array(margins, arrow.float64())
        columns[f"{policy.id}.probability"] = arrow.array(probabilities, arrow.float64())
    columns["windows"] = arrow.array(
        [max(s.windows for s in scores) for _, scores in batch], arrow.int32()
    )
    columns["prompt_omitted"] = arrow.array(
        [max(s.prompt_omitted for s in scores) for _, scores in batch], arrow.int64()
    )
    columns["scorer"] = _constant(identity.name, rows)
    columns["scorer_identity"] = _constant(identity.key, rows)
    columns["dtype"] = _constant(identity.dtype, rows)
    columns["policy_book"] = _constant(job.book, rows)
    return arrow.table(columns)


def digest(text: str | None) -> str | None:
    """Digest a text, as `sha256sum` does."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _constant(value: str, rows: Sequence[Row]) -> arrow.Array:
    return arrow.array([value] * len(rows), arrow.string())
