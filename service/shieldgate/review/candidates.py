"""What a person is to be asked about: chosen of all that was judged, in an order drawn by lot."""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shieldgate.errors import ConfigurationError
from shieldgate.review.choice import Choice, Chosen, drawn
from shieldgate.types import Exchange, Judgement, Label


class Key(NamedTuple):
    """What a text is known by from one session to the next; `row` is its place in a dataset."""

    source: str
    id: str
    row: int | None = None


@dataclass(frozen=True, slots=True)
class JudgedText:
    """A text that was judged; the text itself may be looked up only once it is chosen.

    `labels` are those that it has already, by policy id, and `others` what another scorer found.
    `about` is what else its row is to say, and `kept` how it was chosen to be in its source.
    """

    key: Key
    judgements: Sequence[Judgement]
    exchange: Exchange | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    others: Mapping[str, bool] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    kept: Chosen | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text to be looked at, and the policies to ask about."""

    text: JudgedText
    chosen: Chosen
    asked: tuple[str, ...]

    @property
    def exchange(self) -> Exchange:
        """Give the text; raise RuntimeError where it was not looked up."""
        if self.text.exchange is None:
            raise RuntimeError("The text was not looked up.")
        return self.text.exchange


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for.

    At most `limit` texts are candidates, the first of the order. `policies` are those to ask about;
    labels that came with the data count as labels unless `again`.
    """

    choice: Choice
    policies: Sequence[str]
    limit: int
    again: bool = False

    def among(
        self, texts: Iterable[JudgedText], labelled: Callable[[Key], Mapping[str, Any] | None]
    ) -> "Found":
        """Choose; `labelled` gives the row that a text got in earlier sessions.

        The order is drawn, so that whatever is left when the person stops is left at random.
        Raises ConfigurationError where a text was chosen by other rules then: weights of both
        would not go together.
        """
        seen, chosen, labelled_before = 0, Counter[str](), 0

        def candidates() -> Iterator[tuple[float, Key, Candidate]]:
            nonlocal seen, labelled_before
            for text in texts:
                seen += 1
                judgements = [j for j in text.judgements if j.policy in self.policies]
                found = self.choose(text, judgements) if judgements else None
                row = labelled(text.key)
                if row and (found is None or not math.isclose(row["weight"], found.weight)):
                    raise ConfigurationError(
                        f"{text.key.id} was labelled before, and chosen by other rules, so that "
                        "its weight doesn't suit the others. Give the same policies, thresholds, "
                        "--near, --share and --seed as then, or choose another --out."
                    )
                if found is None:
                    continue
                chosen.update(("all", *found.why))
                known = row["labels"] if row else {}
                asked = tuple(
                    j.policy
                    for j in judgements
                    if j.policy not in known and (self.again or j.policy not in text.labels)
                )
                if asked:
                    order = drawn(self.choice.seed, "order", repr(text.key))
                    yield order, text.key, Candidate(text, found, asked)
                else:
                    labelled_before += 1

        first = heapq.nsmallest(self.limit, candidates(), key=lambda entry: entry[:2])
        return Found([c for _, _, c in first], seen, chosen, labelled_before)

    def choose(self, text: JudgedText, judgements: Sequence[Judgement]) -> Chosen | None:
        """Choose by some judgements of a text, or don't; what its source chose counts, too."""
        found = self.choice.choose(repr(text.key), judgements, text.others)
        if found is None or text.kept is None:
            return found
        # Random is only what was drawn at random both times.
        both = set(found.why) & set(text.kept.why) & {"random"}
        why = {w for w in (*found.why, *text.kept.why) if w != "random"} | both
        return Chosen(tuple(sorted(why)), found.chance * text.kept.chance)


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates in the order in which they are asked about; of how many texts, and why chosen."""

    candidates: Sequence[Candidate]
    seen: int
    chosen: Counter[str]
    labelled: int
