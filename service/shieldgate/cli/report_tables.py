"""Reports and comparisons as tables in the terminal."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shieldgate.evaluation.compare import Comparison, Pair
from shieldgate.evaluation.report import TOGETHER, Report, Slice
from shieldgate.plural import counted
from shieldgate.statistics import BINS, Estimate
from shieldgate.types import DIRECTIONS

SHORT = {
    "average_precision": "AU-PRC",
    "optimal_f1": "best F1",
    "auroc": "AUROC",
    "recall_at_1_percent_fpr": "R@1%",
    "recall_at_5_percent_fpr": "R@5%",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "FPR",
    "brier": "Brier",
    "calibration_error": "ECE",
}
LEAD = "recall_at_1_percent_fpr"
RANKING = (LEAD, "average_precision", "optimal_f1", "auroc")
DECISIONS = ("precision", "recall", "false_positive_rate", "brier", "calibration_error")
COMPARED = (LEAD, "average_precision", "optimal_f1", "f1", "false_positive_rate")


def show(report: Report, console: Console) -> None:
    """Print the figures, then what they leave open and what they mean."""
    header = report.header
    console.print(f"[bold]{escape(header.dataset)}[/], scored by [bold]{escape(header.scorer)}[/]")
    console.print(
        f"template {header.template}, policy book {report.book}, profile {escape(report.profile)}",
        style="dim",
        highlight=False,
    )
    for line in _headlines(report):
        console.print(line, style="bold", highlight=False)
    for direction in DIRECTIONS:
        here = [s for s in report.slices if s.direction == direction]
        whole = [s for s in here if s.rows and not s.group]
        parts = [s for s in here if s.group and not s.policy]
        if whole:
            console.print(_ranking(f"{direction}: how well the scores rank", whole))
            console.print(_decisions(f"{direction}: what the thresholds decide", whole))
        if parts:
            console.print(_ranking(f"{direction}: {TOGETHER}, by group", parts))
            console.print(_decisions(f"{direction}: {TOGETHER}, by group", parts))
    for line in _remarks(report):
        console.print(f"• {line}", highlight=False, markup=False)
    if report.command:
        # In one piece, however narrow the terminal is, so that it can be pasted.
        console.print("• to have this again:")
        console.print(report.command, highlight=False, markup=False, soft_wrap=True)


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print both sides' figures, and what lies between them."""
    a, b = comparison.a, comparison.b
    console.print(f"A is [bold]{escape(a.scorer)}[/], template {a.template}, policy book {a.book}")
    console.print(f"B is [bold]{escape(b.scorer)}[/], template {b.template}, policy book {b.book}")
    for direction in DIRECTIONS:
        pairs = [p for p in comparison.pairs if p.rows and p.direction == direction]
        if not pairs:
            continue
        family = _family(pairs)
        title = f"{direction}: A, B, and A - B with its 95 % interval"
        table = _table(title, family or "policy", *(SHORT[name] for name in COMPARED))
        for pair in pairs:
            table.add_row(
                f"{_name(pair.policy, family)}\n[dim]{counted(pair.rows, 'row')}[/]",
                *(
                    f"{_number(pair.a[name])}\n{_number(pair.b[name])}\n"
                    + _estimate(pair.difference[name], "+.3f")
                    for name in COMPARED
                ),
                end_section=True,
            )
        console.print(table)
        console.print(_flips(direction, pairs, family))
    console.print(
        "• right and wrong by the labels; alike: both flag a row or neither does, with its 95 % "
        "interval; moved: B's probabilities above A's, the mean and where 90 % of rows are",
        highlight=False,
    )
    console.print("• an interval without 0 tells A from B; all intervals are paired by row")


def _flips(direction: str, pairs: Sequence[Pair], family: str) -> Table:
    title = f"{direction}: where the two decide otherwise, with B right, and wrong"
    heads = ("alike %", "B flags, A not", "A flags, B not", "moved")
    table = _table(title, family or "policy", *heads)
    for pair in pairs:
        newly, no_longer = pair.only_b, pair.only_a
        moved = pair.moved
        table.add_row(
            f"{_name(pair.policy, family)}\n[dim]{counted(pair.rows, 'row')}[/]",
            f"{_percent(pair.same.value)}\n"
            f"[dim]{_percent(pair.same.low)}-{_percent(pair.same.high)}[/]",
            f"{sum(newly):,}\n[dim]{newly[0]:,} right, {newly[1]:,} wrong[/]",
            f"{sum(no_longer):,}\n[dim]{no_longer[1]:,} right, {no_longer[0]:,} wrong[/]",
            f"{moved['mean']:+.3f}\n[dim]{moved['p5']:+.2f}, {moved['p95']:+.2f}[/]",
            end_section=True,
        )
    return table


def _headlines(report: Report) -> Iterator[str]:
    """Say first, for each direction, what is found where few are stopped by mistake."""
    for s in report.whole:
        found = s.figures[LEAD]
        if s.policy or None in (found.value, found.low, found.high):
            continue
        yield (
            f"{s.direction}: {_percent(found.value)} % of the harmful found at 1 % false positives "
            f"(95 %: {_percent(found.low)}-{_percent(found.high)} %)"
        )


def _percent(share: float | None) -> str:
    return "undefined" if share is None else f"{100 * share:.1f}"


def _remarks(report: Report) -> list[str]:
    """List what to mind, and what the figures are."""
    return [
        *report.notes,
        f"below a figure: its 95 % interval, of up to {report.resamples} bootstrap resamples with "
        f"seed {report.seed}; R@x%: recall at x % false positives; AU-PRC: average precision, not "
        "interpolated, and random is that of a random ranking; best F1: over all thresholds, on "
        f"these very rows; ECE: expected calibration error, {BINS} bins of equal width; "
        f"{TOGETHER}: their highest probability",
    ]


def _ranking(title: str, slices: Sequence[Slice]) -> Table:
    family = _family(slices)
    heads = [SHORT[name] for name in (*RANKING, "recall_at_5_percent_fpr")]
    table = _table(title, family or "policy", "rows", *heads, "random")
    for s in slices:
        table.add_row(
            _label(s, family),
            f"{s.rows:,}\n[dim]{s.harmful:,} harmful[/]",
            *(_estimate(s.figures[name]) for name in RANKING),
            _number(s.figures["recall_at_5_percent_fpr"].value),
            _number(s.random),
        )
    return table


def _decisions(title: str, slices: Sequence[Slice]) -> Table:
    family = _family(slices)
    heads = [SHORT[name] for name in ("f1", *DECISIONS)]
    table = _table(title, family or "policy", "threshold", *heads)
    for s in slices:
        table.add_row(
            _label(s, family),
            "each own" if s.threshold is None else f"{s.threshold:.4g}",
            _estimate(s.figures["f1"]),
            *(_number(s.figures[name].value) for name in DECISIONS),
        )
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _family(rows: Sequence[Slice] | Sequence[Pair]) -> str:
    """Give the family that all policies share, which then need not stand on each line."""
    families = {row.policy.split("/")[0] + "/" for row in rows if row.policy}
    return families.pop() if len(families) == 1 else ""


def _label(s: Slice, family: str) -> str:
    return escape(f"{s.group[0]}={s.group[1]}") if s.group else _name(s.policy, family)


def _name(policy: str | None, family: str = "") -> str:
    return policy.removeprefix(family) if policy else TOGETHER


def _number(value: float | None, form: str = ".3f") -> str:
    return "undefined" if value is None else format(value, form)


def _estimate(estimate: Estimate, form: str = ".3f") -> str:
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value, form)
    between = ", " if "+" in form else "-"
    return (
        f"{_number(estimate.value, form)}\n[dim]{estimate.low:.2f}{between}{estimate.high:.2f}[/]"
    )
