"""Finds the texts in JSON: every string counts, and so does every name that may be words.

What is known of a protocol only ever leaves something out: its own field names, and values that
look like names where the protocol has names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# A field and its text, or None in place of what can't be screened.
Found = Iterator[tuple[str, str | None]]

_WORD = re.compile(r"[A-Za-z0-9_.:/@+-]{0,64}")
MOST_LEVELS = 100


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The field names of a protocol; any other name may be somebody's words, and is a text.

    In the fields `naming` a value that looks like a name is none either. What stands below the
    fields `free` has names that are not the protocol's.
    """

    fields: frozenset[str]
    naming: frozenset[str]
    free: frozenset[str]


@dataclass(frozen=True, slots=True)
class Strand:
    """One text of a message and the field it stands in, such as `content[1].text`.

    The field tells texts apart. It is not for people: an unknown field's name may be any text.
    """

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a message says: its texts in order, and the fields that hold anything else.

    In `unscreenable`, an empty name stands for the message as a whole.
    """

    strands: tuple[Strand, ...]
    unscreenable: tuple[str, ...]

    @classmethod
    def of(cls, found: Iterable[tuple[str, str | None]]) -> "Contents":
        """Collect what a walk has found; empty texts are left out."""
        found = list(found)
        return cls(
            strands=tuple(Strand(field, text) for field, text in found if text),
            unscreenable=tuple(field for field, text in found if text is None),
        )

    @property
    def text(self) -> str:
        """Join the texts, one to a line."""
        return "\n".join(strand.text for strand in self.strands)


def material(value: Any) -> Contents:
    """Read what belongs to no protocol, such as documents: every string, and every name in it."""
    return Contents.of(walk(value))


def walk_object(
    value: Mapping[str, Any], field: str, level: int, known: Vocabulary | None
) -> Found:
    """Walk an object, whose fields are those of the `known` protocol as far as it has them."""
    for key, item in value.items():
        at = f"{field}.{key}" if field else key
        ours = known if known and key in known.fields else None
        if not ours:
            yield f"{at}:", key
        names = known and key in known.naming and isinstance(item, str) and _WORD.fullmatch(item)
        if not names:
            yield from walk(item, at, level + 1, None if ours and key in ours.free else ours)


def walk(value: Any, field: str = "", level: int = 0, known: Vocabulary | None = None) -> Found:
    """Walk any JSON value.

    An item of a list bears the `index` that it brings along, not its place in the list, so that
    the pieces of one text in a stream have one field.
    """
    if level > MOST_LEVELS:
        yield "", None
    elif isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        yield from walk_object(value, field, level, known)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if not isinstance(item, (str, dict, list)):
                continue
            index = item.get("index") if isinstance(item, dict) else None
            at = index if isinstance(index, int) else place
            yield from walk(item, f"{field}[{at}]", level + 1, known)


def words_only(value: Any) -> bool:
    """Tell whether all that stands in a value looks like names."""
    return all(text is not None and _WORD.fullmatch(text) for _, text in walk(value))


def textless(value: Any) -> bool:
    """Tell whether a value holds no text at all."""
    return not any(walk(value))
