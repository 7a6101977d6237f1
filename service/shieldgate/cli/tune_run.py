"""What `shieldgate tune` does: trains, shows how far it is, and what was gained."""

import signal
import sys
from typing import NoReturn

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from shieldgate.errors import ScoringError
from shieldgate.plural import counted
from shieldgate.statistics import Estimate, doubts
from shieldgate.tuning.fit import Hyperparameters
from shieldgate.tuning.loop import Check, best
from shieldgate.tuning.tune import TuningCallback, TuningReport, TuningTask, tune


def run(task: TuningTask) -> None:
    """Tune and show what came out; raise ConfigurationError.

    Exits with 1 when training failed, with 130 when it was interrupted.
    """
    try:
        with _Shown() as shown:
            report = tune(task, shown)
    except FloatingPointError:
        _fail("training diverged: the loss or a score is not finite. Try a lower --rate.")
    except torch.OutOfMemoryError:
        _fail("the memory of the device is full. Halve --batch-tokens and give another --out.")
    except ScoringError as failure:
        _fail(str(failure))
    except KeyboardInterrupt:
        typer.echo("Stopped. Give the same command again to go on.", err=True)
        sys.exit(128 + signal.SIGINT)
    _show(report, task)


def _fail(why: str) -> NoReturn:
    typer.echo(f"Error: {why}", err=True)
    sys.exit(1)


class _Shown(TuningCallback):
    """A progress bar on standard error."""

    def __init__(self) -> None:
        """Make the bar; it appears when training begins."""
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[quality]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._checks: list[Check] = []

    def __enter__(self) -> "_Shown":
        """Show it."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def phase(self, what: str) -> None:
        """Say what takes its time."""
        self._progress.console.print(what, style="dim")

    def begin(self, recipe: Hyperparameters) -> None:
        """Set the length of the bar."""
        self._task = self._progress.add_task("", total=recipe.steps, loss="", quality="")

    def step(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step + 1, loss=f"loss {loss:.3f}")

    def check(self, check: Check) -> None:
        """Show how well the validation rows are ranked."""
        self._checks.append(check)
        now, highest = check.figures[0], best(self._checks).figures[0]
        # Short, so that the bar has room beside it on 80 columns.
        self._progress.update(self._task, quality=f"AU-PRC {now:.3f}, best {highest:.3f}")


def _show(report: TuningReport, task: TuningTask) -> None:
    console = Console()
    rows = report.rows
    console.print(
        f"{counted(rows['train'], 'row')} to learn from, {rows['validation']:,} to stop by, "
        f"{rows['test']:,} to measure on; best after {report.best} of "
        f"{counted(report.checks[-1].steps, 'step')}",
        highlight=False,
    )
    table = Table(
        title="On rows held out", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("policy", overflow="fold")
    table.add_column("")
    for name in ("before", "after", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for m in report.measured:
        counts = f"{m.direction}, {counted(m.rows, 'row')}, {m.harmful:,} violate"
        for label, figure, name in (
            (m.policy, "AU-PRC", "average_precision"),
            (f"[dim]{counts}[/]", "best F1", "optimal_f1"),
        ):
            estimates = (_number(m.before[name]), _number(m.after[name]), _gain(m.gain[name]))
            table.add_row(label, figure, *estimates, end_section=name == "optimal_f1")
    console.print(table)
    for remark in _remarks(report):
        console.print(f"• {remark}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"Wrote {task.out}, scorer [bold]{report.scorer}[/].", highlight=False, soft_wrap=True
    )


def _remarks(report: TuningReport) -> list[str]:
    remarks = []
    if report.best == 0:
        remarks.append(
            "no step ranked the validation rows better than the base: this is the base again. "
            "More rows, or a guideline in other words, may help"
        )
    for m in report.measured:
        remarks += [
            f"{m.policy}, {m.direction}: {doubt}" for doubt in doubts(m.harmful, m.rows - m.harmful)
        ]
    if report.drift is not None:
        remarks.append(
            "on the shipped ShieldGemma policies, the probability of these texts moved by "
            f"{report.drift:.3f} on average"
        )
    return remarks


def _number(estimate: Estimate) -> str:
    return _interval(estimate, ".3f", ".2f", "-")


def _gain(estimate: Estimate) -> str:
    return _interval(estimate, "+.3f", "+.2f", ", ")


def _interval(estimate: Estimate, form: str, shorter: str, between: str) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}"
    interval = f"{estimate.low:{shorter}}{between}{estimate.high:{shorter}}"
    return f"{estimate.value:{form}}\n[dim]{interval}[/]"
