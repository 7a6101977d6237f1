"""The words and sentences of a text as spans, and what is left without some of them; pure.

A span is a range [start, end) of characters of the text.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from shieldgate.passages import SENTENCE_END

Span = tuple[int, int]

# Scripts that are written without blanks: Thai to Myanmar, Khmer, Japanese, Chinese.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# What has no blanks for longer is no word, and is taken in pieces.
_RUN = re.compile(rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]{{1,24}}")
_MARKS = "\"'.,;:!?()[]{}<>«»“”„‘’…、。，！？；：「」"  # noqa: RUF001 - Chinese signs


def words(text: str) -> list[Span]:
    """Find the words, without the marks around them; a smiley is a word, too."""
    found = []
    for run in _RUN.finditer(text):
        bare = run.group().strip(_MARKS)
        if bare:
            start = run.start() + run.group().index(bare)
            found.append((start, start + len(bare)))
    return found


def sentences(text: str) -> list[Span]:
    """Find the sentences that have a word in them, without the blanks around them."""
    ends = [0, *(end.end() for end in SENTENCE_END.finditer(text)), len(text)]
    found = []
    for start, end in pairwise(ends):
        bare = text[start:end].strip()
        if words(bare):
            first = text.index(bare, start)
            found.append((first, first + len(bare)))
    return found


def joined(spans: Sequence[Span], most: int) -> list[Span]:
    """Join neighbours to at most `most` spans, of as many each as can be."""
    size = max(1, -(-len(spans) // most))
    groups = (spans[i : i + size] for i in range(0, len(spans), size))
    return [(group[0][0], group[-1][1]) for group in groups]


def without(text: str, spans: Iterable[Span]) -> str:
    """Leave spans out, and one of the two blanks that would meet."""
    left, at = "", 0
    for start, end in (*sorted(spans), (len(text), len(text))):
        piece = text[at:start]
        if at and piece[:1].isspace() and (not left or left[-1].isspace()):
            piece = piece[1:]
        left, at = left + piece, end
    return left


def only(text: str, spans: Iterable[Span]) -> str:
    """Keep nothing but spans, with a blank where something stood between two."""
    return "".join(_kept(text, sorted(spans)))


def _kept(text: str, spans: Sequence[Span]) -> Iterator[str]:
    for before, (start, end) in zip([None, *spans], spans, strict=False):
        if before is not None and before[1] < start:
            yield " "
        yield text[start:end]
