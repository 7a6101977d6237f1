"""What `shieldgate batch` does: has a dataset scored, and shows how far it is."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from shieldgate.batch.pool import Pool
from shieldgate.batch.run import BatchOptions, Progress, run_batch
from shieldgate.errors import ScoringError
from shieldgate.evaluation.session import choose_policies
from shieldgate.evaluation.storage import Folder
from shieldgate.plural import counted
from shieldgate.policy import load_book
from shieldgate.prompt import TEMPLATES
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging


def run(
    data: str,
    out: str,
    settings: ScoringSettings,
    options: BatchOptions,
    *,
    policies: Sequence[str],
    family: str,
    address: str | None,
    pool: Pool,
) -> None:
    """Score and say what was; raise ConfigurationError.

    Exits with 1 when the scorer or the cluster failed, with 130 when it was interrupted.
    """
    configure_logging("warning", as_json=False)
    book = load_book(settings.policies)
    chosen = choose_policies(book, policies, family)
    folder = Folder.at(out)
    bar = Bar(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("parts, {task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    try:
        with bar:
            task = bar.add_task("", total=None, rows=0)

            def show(at: Progress) -> None:
                bar.update(task, total=at.parts, completed=at.done, rows=at.rows)

            done = run_batch(
                data,
                folder,
                _absolute(settings),
                options,
                policies=chosen,
                book=book.version,
                address=address,
                pool=pool,
                show=show,
            )
    except ScoringError as failure:
        typer.echo(f"Error: {failure} The parts that were scored are saved.", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo(
            "Stopped. The parts that were scored are saved: give the same command to go on.",
            err=True,
        )
        sys.exit(128 + signal.SIGINT)
    if done.bad_count:
        more = ", …" if done.bad_count > len(done.bad) else ""
        typer.echo(
            f"Note: {counted(done.bad_count, 'bad row was', 'bad rows were')} left out: "
            f"{', '.join(done.bad)}{more}",
            err=True,
        )
    typer.echo(
        f"Wrote the scores of {counted(done.rows, 'row')} to {folder}, in "
        f"{counted(done.parts, 'part')}."
    )


def _absolute(settings: ScoringSettings) -> ScoringSettings:
    """Name files by their whole path: actors begin in another folder."""
    named = {"model": settings.model, "template": settings.template}
    return settings.model_copy(
        update={
            field: str(Path(given).absolute())
            for field, given in named.items()
            if given not in ("starter", *TEMPLATES) and Path(given).exists()
        }
    )
