"""Texts that a gateway kept, as judged texts, and as rows where they were labelled there."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shieldgate.errors import ConfigurationError
from shieldgate.kept_texts.kept import KeptText, TextLabels
from shieldgate.kept_texts.seal import Seal
from shieldgate.review.candidates import Candidate, JudgedText, Key, Search
from shieldgate.review.choice import Choice, Chosen
from shieldgate.review.rows import Row, labelled_row

if TYPE_CHECKING:
    # With its database an extra, which reviewing scored rows does without.
    from shieldgate.kept_texts.labels import LabelStore, SealedLabels
    from shieldgate.kept_texts.store import SealedText, TextStore

SOURCE = "kept texts"
SHARE = 1.0  # of what a gateway kept, which it has chosen already

_ALL = Search(Choice(share=SHARE), (), 1)


@dataclass(slots=True)
class KeptTexts:
    """Kept texts as they were judged then, with the labels that they got in the console.

    `locked` counts those that no key opened so far.
    """

    store: "TextStore"
    labels: "LabelStore"
    seal: Seal
    locked: int = 0

    def judged(self) -> Iterator[JudgedText]:
        """Open text after text; raise ConfigurationError where no key opens any, StoreFailed."""
        opened = self.locked = 0
        labelled = {each.id: each for page in self.labels.pages() for each in page}
        for sealed in self.store.read():
            text = self.opened(sealed)
            if text is None:
                self.locked += 1
                continue
            opened += 1
            yield _judged(text, self._labels(text, labelled.get(text.id)))
        self._check(opened, self.locked)

    def rows(self) -> Iterator[Row]:
        """Give the rows of all that was labelled in the console, as a terminal writes them.

        Raises ConfigurationError where no key opens any, and StoreFailed.
        """
        opened = locked = 0
        for page in self.labels.pages():
            texts = self.store.find([each.id for each in page])
            for each in page:
                text = self.opened(texts[each.id]) if each.id in texts else None
                if text is None:
                    locked += each.id in texts
                    continue
                opened += 1
                if (known := self._labels(text, each)).labels:
                    yield labelled_row(candidate(text), known.labels, known.reviewed)
        self._check(opened, locked)

    def _check(self, opened: int, locked: int) -> None:
        if locked and not opened:
            raise ConfigurationError(
                f"{self.store.name}: none of its {locked:,} texts is opened by this key. Give the "
                "key that the gateway has, and old ones after it."
            )

    def opened(self, sealed: "SealedText") -> KeptText | None:
        """Open a text; None where no key does."""
        return KeptText.opened(sealed.id, sealed.sealed, self.seal)

    def _labels(self, text: KeptText, found: "SealedLabels | None") -> TextLabels:
        """Give the labels of the policies by which a text was judged."""
        known = TextLabels.opened(found.digest, found.sealed, self.seal) if found else None
        if known is None:
            return TextLabels.none()
        judged = {j.policy for j in text.judgements}
        labels = {policy: label for policy, label in known.labels.items() if policy in judged}
        return TextLabels(labels, known.reviewed)


def candidate(text: KeptText, asked: tuple[str, ...] = ()) -> Candidate:
    """Choose a kept text to be asked about, as all are; `asked` are policies."""
    judged = _judged(text, TextLabels.none())
    chosen = _ALL.choose(judged, judged.judgements)
    if chosen is None:
        raise RuntimeError("A share of 1 chooses all.")
    return Candidate(judged, chosen, asked)


def _judged(text: KeptText, known: TextLabels) -> JudgedText:
    about = {
        "at": datetime.fromtimestamp(text.at, UTC).isoformat(timespec="seconds"),
        "caller": text.caller,
        "request_id": text.request_id,
        "profile": text.profile,
        "scorer": text.scorer,
    }
    return JudgedText(
        Key(SOURCE, text.id),
        text.judgements,
        text.exchange,
        known.labels,
        about=about,
        kept=Chosen(text.why, text.chance),
    )
