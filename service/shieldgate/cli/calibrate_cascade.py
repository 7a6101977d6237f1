"""`shieldgate calibrate --cascade`: where a cheap scorer may decide for another one."""

import difflib
from datetime import date
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation import cascade
from shieldgate.evaluation.cascade import CascadeFit, CascadeOptions, FittedBand
from shieldgate.evaluation.files import replace_file
from shieldgate.evaluation.score_columns import read_columns
from shieldgate.evaluation.score_file import Timing
from shieldgate.policy import PolicyBook
from shieldgate.scoring.cascade import Sure
from shieldgate.statistics import Estimate


def fit_cascade(
    first: Path,
    second: Path,
    book: PolicyBook,
    options: CascadeOptions,
    *,
    first_model: str | None,
    write: Path | None,
    dry_run: bool,
) -> None:
    """Find the bands from two files of scores, show them, and write the cascade.

    Raises ConfigurationError; exits with 1 where no band was found at all.
    """
    ours, theirs = read_columns(first), read_columns(second)
    fit = cascade.fit_cascade(ours, theirs, book, options, today=date.today())
    scorers = ours.header.scorer, theirs.header.scorer
    bands = [one for one in fit.bands if isinstance(one, FittedBand)]
    if bands:
        Console().print(_table(bands))
    for one in fit.bands:
        if not isinstance(one, FittedBand):
            typer.echo(
                f"{one.policy} ({one.direction}): {scorers[1]} is always asked: {one.why}", err=True
            )
    if not bands:
        raise typer.Exit(1)
    typer.echo(
        f"{scorers[1]} is asked about {fit.asked:.1%} of the texts, and answers "
        f"{fit.questions:.1%} of the questions (held out)"
    )
    typer.echo(_time(Timing.read(first.parent), Timing.read(second.parent), fit, scorers))
    if write is None:
        return
    old = write.read_text() if write.exists() else ""
    new = cascade.write_cascade(write, first_model, scorers, fit)
    if dry_run:
        now, then = (text.splitlines(keepends=True) for text in (old, new))
        typer.echo("".join(difflib.unified_diff(now, then, f"{write} (now)", str(write))), nl=False)
        return
    try:
        replace_file(write, new.encode())
    except OSError as refused:
        raise ConfigurationError(f"{write}: can't be written: {refused.strerror}") from refused
    typer.echo(f"wrote {write}: give it as --cascade, beside the --model of {scorers[1]}")


def _table(bands: list[FittedBand]) -> Table:
    may_flag = any(one.band.harmful for one in bands)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("policy", overflow="fold")
    for column in ("rows", "sure", "asked", "lost", *(["added"] if may_flag else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for one in bands:
        ends = [_end("<", one.band.safe), *([_end(">", one.band.harmful)] if may_flag else [])]
        table.add_row(
            f"{one.policy}\n[dim]{one.direction}[/]",
            f"{one.rows:,}\n[dim]{one.violations:,} violate[/]",
            "\n".join(ends),
            f"{one.asked:.1%}",
            _share(one.lost),
            *([_share(one.added)] if may_flag else []),
        )
    return table


def _end(sign: str, side: Sure | None) -> str:
    return f"{sign} {side.beyond:.2f}" if side else f"[dim]{sign} never[/]"


def _share(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "undefined"
    return f"{estimate.value:.2%}\n[dim]{estimate.low:.2%}-{estimate.high:.2%}[/]"


def _time(
    first: Timing | None, second: Timing | None, fit: CascadeFit, scorers: tuple[str, str]
) -> str:
    if first is None or second is None:
        return "how much time that saves is not known: 'shieldgate evaluate' measures it as it runs"
    ratio = first.row_seconds / second.row_seconds + fit.asked
    return (
        f"{scorers[0]} took {first.row_seconds * 1e3:.3g} ms a text and {scorers[1]} "
        f"{second.row_seconds * 1e3:.3g} ms, so both together take {ratio:.0%} of the second's time"
    )
