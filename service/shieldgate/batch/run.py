"""From files to a folder of scores: plans, goes on where a run stopped, and writes each part once.

Actors read texts and give scores back; only this process writes. A part is written in one step
when all of it has come, so that whatever dies, no row is lost or there twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shieldgate.batch.actor import ABOUT, Job, PartSummary, other_scorer
from shieldgate.batch.cluster import connected, results
from shieldgate.batch.manifest import MANIFEST, Manifest, part_name, plan
from shieldgate.batch.pool import Pool
from shieldgate.errors import ConfigurationError, ScoringError
from shieldgate.evaluation.adapters import choose_adapter
from shieldgate.evaluation.score_file import wording_digest
from shieldgate.evaluation.sources import list_shards
from shieldgate.evaluation.storage import Folder
from shieldgate.policy import Policy
from shieldgate.settings import ScoringSettings


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Which texts are scored, how they are read, and by how many at a time.

    `adapter`, `columns`, `strict` and `max_batch_tokens` are those of `EvaluationOptions`.
    `rows` is how many a part of a Parquet file has at least; `concurrency` how many rows an actor
    asks a scorer elsewhere for at a time.
    """

    adapter: str | None = None
    columns: Sequence[str] = ()
    strict: bool = False
    rows: int = 10_000
    max_batch_tokens: int = 4096
    concurrency: int = 8


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    parts: int
    done: int = 0
    rows: int = 0
    bad_count: int = 0
    bad: tuple[str, ...] = ()

    def add(self, summary: PartSummary) -> None:
        """Count a part that is done."""
        self.done += 1
        self.rows += summary.rows
        self.bad_count += summary.bad_count
        self.bad = (*self.bad, *summary.bad)[:3]


def run_batch(
    data: str,
    out: Folder,
    settings: ScoringSettings,
    options: BatchOptions,
    *,
    policies: Sequence[Policy],
    book: str,
    address: str | None = None,
    pool: Pool | None = None,
    show: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Score what `out` lacks of the files that `data` names; `show` hears of each part.

    Raises ConfigurationError or ScoringError; what was scored before is saved.
    """
    adapter = choose_adapter(options.adapter, options.columns)
    manifest = Manifest(
        parts=plan(list_shards(data), options.rows),
        policies=[policy.id for policy in policies],
        guidelines={policy.id: wording_digest(policy) for policy in policies},
        book=book,
        options={
            "adapter": adapter.name,
            "columns": list(options.columns),
            "max_batch_tokens": options.max_batch_tokens,
        },
    )
    progress = Progress(len(manifest.parts))
    held = out.names()
    if MANIFEST in held:
        before = Manifest.read(out)
        before.check_same(manifest, out)
        manifest = before
    elif any(name.startswith("part-") for name in held):
        raise ConfigurationError(
            f"{out}: holds parts of scores without their manifest.json. Choose another --out."
        )
    else:
        manifest.write(out)
    todo = []
    for number in range(len(manifest.parts)):
        if part_name(number) in held:
            progress.add(read_summary(out, number))
        else:
            todo.append(number)
    show(progress)
    if not todo:
        return progress
    job = Job(
        settings=settings,
        policies=policies,
        book=book,
        adapter=adapter,
        parts=manifest.parts,
        identity=manifest.identity,
        strict=options.strict,
        max_batch_tokens=options.max_batch_tokens,
        concurrency=options.concurrency,
    )
    with connected(address):
        for result in results(job, todo, pool or Pool()):
            if result["error"]:
                kind = ConfigurationError if result["mistake"] else ScoringError
                raise kind(result["error"])
            summary = PartSummary.read(result["summary"])
            if manifest.identity is None:
                manifest = replace(manifest, identity=summary.identity)
                manifest.write(out)
            if manifest.identity != summary.identity:
                raise ConfigurationError(other_scorer(manifest.identity, summary.identity))
            out.write(part_name(result["part"]), result["parquet"])
            progress.add(summary)
            show(progress)
    return progress


def read_summary(out: Folder, number: int) -> PartSummary:
    """Read what is to say of a part that was written; raise ConfigurationError."""
    from pyarrow import ArrowException, parquet  # noqa: PLC0415

    file = out.file(part_name(number))
    try:
        with file.open("rb") as opened:
            return PartSummary.read(parquet.read_schema(opened).metadata[ABOUT])
    except (ArrowException, OSError, KeyError, TypeError) as damaged:
        raise ConfigurationError(
            f"{file}: no whole part of scores. Remove it, and give the same command again."
        ) from damaged
