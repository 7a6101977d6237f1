"""What a prompt costs: labelled rows, scored by one model under it and as published."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from rich.console import Console

from shieldgate.cli.evaluate_run import scoring_progress
from shieldgate.cli.options import chosen_profile
from shieldgate.cli.report_tables import show_comparison
from shieldgate.doctor.diagnosis import Diagnosis
from shieldgate.errors import ConfigurationError, needed
from shieldgate.evaluation.compare import Comparison, compare
from shieldgate.evaluation.datasets import Row
from shieldgate.evaluation.report import TOGETHER
from shieldgate.evaluation.row_scoring import Batch, ReproduciblePacking
from shieldgate.evaluation.score_columns import ScoreColumns, read_columns
from shieldgate.evaluation.session import Evaluation, EvaluationOptions
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import Policy, load_book
from shieldgate.scoring import Engine
from shieldgate.settings import ScoringSettings
from shieldgate.types import Direction


@dataclass(frozen=True, slots=True)
class Measured:
    """Both prompts on the same rows, at the same thresholds: theirs is A, the published one B."""

    comparison: Comparison

    def show(self, console: Console) -> None:
        """Print figures with intervals, and how many rows are decided otherwise."""
        console.print("A is your prompt, B the published one, on the same rows and weights.")
        show_comparison(self.comparison, console)
        for pair in self.comparison.pairs:
            (caught, alarms), (missed, cleared) = pair.only_a, pair.only_b
            if pair.rows and pair.policy is None:
                console.print(
                    f"• {pair.direction}, {TOGETHER}: at the same thresholds "
                    f"{caught + alarms + missed + cleared:,} of {pair.rows:,} rows are decided "
                    f"otherwise. Yours lets {missed:,} harmful and {cleared:,} harmless ones pass "
                    f"that the published one flags, and flags {caught:,} harmful and {alarms:,} "
                    "harmless ones that it lets pass.",
                    highlight=False,
                    markup=False,
                )

    def figures(self) -> dict[str, Any]:
        """Give the figures as an object for JSON."""
        return asdict(self.comparison)


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows to measure by, and where their scores are kept, if they are."""

    data: str
    options: EvaluationOptions
    out: Path | None


def measure(name: str, diagnosis: Diagnosis, settings: ScoringSettings, given: Rows) -> Measured:
    """Score labelled rows under the prompts of `diagnosis`, and as published.

    Raises ConfigurationError, also where the model is none of this process: the same weights must
    score both. Raises ScoringError.
    """
    if settings.servers or settings.cascade:
        raise ConfigurationError(
            "--data measures with a model in this process. For one elsewhere, write the prompt as "
            "a template (docs/templates.md), and give it to shieldgate evaluate --template."
        )
    theirs, published = diagnosis.template(name), diagnosis.prompts[0].template
    with needed("Scoring in this process", "local"):
        from shieldgate.scoring.local import PackedEngine, load_for_scoring  # noqa: PLC0415
    options = replace(given.options, policies=diagnosis.policies)
    evaluation = Evaluation.of(open_source(given.data), options)
    for note in evaluation.survey.notes():
        typer.echo(f"Note: {note}", err=True)
    book = load_book(settings.policies)
    run = evaluation.under(book, chosen_profile(book, settings))
    checkpoint = load_for_scoring(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
    )
    directions = {p.asked.direction for p in diagnosis.prompts}
    columns: list[ScoreColumns] = []
    with _folder(given.out) as folder:
        for part, template in (("yours", theirs), ("published", published)):
            engine = PackedEngine(checkpoint, template, prefix_bytes=0)
            scorer = _OfDirections(engine, options.max_batch_tokens, directions)
            with scoring_progress(evaluation.row_count) as progress:
                scores = asyncio.run(run.score(scorer, folder / part, progress=progress))
            columns.append(read_columns(scores))
    a, b = columns
    # Under one name, so that both are decided by the thresholds of the published prompt.
    a = replace(a, header=replace(a.header, scorer=b.header.scorer))
    compared = compare(a, b, (book, book), run.profile.name, seed=options.seed)
    if not compared.pairs:
        judged = " or a ".join(sorted(directions))
        raise ConfigurationError(
            f"{given.data} has no rows that judge a {judged}, as the prompt does."
        )
    return Measured(compared)


class _OfDirections(ReproduciblePacking):
    """Leaves out the rows that the prompts don't judge."""

    def __init__(
        self, engine: Engine, max_batch_tokens: int, directions: Collection[Direction]
    ) -> None:
        super().__init__(engine, max_batch_tokens)
        self._directions = directions

    def score(
        self, rows: Iterable[Row], policies: Sequence[Policy], held: Callable[[int], bool]
    ) -> AsyncGenerator[Batch]:
        judged = (r for r in rows if r.example.exchange.direction in self._directions)
        return super().score(judged, policies, held)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with TemporaryDirectory(prefix="shieldgate-doctor-") as folder:
        yield Path(folder)
