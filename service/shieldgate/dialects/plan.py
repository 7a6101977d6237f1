"""What is judged of one request; pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from shieldgate.dialects.looks import many_words
from shieldgate.english import rejoined
from shieldgate.strands import Strands, in_pieces, whole_and_parts
from shieldgate.types import Exchange


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to judge, and the field of the request that it stands in."""

    field: str
    exchange: Exchange

    @classmethod
    def of(cls, field: str, strands: Strands) -> "Subject":
        """Judge strands as a prompt."""
        whole, parts = whole_and_parts(strands)
        return cls(field, Exchange(whole, parts=parts))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is judged of one request before its answers leave, and beside them.

    `prompts` are all judged, and one violation blocks the request; no two are the same.
    `unscreenable` lists the fields that hold what no scorer here can read, and `unseen` those that
    refer to what the model will read and nobody here has. `contexts` has the
    prompts that the choices answer, `choices_each` choices to each of them. `prefill` is the
    beginning of an answer that the model may be asked to go on with: judged with what it adds.
    """

    prompts: tuple[Subject, ...]
    unscreenable: tuple[str, ...]
    contexts: tuple[str, ...]
    choices_each: int = 1
    prefill: str = ""
    unseen: tuple[str, ...] = ()

    @property
    def choices(self) -> int:
        """Count the choices that are asked for."""
        return self.choices_each * len(self.contexts)

    def context(self, choice: int) -> str:
        """Give the prompt with which the choice of this index is judged."""
        return self.contexts[min(choice // self.choices_each, len(self.contexts) - 1)]

    def joined(self, other: "Plan") -> "Plan":
        """Judge what another plan for the same request judges, too."""
        return replace(self, prompts=distinct((*self.prompts, *other.prompts)))


def dealt_out(field: str, texts: Iterable[str]) -> list[Subject]:
    """Judge texts of up to four words each as one, where all could say something.

    As they stand, and with the words whole that are cut between them.
    """
    texts = list(texts)
    joins = in_pieces(texts), in_pieces(texts, partial(rejoined, between=" "))
    return [Subject(field, Exchange(said)) for said in dict.fromkeys(joins) if many_words([said])]


def distinct(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """Leave out what is blank, and what an earlier subject judges already."""
    first: dict[Exchange, Subject] = {}
    for subject in subjects:
        exchange = subject.exchange
        if exchange.judged.strip():
            first.setdefault(exchange, subject)
    return tuple(first.values())
