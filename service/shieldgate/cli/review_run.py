"""What `shieldgate review` does: finds what to ask, has it asked, and says what came of it."""

import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from shieldgate.cli.review_screen import Screen
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.sources import open_source
from shieldgate.plural import counted
from shieldgate.policy import PolicyBook, Profile
from shieldgate.review.candidates import Found, Key, Search
from shieldgate.review.kept import KeptTexts
from shieldgate.review.labelled_file import LabelledFile
from shieldgate.review.rows import Row
from shieldgate.review.scored_rows import ScoredRows
from shieldgate.review.session import Session

_NEXT = "Next:\n  shieldgate evaluate {} --weight weight --out runs/reviewed"


def export_labels(kept: KeptTexts, out: Path) -> None:
    """Add what was labelled in the console to a file of rows; raise ConfigurationError."""

    def merged(row: Row) -> Row:
        """Add to a row what the file has of its text."""
        before = file.row(Key(row["source"], row["id"])) or row
        if not math.isclose(before["weight"], row["weight"]):
            raise ConfigurationError(
                f"{out}: {row['id']} was labelled there, and chosen by other rules, so that its "
                "weight doesn't suit the others. Choose another --out."
            )
        return {**row, "labels": {**before["labels"], **row["labels"]}}

    with LabelledFile(out) as file:
        rows = [merged(row) for row in kept.rows()]
        if not rows:
            typer.echo("Nothing was labelled in the console so far", err=True)
            return
        file.put(rows)
    typer.echo(
        f"Added to {out}, with the texts: {len(rows):,} that were labelled in the console. "
        f"{_NEXT.format(out)}",
        err=True,
    )


@dataclass(frozen=True, slots=True)
class ReviewCommand:
    """What to look for under which book, where labels go, and what the screen shows."""

    book: PolicyBook
    profile: Profile
    search: Search
    out: Path
    shows_scores: bool = False
    dry_run: bool = False

    def review_rows(
        self,
        data: str,
        scores: str,
        against: str | None,
        *,
        adapter: str | None,
        columns: Sequence[str],
    ) -> None:
        """Ask about scored rows; raise ConfigurationError."""
        source = open_source(data)

        def opened(place: str) -> ScoredRows:
            return ScoredRows.open(
                source, place, self.book, self.profile, adapter=adapter, columns=columns
            )

        rows, other = opened(scores), opened(against) if against else None
        with LabelledFile(self.out) as file:
            found = self.search.among(rows.judged(other), file.row)
            found = replace(found, candidates=rows.with_texts(found.candidates, file.row))
            self._ask(found, file)

    def review_kept(self, kept: KeptTexts) -> None:
        """Ask about texts that a gateway kept; raise ConfigurationError and StoreFailed."""
        with LabelledFile(self.out) as file:
            found = self.search.among(kept.judged(), file.row)
            if kept.locked:
                typer.echo(f"Note: {kept.locked:,} texts are not opened by these keys", err=True)
            self._ask(found, file)

    def _ask(self, found: Found, file: LabelledFile) -> None:
        session = Session(found.candidates, file)
        for sentence in self._about(found, session):
            typer.echo(sentence, err=True)
        if self.dry_run:
            return
        session.begin()
        if session.question is None:
            return
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigurationError(
                "Labels are given by keys, and this is no terminal. Run it in one; --dry-run says "
                "here what it would ask."
            )
        screen = Screen(session, self.book.policies, self.out.name, self.shows_scores)
        try:
            screen.run()
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        finally:
            self._conclude(session)

    def _about(self, found: Found, session: Session) -> list[str]:
        """Say what was chosen of how much, and what of it is asked."""
        reasons = {
            "near": "near a threshold",
            "disagree": "where two disagree",
            "random": f"at random (a share of {self.search.choice.share:g})",
        }
        counts = [
            f"{found.chosen[w]:,} {words}" for w, words in reasons.items() if w in found.chosen
        ]
        sentences = [
            f"{found.chosen['all']:,} of {counted(found.seen, 'text')} chosen"
            + (f": {', '.join(counts)}" if counts else "")
        ]
        if found.labelled:
            sentences.append(f"{found.labelled:,} of them have their labels already")
        if session.taken_over:
            sentences.append(f"{session.taken_over:,} get the labels that the same text has")
        sentences.append(
            f"asked: {counted(session.texts, 'text')}, {counted(session.questions, 'question')}"
        )
        if not self.search.choice.share:
            sentences.append(
                "Note: nothing is drawn at random (--share 0), so these rows say nothing of the "
                "others: figures from them are of the chosen alone."
            )
        return sentences

    def _conclude(self, session: Session) -> None:
        """Say where the labels are, and what to do with them."""
        if session.labels:
            typer.echo(
                f"Labelled in {self.out}, with the texts: {session.labelled:,}, by "
                f"{session.labels:,} answers. {_NEXT.format(self.out)}",
                err=True,
            )
