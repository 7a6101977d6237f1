"""Questions to a person one after another, and the rows that the answers make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from shieldgate.review.candidates import Candidate, Key
from shieldgate.review.labelled_file import LabelledFile
from shieldgate.review.rows import Row, labelled_row, writable_texts
from shieldgate.types import Exchange, Label


@dataclass(frozen=True, slots=True)
class Item:
    """A text, all candidates that have it, and the policies to ask about."""

    exchange: Exchange
    candidates: tuple[Candidate, ...]
    asked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a text violates a policy; `item` and `place` count from 0."""

    item: int
    place: int
    text: Item

    @property
    def policy(self) -> str:
        """Give the policy's id."""
        return self.text.asked[self.place]


class Session:
    """Asks about each text once, policy by policy; what is answered is in the file at once.

    Where several candidates have the same text, each gets a row, so that none loses its weight.
    """

    def __init__(self, candidates: Sequence[Candidate], file: LabelledFile) -> None:
        """Take candidates whose texts were looked up.

        Those whose text the file has under another id get its labels, which `begin` writes.
        """
        self._file = file
        self._known = {c.text.key: _labels(file.row(c.text.key)) for c in candidates}
        self._taken_over = self._take_over(candidates)
        self._items = _items(candidates, self._known)
        self._questions = [
            Question(number, place, item)
            for number, item in enumerate(self._items)
            for place in range(len(item.asked))
        ]
        self._at = 0
        self._answers: list[Label | None] = [None] * len(self._questions)
        self._before: list[int] = []  # where the question was, for each step that can be undone

    def begin(self) -> None:
        """Write the rows of texts that were labelled before. Raises ConfigurationError."""
        if self._taken_over:
            self._file.put(self._taken_over)

    def _take_over(self, candidates: Sequence[Candidate]) -> list[Row]:
        """Give candidates the labels of texts that were labelled before, and their rows."""
        labelled: dict[tuple[str, str | None], dict[str, Label]] = {}
        for row in self._file.rows:
            labelled.setdefault((row["prompt"], row.get("response")), {}).update(row["labels"])
        rows = []
        for candidate in candidates:
            known = labelled.get(writable_texts(candidate), {})
            if missing := {p: known[p] for p in candidate.asked if p in known}:
                self._known[candidate.text.key] |= missing
                rows.append(self._row(candidate, {}))
        return rows

    @property
    def taken_over(self) -> int:
        """Count the candidates that got labels of texts that were labelled before."""
        return len(self._taken_over)

    @property
    def texts(self) -> int:
        """Count the texts that are asked about."""
        return len(self._items)

    @property
    def questions(self) -> int:
        """Count the questions."""
        return len(self._questions)

    @property
    def labelled(self) -> int:
        """Count the texts that were labelled in this session."""
        answered = zip(self._questions, self._answers, strict=True)
        return len({question.item for question, answer in answered if answer is not None})

    @property
    def question(self) -> Question | None:
        """Give what is to be answered now; None at the end."""
        return self._questions[self._at] if self._at < len(self._questions) else None

    @property
    def labels(self) -> int:
        """Count the labels of this session, of texts and policies."""
        return sum(answer is not None for answer in self._answers)

    def answer(self, label: Label | None) -> None:
        """Answer the question; None leaves it open. Raises ConfigurationError."""
        self._step(1, label)

    def answer_rest(self, label: Label) -> None:
        """Answer it and what else is asked of its text. Raises ConfigurationError."""
        if question := self.question:
            self._step(len(question.text.asked) - question.place, label)

    def undo(self) -> None:
        """Take the last step back. Raises ConfigurationError."""
        if self._before:
            before = self._before.pop()
            item, after = self._questions[before].item, self._at
            self._answers[before:after] = [None] * (after - before)
            self._write(item)
            self._at = before

    def _step(self, questions: int, label: Label | None) -> None:
        if question := self.question:
            end = self._at + questions
            self._answers[self._at : end] = [label] * questions
            self._write(question.item)
            self._before.append(self._at)
            self._at = end

    def _write(self, number: int) -> None:
        """Write the rows of a text, with all labels that are known of it."""
        answers = {
            question.policy: answer
            for question, answer in zip(self._questions, self._answers, strict=True)
            if question.item == number and answer is not None
        }
        candidates = self._items[number].candidates
        self._file.put([self._row(c, answers) for c in candidates])

    def _row(self, candidate: Candidate, answers: Mapping[str, Label]) -> Row:
        """Write a candidate's row with what is known of it."""
        found = self._known[candidate.text.key] | {
            policy: label for policy, label in answers.items() if policy in candidate.asked
        }
        return labelled_row(candidate, found, datetime.now(UTC).isoformat(timespec="seconds"))


def _items(candidates: Sequence[Candidate], known: Mapping[Key, Mapping[str, Label]]) -> list[Item]:
    """Put candidates of the same text together, and leave out where nothing is to be asked."""
    together: dict[Exchange, list[Candidate]] = {}
    asked: dict[Exchange, dict[str, None]] = {}
    for candidate in candidates:
        exchange = candidate.exchange
        together.setdefault(exchange, []).append(candidate)
        asked.setdefault(exchange, {}).update(
            (policy, None) for policy in candidate.asked if policy not in known[candidate.text.key]
        )
    return [
        Item(exchange, tuple(same), tuple(asked[exchange]))
        for exchange, same in together.items()
        if asked[exchange]
    ]


def _labels(row: Row | None) -> dict[str, Label]:
    return dict(row["labels"]) if row else {}
