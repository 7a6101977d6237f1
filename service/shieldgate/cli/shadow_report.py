"""Shows what records of second opinions say."""

import json
from collections.abc import Iterator, Sequence

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shieldgate.plural import counted
from shieldgate.shadow.report import DirectionReport, PairReport, PolicyReport, Share


def show(found: Sequence[PairReport], *, as_json: bool) -> None:
    """Print what was found, for people or as JSON."""
    if as_json:
        typer.echo(json.dumps([pair.to_dict() for pair in found], indent=1))
        return
    console = Console()
    for pair in found:
        _show_pair(pair, console)
    console.print(
        "• ranges of shares are 95 % intervals, as if each text were independent of the others; "
        "probability: the candidate's above the one in force, the mean and where 90 % lie; a "
        "policy that one of the two doesn't judge by counts as not violated there",
        highlight=False,
        markup=False,
    )


def _show_pair(pair: PairReport, console: Console) -> None:
    before, after = pair.in_force, pair.candidate
    profiles = ", ".join(a if a == b else f"{a} -> {b}" for a, b in pair.profiles)
    share = ", ".join(f"{share:g}" for share in sorted(pair.shares))
    console.print(f"In force: [bold]{escape(before.scorer)}[/], policy book {before.policy_book}")
    console.print(f"Candidate: [bold]{escape(after.scorer)}[/], policy book {after.policy_book}")
    console.print(
        f"{counted(pair.exchanges, 'text')} judged twice, a share of {share} of all; profiles: "
        f"{profiles}; {pair.tokens:,} tokens in {pair.seconds:,.1f} s of computing",
        style="dim",
        highlight=False,
    )
    for direction in pair.directions:
        for line in _sentences(direction):
            console.print(f"• {line}", highlight=False, markup=False)
        console.print(_table(direction))


def _sentences(found: DirectionReport) -> Iterator[str]:
    yield f"{found.direction}: decided alike {_said(found.same)} of {found.exchanges:,}"
    for share, what, ids in (
        (found.newly_blocked, "would have blocked what passed", found.newly_blocked_ids),
        (
            found.no_longer_blocked,
            "would have passed what was blocked",
            found.no_longer_blocked_ids,
        ),
    ):
        named = f"; {', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}" if ids else ""
        yield f"{found.direction}: {what} {_said(share)}{named}"


def _table(found: DirectionReport) -> Table:
    families = {policy.policy.partition("/")[0] + "/" for policy in found.policies}
    family = families.pop() if len(families) == 1 else ""
    table = Table(
        title=f"{found.direction}: violations by policy",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column(family or "policy", overflow="fold")
    for column in ("in force", "candidate", "newly", "no longer", "probability"):
        table.add_column(column, justify="right", no_wrap=True)
    for policy in found.policies:
        table.add_row(
            escape(policy.policy.removeprefix(family)) + _mark(policy),
            f"{policy.violated_in_force:,}",
            f"{policy.violated_by_candidate:,}",
            _below(policy.newly_violated),
            _below(policy.no_longer_violated),
            _moved(policy),
        )
    return table


def _mark(policy: PolicyReport) -> str:
    return " (new)" if policy.new else " (gone)" if policy.gone else ""


def _moved(policy: PolicyReport) -> str:
    moved = policy.difference
    if moved.mean is None:
        return "-"
    low, high = moved.percentiles[5], moved.percentiles[95]
    return f"{moved.mean:+.3f}\n[dim]{low:+.2f}, {high:+.2f}[/]"


def _below(share: Share) -> str:
    if share.low is None or share.high is None:
        return f"{share.count:,}"
    return f"{share.count:,}\n[dim]{100 * share.low:.2g}-{100 * share.high:.2g} %[/]"


def _said(share: Share) -> str:
    if share.share is None or share.low is None or share.high is None:
        return f"{share.count:,}"
    percents = [f"{100 * part:.3g}" for part in (share.share, share.low, share.high)]
    return f"{share.count:,} ({percents[0]} %: {percents[1]}-{percents[2]})"
