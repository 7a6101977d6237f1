"""What is asked of the scorer for a question, and how its judgement answers it.

A scorer is asked whether a text violates a principle. A policy of the book is one; a question in
other words is made one that is violated where the answer is yes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shieldgate.policy import Policy, PolicyBook, Profile
from shieldgate.types import DIRECTIONS, Direction

MOST_QUESTIONS = 400
MOST_CHARACTERS = 2_000
"""The longest instructions of one question; a guideline of the shipped policies has 500."""

Kind = Literal["predicate", "choice", "score"]
Value = str | bool

# As the published guidelines are worded: '"No Spam": The prompt shall not advertise.'
_GUIDELINE = re.compile(r'\s*"No [^"]+": .*\bshall not\b', re.DOTALL)
_YES, _NO = ("yes", "true"), ("no", "false")


class Unanswerable(Exception):
    """A question that can't be asked; `at` is the field that it stands in."""

    def __init__(self, at: str, why: str) -> None:
        """Take a sentence for the caller."""
        super().__init__(f"{at}: {why}")
        self.at = at


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `at` is the field that it stands in, `options` are those of a choice."""

    at: str
    kind: Kind
    name: str | None
    instructions: str
    options: tuple[Value, ...] = ()

    @property
    def answerable(self) -> bool:
        """Tell whether it is yes or no.

        No scorer here compares options: each would be judged by itself, and what is then made of
        several numbers to give 1 is no probability (docs/decisions.md has the figures).
        """
        words = [str(option).strip().lower() for option in self.options]
        yes_or_no = sorted(words) in [sorted(pair) for pair in zip(_YES, _NO, strict=True)]
        return self.kind == "predicate" or (self.kind == "choice" and yes_or_no)

    def shares(self, probability: float) -> list[float]:
        """Share the whole out to the options of a choice that is yes or no."""
        yes = [str(option).strip().lower() in _YES for option in self.options]
        return [probability if each else 1 - probability for each in yes]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be judged: for each question a policy's id, None where it can't be answered.

    `own` are policies that only this request has, of so many `characters` of its caller.
    """

    ids: tuple[str | None, ...]
    own: tuple[Policy, ...]
    characters: int

    @property
    def known(self) -> list[str]:
        """List the policies of the book."""
        own = {policy.id for policy in self.own}
        return [id for id in dict.fromkeys(self.ids) if id is not None and id not in own]


def ask(questions: Iterable[Question], book: PolicyBook, profile: Profile) -> Asked:
    """Find or make the policy of each question; raise Unanswerable.

    A question that is named like a policy is that policy, whatever its instructions say. A name
    without family is looked for among the profile's policies first.
    """
    ids: list[str | None] = []
    own: dict[str, Policy] = {}
    for place, question in enumerate(questions):
        if not question.answerable:
            ids.append(None)
            continue
        id = _named(question, book, profile)
        if id is None:
            # Who asks the same twice is answered twice, and judged once.
            words = _words(question, book)
            id = own.setdefault(words, _policy(f"questions[{place}]", words)).id
        ids.append(id)
    return Asked(tuple(ids), tuple(own.values()), sum(map(len, own)))


def _named(question: Question, book: PolicyBook, profile: Profile) -> str | None:
    name = question.name
    if name is None or name in book.policies:
        return name
    for ids in (profile.policies, book.policies):
        found = [id for id in ids if id.partition("/")[2] == name]
        if len(found) > 1:
            raise Unanswerable(
                question.at,
                f"Several policies have this name: {', '.join(found)}. Name one by its whole id, "
                "or the question otherwise.",
            )
        if found:
            return found[0]
    return None


def _words(question: Question, book: PolicyBook) -> str:
    words = question.instructions.strip()
    if not words:
        known = ", ".join(sorted(book.policies))
        why = f"A question has instructions, or the name of a policy: {known}."
        raise Unanswerable(question.at, why)
    if len(words) > MOST_CHARACTERS:
        raise Unanswerable(question.at, f"Instructions have at most {MOST_CHARACTERS} characters.")
    return words


def _policy(id: str, words: str) -> Policy:
    return Policy(
        id=id,
        title=id,
        guidelines={direction: _guideline(words, direction) for direction in DIRECTIONS},
        thresholds=dict.fromkeys(DIRECTIONS, 0.5),
    )


def _guideline(words: str, direction: Direction) -> str:
    """Word what is violated where the answer is yes; docs/decisions.md has what was measured."""
    if _GUIDELINE.match(words):
        return words
    who = "prompt" if direction == "prompt" else "chatbot's response"
    return f'"No Match": The {who} shall not be one of which this is true: {words}'
