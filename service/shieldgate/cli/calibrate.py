"""`shieldgate calibrate`: from labelled scores to thresholds in a policy file."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from shieldgate.errors import ConfigurationError, UnknownName, needed
from shieldgate.policy import PolicyBook, book_of, load_book

if TYPE_CHECKING:
    from shieldgate.evaluation.calibration import Fitted, Skipped, Target
    from shieldgate.statistics import Estimate

_CASCADE = "Cascade"


def calibrate(
    scores: Annotated[
        Path,
        typer.Argument(metavar="SCORES", help="A scores.jsonl that `shieldgate evaluate` wrote."),
    ],
    *,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="What each threshold is to achieve: optimal-f1, fpr=0.01, recall=0.95 or "
            "precision=0.9.",
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The policy file to write to, or the file of a cascade. Without it, the figures "
            "are shown.",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Calibrate this policy only. May be repeated. Default: all of FILE."),
    ] = None,
    policies: Annotated[
        Path | None,
        typer.Option(
            envvar="SHIELDGATE_POLICIES",
            help="The policy file, or directory of them, that FILE belongs to. Default: FILE "
            "itself where it is a whole book, else its directory.",
        ),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit temperature and bias too, by maximum likelihood.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Deals the rows out, and draws the intervals.")] = 0,
    cascade: Annotated[
        Path | None,
        typer.Option(
            metavar="CHEAP",
            help="The scores.jsonl of a cheaper scorer on the same rows: find where it may decide "
            "instead. Takes no TARGET, and no labels.",
            rich_help_panel=_CASCADE,
        ),
    ] = None,
    most_changed: Annotated[
        float,
        typer.Option(
            min=1e-6,
            max=0.5,
            help="Of the texts that the scorer finds to violate a policy, at most this share may "
            "be passed by the cheaper one; with --may-flag, of the others at most this share may "
            "be flagged.",
            rich_help_panel=_CASCADE,
        ),
    ] = 0.02,
    may_flag: Annotated[
        bool,
        typer.Option(
            "--may-flag",
            help="The cheaper one may flag texts, too, and not only pass them. That saves time "
            "where much is harmful.",
            rich_help_panel=_CASCADE,
        ),
    ] = False,
    first: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="How --model names the cheaper one. Default: what FILE says, else its name.",
            rich_help_panel=_CASCADE,
        ),
    ] = None,
) -> None:
    """Set thresholds from labelled scores, for the scorer that they came from.

    With --cascade, find where a cheaper scorer is sure to decide alike.

    What is achieved is shown twice: on the rows that a threshold was chosen on, and held out
    (each fifth of the rows, judged by a threshold from the other four). The second is what to
    expect. Beside it stands what it costs, held out: the recall, or of a recall the false-positive
    rate; and how many of 1,000 rows like these are flagged.

    The exit code is 0 when all was calibrated, 1 when something was skipped, 2 when a setting,
    name or file is wrong.

    For example:

    - `shieldgate calibrate scores.jsonl --target fpr=0.01`

    - `shieldgate calibrate scores.jsonl --target optimal-f1 --fit --write
    policies/shieldgemma.yaml --dry-run`

    - `shieldgate calibrate scores.jsonl --target recall=0.95 --policy hate --write
    policies/shieldgemma.yaml`

    - `shieldgate calibrate runs/2b/scores.jsonl --cascade runs/starter/scores.jsonl --write
    cascade.yaml`
    """
    with needed("Calibrating", "eval"):
        # Here, because they import numpy, which serving does without.
        from shieldgate.cli.calibrate_cascade import fit_cascade  # noqa: PLC0415
        from shieldgate.evaluation import writeback  # noqa: PLC0415
        from shieldgate.evaluation.calibration import (  # noqa: PLC0415
            CalibrationOptions,
            Skipped,
            Target,
        )
        from shieldgate.evaluation.calibration import calibrate as made  # noqa: PLC0415
        from shieldgate.evaluation.cascade import CascadeOptions  # noqa: PLC0415
        from shieldgate.evaluation.score_columns import UNKNOWN, read_columns  # noqa: PLC0415
    if cascade:
        if target or policy or fit:
            raise ConfigurationError(
                "--cascade finds where another scorer decides alike: --target, --policy and --fit "
                "are for thresholds. Give one or the other."
            )
        fit_cascade(
            cascade,
            scores,
            load_book(policies),
            CascadeOptions(most_changed, may_flag, seed),
            first_model=first,
            write=write,
            dry_run=dry_run,
        )
        return
    if target is None:
        raise ConfigurationError(
            "--target is missing: say what thresholds are to achieve, optimal-f1 for example, or "
            "give --cascade."
        )
    try:
        options = CalibrationOptions(Target.parse(target), fit, seed)
    except ValueError:
        raise ConfigurationError(
            f"--target: {target!r} is none; write optimal-f1, fpr=0.01, recall=0.95 or "
            "precision=0.9, with a number above 0 and below 1."
        ) from None
    book_path = policies or (write and book_of(write))
    book = load_book(book_path)
    columns = read_columns(scores)
    if not any((labels != UNKNOWN).any() for labels in columns.labels.values()):
        raise ConfigurationError(
            f"{scores}: its rows say at most whether they are harmful, and a threshold is that of "
            "one policy. Evaluate again with the policy that a column is about, as in "
            "--map label:hate=COLUMN."
        )
    try:
        only = tuple(known.id for known in book.find(policy or (), columns.header.policies))
    except UnknownName as unknown:
        raise ConfigurationError(f"--policy: {unknown}") from None
    if write:
        only = _in_file(write, writeback.policies_in(write), columns.header.policies, only)
    found = list(made(columns, book, options, today=date.today(), only=only))
    fitted = [one for one in found if not isinstance(one, Skipped)]
    skipped = [one for one in found if isinstance(one, Skipped)]
    if fitted:
        Console().print(_table(fitted, options.target))
    _remark(fitted, skipped, book)
    if write and book_path and fitted:
        made_of = {(one.policy, one.direction): one.calibration for one in fitted}
        edit = writeback.edit(write, book_path, columns.header.scorer, made_of)
        if dry_run:
            typer.echo(edit.diff(), nl=False)
        else:
            edit.save()
            typer.echo(f"wrote {write}, for the scorer {columns.header.scorer}")
    if skipped or not fitted:
        raise typer.Exit(1)


def _in_file(
    file: Path, there: frozenset[str], scored: tuple[str, ...], asked: tuple[str, ...]
) -> tuple[str, ...]:
    """Name the policies to calibrate; raise ConfigurationError where `file` lacks them."""
    absent = [policy for policy in asked if policy not in there]
    if absent:
        raise ConfigurationError(
            f"{file} does not define {', '.join(absent)}; give --write the file that does."
        )
    both = asked or tuple(policy for policy in scored if policy in there)
    if not both:
        raise ConfigurationError(
            f"{file} defines none of the policies of the scores: {', '.join(scored)}."
        )
    return both


def _table(fitted: "list[Fitted]", target: "Target") -> Table:
    figure, cost = (
        "FPR" if name == "false_positive_rate" else name for name in (target.figure, target.cost)
    )
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("policy", overflow="fold")
    heads = ("rows", "threshold", figure, f"{figure},\nheld out", f"{cost},\nheld out")
    for column in (*heads, "flagged\nof 1,000"):
        table.add_column(column, justify="right", no_wrap=True)
    families = {one.policy.partition("/")[0] for one in fitted}
    for one in fitted:
        policy = one.policy.partition("/")[2] if len(families) == 1 else one.policy
        table.add_row(
            f"{policy}\n[dim]{one.direction}[/]",
            f"{one.rows:,}\n[dim]{one.harmful:,} harmful[/]",
            f"{one.calibration.threshold:.4g}\n[dim]was {one.before.threshold:.4g}[/]",
            _estimate(one.achieved),
            _estimate(one.held_out),
            _estimate(one.cost),
            f"{1000 * one.flagged:.0f}",
        )
    return table


def _estimate(estimate: "Estimate") -> str:
    if estimate.value is None or estimate.low is None:
        return "undefined"
    return f"{estimate.value:.3f}\n[dim]{estimate.low:.3f}-{estimate.high:.3f}[/]"


def _remark(fitted: "list[Fitted]", skipped: "list[Skipped]", book: PolicyBook) -> None:
    """Say what a fit gained, what was skipped, and where a profile has its own word."""
    for one in fitted:
        if one.errors and None not in one.errors:
            before, after = one.errors
            typer.echo(
                f"{one.policy} ({one.direction}): temperature {one.calibration.temperature:g}, "
                f"bias {one.calibration.bias:g}; calibration error {before:.3f}, "
                f"held out {after:.3f} after the fit"
            )
    alike: dict[tuple[str, str], list[str]] = {}
    for skip in skipped:
        alike.setdefault((skip.direction, skip.why), []).append(skip.policy)
    for (direction, why), names in alike.items():
        typer.echo(f"skipped {', '.join(names)} ({direction}): {why}", err=True)
    for profile in book.profiles.values():
        own = [
            f.policy
            for f in fitted
            if profile.override(f.policy, f.direction, f.calibration.threshold)
            != f.calibration.threshold
        ]
        if own:
            typer.echo(
                f"the profile {profile.name} has thresholds of its own, which win, for "
                f"{', '.join(dict.fromkeys(own))}",
                err=True,
            )
