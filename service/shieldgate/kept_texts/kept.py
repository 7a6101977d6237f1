"""A decision with its texts, as it is kept, and what people said of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from shieldgate.kept_texts.rule import KeptFor
from shieldgate.kept_texts.seal import Seal
from shieldgate.types import Exchange, Judgement, Label, Score


@dataclass(frozen=True, slots=True)
class KeptText:
    """A decision, the texts that it is about, and how they came to be kept.

    `id` is that of the decision's record in the audit log. `chance` in 0..1 is the probability
    with which it was to be kept, and `why` says by which rules.
    """

    id: str
    caller: str
    at: float
    request_id: str
    prompt: str
    response: str | None
    action: str
    judgements: tuple[Judgement, ...]
    profile: str
    policy_book: str
    scorer: str
    why: tuple[KeptFor, ...]
    chance: float

    @property
    def exchange(self) -> Exchange:
        """Give what was judged."""
        return Exchange(self.prompt, self.response)

    def sealed(self, seal: Seal) -> bytes:
        """Write it so that it says nothing without a key."""
        # The standard library's writer takes halves of surrogate pairs, which callers send.
        return seal.seal(json.dumps(asdict(self)).encode())

    @classmethod
    def opened(cls, id: str, sealed: bytes, seal: Seal) -> Self | None:
        """Read what `sealed` wrote; None where no key opens it, or it is another decision's."""
        content = seal.open(sealed)
        if content is None:
            return None
        fields: dict[str, Any] = json.loads(content)
        if fields["id"] != id:
            return None
        judged = tuple(
            Judgement(**{**j, "score": Score(**j["score"])}) for j in fields["judgements"]
        )
        return cls(**{**fields, "judgements": judged, "why": tuple(fields["why"])})


@dataclass(frozen=True, slots=True)
class TextLabels:
    """What people said of a text, by policy id, and when they did last, in ISO 8601."""

    labels: Mapping[str, Label]
    reviewed: str

    @classmethod
    def none(cls) -> Self:
        """Give what is known of a text that nobody was asked about."""
        return cls({}, "")

    def sealed(self, digest: str, seal: Seal) -> bytes:
        """Write it so that it says nothing without a key, and nothing of another text."""
        content = {"digest": digest, "labels": dict(self.labels), "reviewed": self.reviewed}
        return seal.seal(json.dumps(content).encode())

    @classmethod
    def opened(cls, digest: str, sealed: bytes | None, seal: Seal) -> Self | None:
        """Read what `sealed` wrote; None where there is nothing, or nothing that a key opens."""
        content = seal.open(sealed) if sealed else None
        fields = json.loads(content) if content else {}
        return cls(fields["labels"], fields["reviewed"]) if fields.get("digest") == digest else None
