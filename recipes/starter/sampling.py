"""Choose what the next step of training sees; every choice follows from the seed and the step."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from recipes.starter.rows import Row
from recipes.starter.wording import ANY
from shieldgate.types import Exchange

# Word lists and thresholds on another model's scores are wrong more often than people are.
_TRUST = {"lexicon": 0.5, "derived": 0.8, "perspective": 0.8, "model": 0.8}
# How far a soft label is trusted where nothing is known.
_SOFT = 0.5
_WORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of one harm: how probably it is there, and how far to trust that, 0 to 1."""

    harm: str
    violated: float
    trust: float


@dataclass(frozen=True, slots=True)
class Mention:
    """Some words, and whether the text that is judged contains one of them."""

    words: tuple[str, ...]
    present: bool


@dataclass(frozen=True, slots=True)
class Example:
    """An exchange with the labels to train on; what is not listed is unknown, teaches nothing.

    `place` is the number of the row in its pool.
    """

    exchange: Exchange
    labels: tuple[Label, ...]
    mention: Mention | None = None
    place: int = 0


@dataclass(frozen=True, slots=True)
class Mix:
    """How examples are drawn.

    `harms` weighs the harms, `violated` is the share of draws whose answer is yes.
    Sources count by the square root of their size,
    so none drowns the others; `sources` weighs some of them anew. Texts are cut after `longest`
    characters. `tempered` is how much a soft label counts beside a label. The other fields are the
    shares of examples that are changed, or asked whether words occur.
    """

    harms: Mapping[str, float]
    violated: float = 0.4
    longest: int = 700
    as_response: float = 0.15
    embedded: float = 0.1
    recased: float = 0.2
    thinned: float = 0.3
    misspelt: float = 0.15
    mentions: float = 0.2
    tempered: float = 0.5
    sources: Mapping[str, float] = field(default_factory=dict)


class Pool:
    """Labelled rows, ready to be drawn from."""

    def __init__(
        self,
        rows: Sequence[Row],
        mix: Mix,
        soft_labels: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Sort the rows by what is known of them.

        `soft_labels` holds a teacher's probability of each harm, for each row: it stands in for
        labels that are not known, and tempers those that are.
        """
        self._rows = rows
        self._mix = mix
        self._soft_labels = soft_labels or {}
        known = [self._known(row) for row in rows]
        self._labels = [self._weighed(place, known[place]) for place in range(len(rows))]
        self._harmless = [
            row
            for row, labels in zip(rows, known, strict=True)
            if labels.keys() >= mix.harms.keys() and not any(labels.values())
        ]
        cells: dict[tuple[str, bool], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, row in enumerate(rows):
            for harm, violated in known[place].items():
                cells[harm, violated][row.source].append(place)
        self._cells = {
            cell: (
                list(by_source.values()),
                [len(r) ** 0.5 * mix.sources.get(s, 1.0) for s, r in by_source.items()],
            )
            for cell, by_source in cells.items()
        }
        self._harms = [h for h in mix.harms if (h, True) in cells or (h, False) in cells]

    def sweep(self, seed: int, step: int, size: int) -> list[Example]:
        """Take the next `size` rows of a walk over all rows, in a new order for each round."""
        rng = Random(f"{seed}/sweep/{step}")
        places = (divmod(at, len(self._rows)) for at in range(step * size, (step + 1) * size))
        found = [self._order(seed, turn)[place] for turn, place in places]
        return [self._example(place, list(self._labels[place]), rng) for place in found]

    def draw(self, seed: int, step: int, size: int) -> list[Example]:
        """Draw examples, balanced over harms, answers and sources; the harm drawn comes first."""
        rng = Random(f"{seed}/draw/{step}")
        return [self._drawn(rng) for _ in range(size)]

    @cache  # noqa: B019 - a pool lives as long as the run
    def _order(self, seed: int, turn: int) -> list[int]:
        order = list(range(len(self._rows)))
        Random(f"{seed}/order/{turn}").shuffle(order)
        return order

    def _known(self, row: Row) -> dict[str, bool]:
        labels = {**row.labels, ANY: row.harmful}
        return {harm: bool(labels[harm]) for harm in self._mix.harms if harm in labels}

    def _weighed(self, place: int, known: Mapping[str, bool]) -> dict[str, Label]:
        sources = self._rows[place].label_src
        found = {}
        for harm in self._mix.harms:
            soft = self._soft_labels[harm][place] if harm in self._soft_labels else None
            if harm in known:
                violated = float(known[harm])
                if soft is not None:
                    violated += self._mix.tempered * (soft - violated)
                found[harm] = Label(harm, violated, _TRUST.get(sources.get(harm, ""), 1.0))
            elif soft is not None:
                found[harm] = Label(harm, soft, _SOFT)
        return found

    def _drawn(self, rng: Random) -> Example:
        harm = rng.choices(self._harms, [self._mix.harms[h] for h in self._harms])[0]
        violated = rng.random() < self._mix.violated
        if (harm, violated) not in self._cells:
            violated = not violated
        sources, weights = self._cells[harm, violated]
        place = rng.choice(rng.choices(sources, weights)[0])
        # The next questions prefer the other answer, so that it depends on the guideline.
        labels = self._labels[place]
        others = [h for h in labels if h != harm]
        rng.shuffle(others)
        others.sort(key=lambda h: (labels[h].violated > 0.5) == violated)
        return self._example(place, [harm, *others], rng)

    def _example(self, place: int, harms: Sequence[str], rng: Random) -> Example:
        mix, row = self._mix, self._rows[place]
        labels = tuple(self._labels[place][harm] for harm in harms)
        text = self._noisy(row.text[: mix.longest], rng)
        if rng.random() < mix.embedded and self._harmless:
            text = self._among_others(text, rng)
        mention = self._mention(text, rng) if rng.random() < mix.mentions else None
        if row.response is not None:
            return Example(Exchange(row.prompt[: mix.longest], text), labels, mention, place)
        # A request for danger is no dangerous answer; the other harms lie in the words themselves.
        danger = any(x.harm == "dangerous" and x.violated > 0.5 for x in labels)
        if rng.random() < mix.as_response and not danger and labels:
            empty = rng.random() < 0.5 or not self._harmless
            prompt = "" if empty else rng.choice(self._harmless).prompt[: mix.longest]
            return Example(Exchange(prompt, text), labels, mention, place)
        return Example(Exchange(text), labels, mention, place)

    def _among_others(self, text: str, rng: Random) -> str:
        """Put harmless texts around one: they change no label, and make it as long as real ones."""
        parts = [text]
        room = self._mix.longest - len(text)
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            near = rng.choice(self._harmless).text[: max(0, room)]
            room -= len(near)
            parts.insert(rng.randrange(len(parts) + 1), near)
        return rng.choice(("\n\n", " ", "\n")).join(parts)

    def _mention(self, text: str, rng: Random) -> Mention | None:
        own, other = (_WORD.findall(t) for t in (text, rng.choice(self._rows).text))
        foreign = [word for word in other if word.lower() not in text.lower()]
        if not own or not foreign:
            return None
        words = [rng.choice(foreign) for _ in range(rng.randint(1, 3))]
        present = rng.random() < 0.5
        if present:
            words[rng.randrange(len(words))] = rng.choice(own)
        return Mention(tuple(word.lower() for word in words), present)

    def _noisy(self, text: str, rng: Random) -> str:
        mix = self._mix
        if rng.random() < mix.thinned:
            text = " ".join(w for w in text.split(" ") if rng.random() > 0.1) or text
        if rng.random() < mix.misspelt:
            text = " ".join(
                _misspelt(w, rng) if rng.random() < 0.15 else w for w in text.split(" ")
            )
        if rng.random() < mix.recased:
            text = rng.choice((str.lower, str.upper, str.capitalize))(text)
        return text


_LOOKALIKES = str.maketrans("aeiostAEIOST", "@310$7@310$7")


def _misspelt(word: str, rng: Random) -> str:
    """Spoil a word as people do who type fast, or want to pass a filter."""
    if len(word) < 4:
        return word
    at = rng.randrange(1, len(word) - 1)
    ways = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] * rng.randint(1, 3) + word[at:],
        word[:at] + "*" + word[at + 1 :],
        word[:at] + word[at:].translate(_LOOKALIKES),
        " ".join(word),
    )
    return rng.choice(ways)


def split_words(text: str, share: float, rng: Random) -> list[str]:
    """Cut a text at a share of the places within its words.

    Pieces are tokenised apart, so a word is seen in many spellings, as with BPE dropout
    (arXiv 1910.13267), yet repeatably.
    """
    cuts = [
        at
        for at in range(1, len(text))
        if text[at - 1].isalpha() and text[at].isalpha() and rng.random() < share
    ]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
