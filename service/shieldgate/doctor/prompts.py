"""What a prompt is cut into, and where in somebody's prompt the texts and the guideline stand."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from shieldgate.prompt import GEMMA_CONTROL_TOKENS
from shieldgate.types import Direction

FIELDS = ("{prompt}", "{response}", "{guideline}")

_WORD = re.compile(
    "|".join(map(re.escape, (*GEMMA_CONTROL_TOKENS, *FIELDS))) + r"|\r\n|[\r\n]|[^\S\r\n]+|\w+|."
)
_TURN = re.compile(r"<start_of_turn>(.*?)<end_of_turn>", re.DOTALL)
# What stands before the content of a turn: a role of Gemma's chats, and a heading.
_HEAD = re.compile(r"\s*(?:(?:user|model|system)\n)?\s*(?:[A-Z][\w ]{2,30}:[ \t]*)?")
_HEADINGS = {
    "{prompt}": re.compile(
        r"Human Question:\s*(.*?)\s*(?=<end_of_turn>|\n\s*Chatbot Response:|\n\s*Our safety|\Z)",
        re.DOTALL,
    ),
    "{response}": re.compile(
        r"(?:Chatbot|Assistant|Model|AI) (?:Response|Answer):\s*(.*?)\s*"
        r"(?=<end_of_turn>|\n\s*Our safety|\n\s*Does the|\Z)",
        re.DOTALL | re.IGNORECASE,
    ),
}
_NEXT = "===|Does |Do |Is |<start_of_turn>"
_GUIDELINE = re.compile(
    r"\b(?:safety|polic|principle)[^\n]*:[ \t]*\r?\n\s*(?:[*•-] )?"
    rf"(?P<text>(?!{_NEXT})\S.*?)\s*(?=\n\s*(?:{_NEXT})|\Z)",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of a prompt that is compared as one, and its offset in the text."""

    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as somebody asks it.

    `spans` are the offsets [start, end) of the texts and the guideline in `text`, by their fields.
    `adds_bos` tells whether the engine puts `<bos>` before it, or None where that isn't known.
    """

    direction: Direction
    text: str
    spans: Mapping[str, tuple[int, int]]
    adds_bos: bool | None = None

    def words(self) -> list[Word]:
        """Cut it into words, with one for each field."""
        found: list[Word] = []
        at = 0
        for field, (start, end) in sorted(self.spans.items(), key=lambda item: item[1]):
            found += (Word(w.text, at + w.at) for w in words(self.text[at:start]))
            found.append(Word(field, start))
            at = end
        return found + [Word(w.text, at + w.at) for w in words(self.text[at:])]

    def value(self, field: str) -> str | None:
        """Give what stands where a field is."""
        span = self.spans.get(field)
        return self.text[slice(*span)] if span else None


def joined(parts: Iterable[Word]) -> str:
    """Give the text of words."""
    return "".join(word.text for word in parts)


def words(text: str) -> Iterator[Word]:
    """Cut text into words, white space, lines, control tokens and fields."""
    return (Word(found[0], found.start()) for found in _WORD.finditer(text))


def find_fields(
    text: str, direction: Direction | None = None, adds_bos: bool | None = None
) -> Asked:
    """Find in a prompt where the texts and the guideline stand, written out or as `{field}`.

    Without a `direction` it judges an answer where there is one in it.
    """
    spans = {f: (at, at + len(f)) for f in FIELDS if (at := text.find(f)) >= 0}
    turns = [_content(turn) for turn in _TURN.finditer(text)]
    for place, field in enumerate(FIELDS[:2]):
        heading = _HEADINGS[field].search(text)
        if field in spans or (field == "{response}" and direction == "prompt"):
            continue
        if place < len(turns):
            spans[field] = turns[place]
        elif heading:
            spans[field] = heading.span(1)
    if "{guideline}" not in spans and (written := _guideline(text, spans.values())):
        spans["{guideline}"] = written
    found: Direction = "response" if "{response}" in spans else "prompt"
    return Asked(direction or found, text, spans, adds_bos)


def _content(turn: re.Match[str]) -> tuple[int, int]:
    start, end = turn.span(1)
    head = _HEAD.match(turn[1])
    start += head.end() if head else 0
    return start, max(start, start + len(turn.string[start:end].rstrip()))


def _guideline(text: str, taken: Collection[tuple[int, int]]) -> tuple[int, int] | None:
    for found in _GUIDELINE.finditer(text):
        start, end = found.span("text")
        if not any(a < end and start < b for a, b in taken):
            return start, end
    return None
