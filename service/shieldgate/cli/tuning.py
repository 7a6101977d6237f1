"""Reads the rows, trains, and shows what was gained."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from shieldgate.cli.labels import chosen_adapter, chosen_labels
from shieldgate.errors import ConfigurationError, ScoringError
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import Policy, load_book
from shieldgate.prompt import find_template
from shieldgate.statistics import Estimate, doubts
from shieldgate.telemetry import configure_logging
from shieldgate.tuning.fit import Recipe
from shieldgate.tuning.labelled import Labelled, counts, deal
from shieldgate.tuning.loop import Check, best
from shieldgate.tuning.tune import Listener, Order, Report, tune

if TYPE_CHECKING:
    from shieldgate.cli.tune import Request

INTERRUPTED = 130


def run(request: "Request") -> None:
    """Tune and show what came out; raise ConfigurationError.

    Exits with 1 when training failed, with 130 when it was interrupted.
    """
    configure_logging("warning", as_json=False)
    order = _order(request)
    try:
        with _Shown() as shown:
            report = tune(order, shown)
    except FloatingPointError:
        _fail("training diverged: the loss or a score is not finite. Try a lower --rate.")
    except torch.OutOfMemoryError:
        _fail("the memory of the device is full. Halve --batch-tokens and give another --out.")
    except ScoringError as failure:
        _fail(str(failure))
    except KeyboardInterrupt:
        typer.echo("Stopped. Give the same command again to go on.", err=True)
        sys.exit(INTERRUPTED)
    _show(report, order, request, Console())


def _fail(why: str) -> None:
    typer.echo(f"Error: {why}", err=True)
    sys.exit(1)


def _order(request: "Request") -> Order:
    book = load_book(request.policies)
    policies = _chosen(book.policies, request.chosen)
    rows = _read(request, request.data, policies)
    test = _read(request, request.test, policies) if request.test else ()
    parts = deal(rows, test, seed=request.seed)
    known = counts(rows)
    tuned = {id: policy for id, policy in policies.items() if id in known}
    unmeasured = [id for id in tuned if len(counts(parts.test).get(id, ())) < 2]
    if len(unmeasured) == len(tuned):
        raise ConfigurationError(
            f"{request.test or request.data}: no rows are left to measure on: the test part needs "
            f"rows that violate {unmeasured[0]} and rows that don't. Label more."
        )
    overrides = {
        "steps": request.steps,
        "rate": request.rate,
        "keep": request.keep,
        "tokens": request.tokens,
    }
    return Order(
        base=request.base,
        out=request.out,
        template=find_template(request.template),
        policies=tuned,
        kept=_kept(tuned),
        parts=parts,
        seed=request.seed,
        revision=request.revision,
        device=request.device,
        method=request.method,
        changes={name: value for name, value in overrides.items() if value is not None},
    )


def _chosen(policies: Mapping[str, Policy], chosen: Sequence[str]) -> dict[str, Policy]:
    missing = [id for id in chosen if id not in policies]
    if missing:
        raise ConfigurationError(
            f"There is no policy named {missing[0]!r}. Known: {', '.join(sorted(policies))}."
        )
    return {id: policy for id, policy in policies.items() if not chosen or id in chosen}


def _read(request: "Request", given: str, policies: Mapping[str, Policy]) -> list[Labelled]:
    """Read the rows that label a policy; raise ConfigurationError where none does."""
    dataset = Dataset(open_source(given), chosen_adapter(request.adapter, request.columns))
    survey = dataset.survey()
    labelling = Labelling.of(
        survey.labels, list(policies.values()), chosen=chosen_labels(request.labels)
    )
    if not labelling.policies:
        has = ", ".join(survey.labels) or "none"
        raise ConfigurationError(
            f"{given}: no label names a policy. Its labels: {has}. The policies: "
            f"{', '.join(policies)}. Say which is which with --label LABEL=POLICY."
        )
    read_as = "; ".join(f"{name} as {', '.join(ids)}" for name, ids in labelling.policies.items())
    for note in (f"labels were read so: {read_as}", *survey.notes()):
        typer.echo(f"Note: {given}: {note}", err=True)
    found = ((row.example.exchange, labelling.labels(row.example)) for row in dataset.rows())
    return [
        Labelled(exchange, {policy: bool(value) for policy, value in labels.items()})
        for exchange, labels in found
        if labels
    ]


def _kept(tuned: Mapping[str, Policy]) -> list[Policy]:
    """Choose what shall stay as it is: the harms that ShieldGemma knows, but for the tuned."""
    wordings = {words for policy in tuned.values() for words in policy.guidelines.values()}
    return [
        policy
        for id, policy in load_book().policies.items()
        if id.startswith("shieldgemma/")
        and id not in tuned
        and wordings.isdisjoint(policy.guidelines.values())
    ]


class _Shown(Listener):
    """A progress bar on standard error."""

    def __init__(self) -> None:
        """Make the bar; it appears when training begins."""
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn(
                "validation AU-PRC {task.fields[quality]:.3f}, best {task.fields[best]:.3f}"
            ),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._checks: list[Check] = []

    def __enter__(self) -> "_Shown":
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def phase(self, what: str) -> None:
        """Say what takes its time."""
        self._progress.console.print(what, style="dim")

    def begin(self, recipe: Recipe) -> None:
        """Set the length of the bar."""
        nan = float("nan")
        self._task = self._progress.add_task(
            "", total=recipe.steps, loss=nan, quality=nan, best=nan
        )

    def step(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step + 1, loss=loss)

    def check(self, check: Check) -> None:
        """Show how well the validation rows are ranked."""
        self._checks.append(check)
        self._progress.update(
            self._task, quality=check.figures[0], best=best(self._checks).figures[0]
        )


def _show(report: Report, order: Order, request: "Request", console: Console) -> None:
    rows = report.rows
    console.print(
        f"{rows['train']:,} rows to learn from, {rows['validation']:,} to stop by, "
        f"{rows['test']:,} to measure on; best after {report.best} of "
        f"{report.checks[-1].steps} steps",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, title="On rows held out: before, after, and the gain")
    table.add_column("policy")
    for name in ("rows", "AU-PRC", "gain", "best F1", "gain"):
        table.add_column(name, justify="right")
    for m in report.measured:
        cells = [f"{m.policy}\n[dim]{m.direction}[/]", f"{m.rows:,}\n[dim]{m.harmful:,} violate[/]"]
        for name in ("average_precision", "optimal_f1"):
            cells += [
                f"{_number(m.before[name])}\n{_number(m.after[name])}",
                _number(m.gain[name], "+.3f"),
            ]
        table.add_row(*cells, end_section=True)
    console.print(table)
    for remark in _remarks(report):
        console.print(f"• {remark}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Wrote {order.out}, scorer [bold]{report.scorer}[/]. Next:", highlight=False)
    for command in _next(order, request):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def _remarks(report: Report) -> list[str]:
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


def _next(order: Order, request: "Request") -> list[str]:
    """Write out the commands that make a scorer of one's own serve."""
    out = shlex.quote(str(order.out))
    book = f" --policies {shlex.quote(str(request.policies))}" if request.policies else ""
    template = "" if request.template == "chat" else f" --template {shlex.quote(request.template)}"
    model = f"--model {out}{template}{book}"
    read = [request.test or "FRESH_ROWS.jsonl"]
    read += [f"--adapter={request.adapter}"] if request.adapter else []
    read += [f"--map={pair}" for pair in request.columns]
    read += [f"--label={pair}" for pair in request.labels]
    read += [f"--policy={id}" for id in order.policies]
    runs = shlex.quote(f"runs/{order.out.name}")
    return [
        f"shieldgate evaluate {shlex.join(read)} {model} --out {runs}",
        f"shieldgate calibrate {runs}/scores.jsonl --target fpr=0.01{book} --write MY.yaml",
        f"shieldgate serve {model}",
    ]


def _number(estimate: Estimate, form: str = ".3f") -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} [dim]{estimate.low:{form}} to {estimate.high:{form}}[/]"
