"""Texts that a gateway kept, as judged texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shieldgate.errors import ConfigurationError
from shieldgate.kept_texts.kept import KeptText
from shieldgate.kept_texts.seal import Seal
from shieldgate.review.candidates import JudgedText, Key
from shieldgate.review.choice import Chosen

if TYPE_CHECKING:
    # With its database an extra, which reviewing scored rows does without.
    from shieldgate.kept_texts.store import TextStore

SOURCE = "kept texts"


@dataclass(slots=True)
class KeptTexts:
    """Kept texts as they were judged then; `locked` counts those that no key opened so far."""

    store: "TextStore"
    seal: Seal
    locked: int = 0

    def judged(self) -> Iterator[JudgedText]:
        """Open text after text; raise ConfigurationError where no key opens any, StoreFailed."""
        opened = self.locked = 0
        for sealed in self.store.read():
            text = KeptText.opened(sealed.id, sealed.sealed, self.seal)
            if text is None:
                self.locked += 1
                continue
            opened += 1
            yield _judged(text)
        if self.locked and not opened:
            raise ConfigurationError(
                f"{self.store.name}: none of its {self.locked:,} texts is opened by this key. Give "
                "the key that the gateway has, and old ones after it."
            )


def _judged(text: KeptText) -> JudgedText:
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
        about=about,
        kept=Chosen(text.why, text.chance),
    )
