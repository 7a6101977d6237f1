"""Kept texts handed to people one at a time, wherever they sit, and their labels."""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shieldgate.errors import TextGone, UnknownName
from shieldgate.kept_texts.kept import KeptText, TextLabels
from shieldgate.review.candidates import Candidate
from shieldgate.review.kept import KeptTexts, candidate
from shieldgate.review.rows import Row
from shieldgate.types import Label

if TYPE_CHECKING:
    # With its database an extra.
    from shieldgate.kept_texts.labels import Standing

# Who was asked and says nothing for so long has left.
ALONE_SECONDS = 1800.0

_READ_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Handed:
    """What is to be asked now, None at the end; `locked` texts before it are opened by no key."""

    candidate: Candidate | None
    locked: int


class Desk:
    """Asks people about kept texts and keeps what they answer; each method blocks.

    Several reviewers, in several processes or on several machines, may sit at one database: none
    is asked about what another has or has labelled. A text that was kept many times is asked about
    once. All methods raise StoreFailed.
    """

    def __init__(
        self,
        kept: KeptTexts,
        *,
        keep_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take kept texts, whose labels stay for `keep_seconds` after the last of a text."""
        self._kept = kept
        self._texts, self._labels, self._seal = kept.store, kept.labels, kept.seal
        self._keep_seconds = keep_seconds
        self._clock = clock

    def next(
        self, reviewer: str, after: str, wanted: Collection[str], book: Collection[str]
    ) -> Handed:
        """Give a reviewer the first text behind the id `after` that lacks a label.

        What is asked are the policies of `wanted`, in the order in which they were judged; those of
        `book` can be. The order of texts is that of their ids, which are random.
        """
        locked = 0
        while sealed := self._texts.unfinished(after, _READ_AT_ONCE):
            for found in sealed:
                after = found.id
                text = self._kept.opened(found)
                if text is None:
                    locked += 1
                elif asked := self._taken(text, reviewer, wanted, book):
                    return Handed(candidate(text, asked), locked)
        self.leave(reviewer)
        return Handed(None, locked)

    def leave(self, reviewer: str) -> None:
        """Let others be asked about what a reviewer has."""
        self._labels.give_back(reviewer)

    def _taken(
        self, text: KeptText, reviewer: str, wanted: Collection[str], book: Collection[str]
    ) -> tuple[str, ...]:
        """Give what is to be asked of a text that is this reviewer's now; else nothing."""

        def lacking() -> tuple[str, ...]:
            known = self._known(digest).labels
            lacks = [j.policy for j in text.judgements if j.policy not in known]
            if known:
                unfinished = any(policy in book for policy in lacks)
                self._labels.mark(text.id, digest, unfinished=unfinished)
            return tuple(policy for policy in lacks if policy in wanted)

        digest, now = self._digest(text), self._clock()
        if not lacking():
            return ()
        if not self._labels.take(digest, reviewer, now, now + ALONE_SECONDS):
            return ()
        # Whoever had it may have labelled it since.
        return lacking()

    def label(
        self,
        reviewer: str,
        id: str,
        answers: Mapping[str, Label | None],
        book: Collection[str],
    ) -> Mapping[str, Label]:
        """Keep what a reviewer says of a text by policy id, None for a label that is taken back.

        Gives all labels of the text; they are kept when it returns. Raises UnknownName where it was
        not judged by a policy, TextGone, and TextTaken.
        """
        found = self._texts.find([id]).get(id)
        text = self._kept.opened(found) if found else None
        if text is None:
            raise TextGone
        policies = [j.policy for j in text.judgements]
        for policy in answers:
            if policy not in policies:
                raise UnknownName(f"This text was not judged by {policy!r}.")
        digest, now = self._digest(text), self._clock()
        labels: dict[str, Label] = {}

        def edited(sealed: bytes | None) -> tuple[bytes | None, bool]:
            known = TextLabels.opened(digest, sealed, self._seal) or TextLabels.none()
            said = {**known.labels, **answers}
            labels.update((policy, label) for policy, label in said.items() if label is not None)
            if not labels:
                return None, True
            reviewed = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
            unfinished = any(p in book and p not in labels for p in policies)
            return TextLabels(labels, reviewed).sealed(digest, self._seal), unfinished

        self._labels.change(
            digest,
            reviewer,
            id,
            edited,
            now=now,
            alone_until=now + ALONE_SECONDS,
            keep_until=now + self._keep_seconds,
        )
        return labels

    def standing(self, reviewer: str) -> "Standing":
        """Count the texts, and how they stand for a reviewer."""
        return self._labels.standing(reviewer, self._clock())

    def rows(self) -> Iterator[Row]:
        """Give the rows of all texts with labels, as `KeptTexts.rows` does."""
        return self._kept.rows()

    def _known(self, digest: str) -> TextLabels:
        sealed = self._labels.of(digest)
        return TextLabels.opened(digest, sealed, self._seal) or TextLabels.none()

    def _digest(self, text: KeptText) -> str:
        """Give the digest that the text's labels have, also where that is of an older key."""
        said = json.dumps([text.prompt, text.response]).encode()
        return self._labels.digest(text.id) or self._seal.digest(said)
