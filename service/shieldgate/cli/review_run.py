"""What `shieldgate review` does: finds what to ask, has it asked, and says what came of it."""

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from shieldgate.cli.review_screen import Screen
from shieldgate.errors import ConfigurationError, StoreFailed
from shieldgate.evaluation.sources import open_source
from shieldgate.kept_texts.seal import Seal
from shieldgate.policy import PolicyBook, Profile
from shieldgate.review.candidates import Found, Search
from shieldgate.review.kept import KeptTexts
from shieldgate.review.labelled_file import LabelledFile
from shieldgate.review.scored_rows import ScoredRows
from shieldgate.review.session import Session

if TYPE_CHECKING:
    from shieldgate.kept_texts.store import TextStore


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

    def review_kept(self, store: "TextStore", seal: Seal) -> None:
        """Ask about texts that a gateway kept; raise ConfigurationError."""
        kept = KeptTexts(store, seal)
        try:
            if expired := store.expire(time.time()):
                typer.echo(f"{expired:,} texts have expired and are deleted", err=True)
            with LabelledFile(self.out) as file:
                found = self.search.among(kept.judged(), file.row)
                if kept.locked:
                    typer.echo(
                        f"Note: {kept.locked:,} texts are not opened by these keys", err=True
                    )
                self._ask(found, file)
        except StoreFailed as failure:
            raise ConfigurationError(f"{store.name}: {failure}") from None
        finally:
            store.close()

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
            f"{found.chosen['all']:,} of {found.seen:,} texts are chosen"
            + (f": {', '.join(counts)}" if counts else "")
        ]
        if found.labelled:
            sentences.append(f"{found.labelled:,} of them have their labels already")
        if session.taken_over:
            sentences.append(f"{session.taken_over:,} get the labels that the same text has")
        sentences.append(f"asked: {session.texts:,} texts, {session.questions:,} questions")
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
                f"{session.labels:,} answers. Next:\n"
                f"  shieldgate evaluate {self.out} --weight weight --out runs/reviewed",
                err=True,
            )
