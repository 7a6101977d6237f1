"""What `shieldgate drift` does with records: compares, says what it means, and accepts."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shieldgate.drift import ENOUGH
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation import writeback
from shieldgate.evaluation.decision_records import DecisionRecord
from shieldgate.evaluation.score_drift import CollectedScores, ScoreDrift
from shieldgate.plural import counted
from shieldgate.policy import Calibration, PolicyBook
from shieldgate.statistics import Estimate
from shieldgate.telemetry.record_reader import RecordReader
from shieldgate.types import Direction

# Beside a calibration's own rows, which seldom are like traffic, and beside accepted scores.
_UNLIKE = {"steady": "as calibrated", "shifted": "has shifted", "drifted": "unlike calibration"}
_MOVED = {"steady": "as expected", "shifted": "has shifted", "drifted": "has drifted"}


class DriftCommand:
    """Compares the scores of records with those of a book, for the policies of `only`."""

    def __init__(
        self, book: PolicyBook, only: Sequence[str], reader: RecordReader[DecisionRecord]
    ) -> None:
        """Take the reader of the records, which knows what it passed over."""
        self._book = book
        self._only = only
        self._reader = reader
        self._scores = CollectedScores(book)

    def add(self, records: Iterable[DecisionRecord]) -> None:
        """Take the scores of records."""
        for record in records:
            self._scores.add(record)

    def report(self, *, as_json: bool) -> int:
        """Print what was found, and give the exit code."""
        found = self._found()
        if as_json:
            typer.echo(json.dumps(self._object(found), indent=1))
        else:
            self._show(found)
        if any(one.alarming for one in found):
            return 1
        return 0 if any(one.index for one in found) else 3

    def accept(self, file: Path, book_path: Path, *, dry_run: bool) -> None:
        """Write the scores into a policy file as those to expect; raise ConfigurationError."""
        there = writeback.policies_in(file)
        of = f"{counted(self._scores.decisions, 'decision')}{self._period()}"
        accepted: dict[str, dict[tuple[str, Direction], Calibration]] = {}
        for one in self._found():
            key, policy = one.key, self._book.policies.get(one.key.policy)
            # Its own: a cascade has none where it decides by those of its second scorer.
            fitted = policy.calibrations.get((key.scorer, key.direction)) if policy else None
            if fitted is None or key.policy not in there:
                why = f"{file} has no calibration of it for {key.scorer}"
            elif one.worth < ENOUGH:
                why = f"it takes {ENOUGH} scores, and these are worth {one.worth:.0f}"
            else:
                new = replace(fitted, scores=self._scores.histogram(key, of))
                accepted.setdefault(key.scorer, {})[key.policy, key.direction] = new
                continue
            typer.echo(f"left as it is: {key.policy} ({key.direction}): {why}", err=True)
        if not accepted:
            raise ConfigurationError(f"{file}: none of these scores can be accepted there.")
        for scorer, calibrations in accepted.items():
            edit = writeback.edit(file, book_path, scorer, calibrations)
            if dry_run:
                typer.echo(edit.diff(), nl=False)
            else:
                edit.save()
                typer.echo(f"wrote {file}: the scores to expect of {scorer}; thresholds stay")

    def _found(self) -> list[ScoreDrift]:
        compared = self._scores.compared()
        return [one for one in compared if not self._only or one.key.policy in self._only]

    def _period(self) -> str:
        first, last = self._scores.first, self._scores.last
        if first is None or last is None:
            return ""
        days = dict.fromkeys((f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}"))
        return f", {' to '.join(days)}"

    def _object(self, found: Sequence[ScoreDrift]) -> dict[str, Any]:
        first, last = self._scores.first, self._scores.last
        return {
            "decisions": self._scores.decisions,
            "unjudged": self._scores.unjudged,
            "first": first.isoformat() if first else None,
            "last": last.isoformat() if last else None,
            "policies": [
                {
                    **one.key._asdict(),
                    "scores": one.scores,
                    "worth": round(one.worth, 1),
                    "expected": one.expected,
                    "expected_of": one.of or None,
                    "psi": one.index and one.index.psi,
                    "psi_by_chance": one.index and one.index.by_chance,
                    "ks": one.statistic,
                    "ks_p_value": one.p_value,
                    "flagged_then": one.then and asdict(one.then),
                    "flagged_now": one.flagged and asdict(one.flagged),
                    "state": one.state,
                    "flags": one.flags,
                    "advice": _advice(one),
                }
                for one in found
            ],
        }

    def _show(self, found: Sequence[ScoreDrift]) -> None:
        console = Console()
        for scorer in dict.fromkeys(one.key.scorer for one in found):
            table = Table(
                box=box.SIMPLE_HEAD, padding=0, title=escape(scorer), title_justify="left"
            )
            table.add_column("policy", overflow="fold")
            for column in ("scores", "PSI", "KS", "flagged then", "now"):
                table.add_column(column, justify="right", no_wrap=True)
            table.add_column("")
            here = [one for one in found if one.key.scorer == scorer]
            families = {one.key.policy.partition("/")[0] for one in here}
            for one in here:
                table.add_row(*_cells(one, whole_id=len(families) > 1))
            console.print(table)
        alike: dict[str, list[str]] = {}
        for one in found:
            alike.setdefault(_advice(one), []).append(f"{one.key.policy} ({one.key.direction})")
        for advice, names in alike.items():
            typer.echo(f"{', '.join(names)}: {advice}")
        for remark in self._remarks(found):
            typer.echo(remark, err=True)

    def _remarks(self, found: Sequence[ScoreDrift]) -> Iterator[str]:
        yield f"{counted(self._scores.decisions, 'decision')}{self._period()}"
        if self._scores.unjudged:
            yield f"{self._scores.unjudged:,} of them have no scores: the guard failed"
        if self._reader.earlier:
            yield f"{counted(self._reader.earlier, 'decision')} before --since passed over"
        if self._reader.others:
            yield f"{counted(self._reader.others, 'line')} without a decision passed over"
        if any(one.worth < 0.9 * one.scores for one in found):
            yield (
                "many texts came more than once: what chance makes of the scores is reckoned by "
                "how many texts of their own they are worth (`worth` in --json)"
            )


def _cells(one: ScoreDrift, *, whole_id: bool) -> list[str]:
    policy = one.key.policy if whole_id else one.key.policy.partition("/")[2]
    words = _MOVED if one.of else _UNLIKE
    state = words[one.state] if one.state else "too few" if one.expected else "nothing to expect"
    flags = f", {one.flags} is flagged" if one.flags else ""
    index = one.index
    return [
        f"{escape(policy)}\n[dim]{one.key.direction}[/]",
        f"{one.scores:,}\n[dim]of {one.expected:,.0f}[/]" if one.expected else f"{one.scores:,}",
        f"{index.psi:.3f}\n[dim]chance {index.by_chance:.3f}[/]" if index else "-",
        _test(one),
        _share(one.then),
        _share(one.flagged),
        f"[red]{state}{flags}[/]" if one.alarming else state,
    ]


def _test(one: ScoreDrift) -> str:
    if one.p_value is None:
        return "-"
    p = f"{one.p_value:.3f}" if one.p_value >= 0.001 else "<0.001"
    return f"{one.statistic:.3f}\n[dim]p {p}[/]"


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.1%}\n[dim]{estimate.low:.1%}-{estimate.high:.1%}[/]"


def _advice(one: ScoreDrift) -> str:
    """Say what to do."""
    if one.expected is None:
        return (
            f"nothing says which scores to expect of {one.key.scorer}. Calibrate again, or accept "
            "these with --accept once you have looked at them."
        )
    if one.index is None:
        return f"too few to tell. It takes {ENOUGH} texts of their own, and 20 rows to expect them."
    return _ADVICE[one.flags or one.index.state]


_ADVICE = {
    "more": (
        "more is flagged than was. Label some of it (shieldgate review): where it is harmful, the "
        "traffic has changed and the threshold holds, so --accept; where it isn't, calibrate again "
        "on what you labelled."
    ),
    "less": (
        "less is flagged than was. Label a random share, and what is near the threshold "
        "(shieldgate review): where harm passes, calibrate again on it; else --accept."
    ),
    "drifted": (
        "the scores have moved, and about as much is flagged as was. Label a random share "
        "(shieldgate review) and evaluate it: calibrate again where the rates have changed, else "
        "--accept."
    ),
    "shifted": "the scores have moved a little. Look again in some days.",
    "steady": "as expected, nothing to do.",
}
