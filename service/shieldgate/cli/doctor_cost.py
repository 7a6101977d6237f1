"""What a prompt costs: labelled rows, scored by one model under it and as published."""

import asyncio
from collections.abc import Iterator
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
from shieldgate.evaluation.report import TOGETHER
from shieldgate.evaluation.row_scoring import ReproduciblePacking
from shieldgate.evaluation.score_columns import ScoreColumns, read_columns
from shieldgate.evaluation.session import Evaluation, EvaluationOptions
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import load_book
from shieldgate.settings import ScoringSettings


@dataclass(frozen=True, slots=True)
class Measured:
    """Both prompts on the same rows and at the same thresholds: theirs is A, the published one B."""

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


def measure(
    name: str,
    diagnosis: Diagnosis,
    settings: ScoringSettings,
    data: str,
    options: EvaluationOptions,
    out: Path | None,
) -> Measured:
    """Score labelled rows under the prompts of `diagnosis`, and as published.

    Raises ConfigurationError, also where the model is none of this process: the same weights must
    score both. Raises ScoringError.
    """
    if settings.servers or settings.cascade:
        raise ConfigurationError(
            "--data measures with a model in this process. For one elsewhere, write the prompt as a "
            "template (docs/templates.md), and give it to shieldgate evaluate --template."
        )
    theirs, published = diagnosis.template(name), diagnosis.prompts[0].template
    with needed("Scoring in this process", "local"):
        from shieldgate.scoring.local import PackedEngine, load_for_scoring  # noqa: PLC0415
    options = replace(options, policies=diagnosis.policies)
    evaluation = Evaluation.of(open_source(data), options)
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
    columns: list[ScoreColumns] = []
    with _folder(out) as folder:
        for part, template in (("yours", theirs), ("published", published)):
            engine = PackedEngine(checkpoint, template, prefix_bytes=0)
            scorer = ReproduciblePacking(engine, options.max_batch_tokens)
            with scoring_progress(evaluation.row_count) as progress:
                scores = asyncio.run(run.score(scorer, folder / part, progress=progress))
            columns.append(read_columns(scores))
    a, b = columns
    # Under one name, so that both are decided by the thresholds of the published prompt.
    a = replace(a, header=replace(a.header, scorer=b.header.scorer))
    compared = compare(a, b, (book, book), run.profile.name, seed=options.seed)
    directions = {p.asked.direction for p in diagnosis.prompts}
    pairs = [pair for pair in compared.pairs if pair.direction in directions]
    if not pairs:
        raise ConfigurationError(
            f"{data} has no rows that judge a {' or a '.join(sorted(directions))}, as the prompt "
            "does."
        )
    return Measured(replace(compared, pairs=pairs))


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with TemporaryDirectory(prefix="shieldgate-doctor-") as folder:
        yield Path(folder)
