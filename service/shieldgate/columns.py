"""What a text says down its rows: in tables, records, comments, lists and markup; pure.

A sentence that is dealt out to rows, a few words to each, is lost on a scorer among what stands
around them. What stands in places that look alike is therefore one text.
"""

import re
from collections import defaultdict
from functools import partial

from shieldgate.english import is_sentence, rejoined

# Words in a row, as sentences have them; all else is signs.
_WORDS = re.compile(
    r"[^\W\d_]++(?:(?:['’.,;!?-]*+[ ]++|['’.-])[^\W\d_]++)*+(?:[.,!?]++(?!\w))?"  # noqa: RUF001 - as typed
)
# More words than that say something by themselves, fewer pieces nothing.
_MOST_WORDS, _FEWEST_PIECES = 4, 3
_DIGITS = re.compile("[0-9]+")
_OPENING = re.compile(r"[\[({+=,]")
_WHOLE = partial(rejoined, between=" ")


def columns(text: str) -> list[str]:
    """List what stands in places of a text that look alike, where it could be a sentence.

    Where words are cut between places, it is listed as it stands and with the words whole.

    Places look alike by the sign before them, by that and the words before it, as in fields of
    records, or by all that stands between these words and those before, as in columns of tables.
    """
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    before, end = "", 0
    for run in _WORDS.finditer(text):
        words, signs = run.group(), text[end : run.start()]
        end = run.end()
        if len(words.split(None, _MOST_WORDS)) <= _MOST_WORDS and (sign := _last(signs)):
            for place in ((sign,), (sign, before), ("", "", _DIGITS.sub("0", signs))):
                places[place].append(words)
        before = words
    rows = [_said(pieces) for pieces in places.values() if len(pieces) >= _FEWEST_PIECES]
    # Both, because the words that pieces make may hide those that they are.
    said = (join(pieces) for pieces in rows for join in (" ".join, _WHOLE))
    return list(dict.fromkeys(filter(is_sentence, said)))


def _last(signs: str) -> str:
    """Give the last of the signs, a quote with the one before it; numbers in a line are none.

    A tab is one between words, and none that indents a line.
    """
    *others, last = signs.split() or ["\t" if "\t" in signs and "\n" not in signs else ""]
    if last.isdecimal() and "\n" not in signs:
        return ""
    if others and last in ('"', "'", "`"):
        last = others[-1] + last
    # What goes on looks like what begins.
    return _OPENING.sub(",", _DIGITS.sub("0", last)[-3:])


def _said(pieces: list[str]) -> list[str]:
    """Leave out a word that all pieces begin with."""
    if len({piece.partition(" ")[0] for piece in pieces}) == 1:
        pieces = [piece.partition(" ")[2] for piece in pieces]
    return [piece for piece in pieces if piece]
