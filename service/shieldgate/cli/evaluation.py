"""Has labelled data scored, and reports what the scores say."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from shieldgate.cli.scoring import Scored, Scoring, Side, run_folder
from shieldgate.errors import ScoringError
from shieldgate.evaluation.columns import read_columns
from shieldgate.evaluation.compare import compare
from shieldgate.evaluation.files import write_html, write_json
from shieldgate.evaluation.protocols import Figures
from shieldgate.evaluation.report import Report, build_report, wanted_rows
from shieldgate.evaluation.tables import show, show_comparison
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging

if TYPE_CHECKING:
    from shieldgate.cli.evaluate import Request

INTERRUPTED = 130


def run(settings: ScoringSettings, request: "Request") -> None:
    """Score, report and print; raise ConfigurationError.

    Exits with 1 when no score could be had, with 130 when it was interrupted.
    """
    configure_logging("warning", as_json=False)
    scoring = Scoring.of(request)
    try:
        if request.compare is None:
            _measure(scoring, Side(settings, request.url), request.out)
        else:
            _compare(scoring, settings, *request.compare)
    except ScoringError as failure:
        typer.echo(f"Error: {failure} What was scored is saved.", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("Stopped. What was scored is saved: give the same command to go on.", err=True)
        sys.exit(INTERRUPTED)


def _measure(scoring: Scoring, side: Side, out: Path | None) -> Scored:
    """Score with one side, print its report and write it."""
    request = scoring.request
    scored = scoring.score(side, out)
    columns = read_columns(scored.path)
    report = build_report(
        columns,
        scored.book,
        scored.profile,
        command=request.command,
        notes=scored.notes,
        seed=request.seed,
    )
    if scoring.protocol is not None:
        beside = scoring.protocol.beside(
            columns.header.scorer, scoring.survey, scoring.whole, _overall(report)
        )
        report = replace(report, notes=(*report.notes, *beside))
    console = Console()
    show(report, console)
    folder = scored.path.parent
    write_json(report, folder / "report.json")
    texts = scoring.dataset.texts(wanted_rows(report)) if request.examples else None
    write_html(report, folder / "report.html", texts)
    console.print(f"Wrote scores.jsonl, report.json and report.html to {folder}")
    return scored


def _compare(scoring: Scoring, settings: ScoringSettings, a: str, b: str) -> None:
    """Measure two sides, then compare them on the rows that both scored."""
    request = scoring.request
    out = request.out or run_folder(scoring.dataset, a, "vs", b)
    scored = [
        _measure(scoring, _side(settings, request, given), out / name)
        for name, given in (("a", a), ("b", b))
    ]
    left, right = (read_columns(one.path) for one in scored)
    books = (scored[0].book, scored[1].book)
    comparison = compare(left, right, books, scored[0].profile.name, seed=request.seed)
    console = Console()
    show_comparison(comparison, console)
    file = out / "comparison.json"
    write_json(comparison, file)
    console.print(f"Wrote {file}")


def _side(settings: ScoringSettings, request: "Request", given: str) -> Side:
    """Tell what one side of a comparison is: a gateway, policy files, or a model."""
    if given.startswith(("http://", "https://")):
        return Side(settings, given)
    path = Path(given).expanduser()
    is_model = not path.exists() or (path / "config.json").is_file()
    field, value = ("model", given) if is_model else ("policies", path)
    return Side(settings.model_copy(update={field: value}), request.url)


def _overall(report: Report) -> Figures | None:
    """Find the figures over all policies; a protocol judges in one direction."""
    figures = next(s.figures for s in report.whole if s.policy is None)
    f1, area = figures["optimal_f1"].value, figures["average_precision"].value
    return None if f1 is None or area is None else Figures(f1, area)
