"""Finds the texts in JSON, and what in it can't be screened.

What a dialect says of its fields stands in trees of `fields`. What no tree knows is taken for text,
names and all, unless it looks like an image, a sound, a file or tokens.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from shieldgate.dialects.looks import are_numbers, has_tokens, is_unreadable, looks_like_media
from shieldgate.strands import NAMES, SPELLED, whole_and_parts

MOST_LEVELS = 100

OTHER = "other"


@dataclass(frozen=True, slots=True)
class Contents:
    """What something says: the strands of its texts in order, and the fields that are no text.

    In `unscreenable`, an empty name stands for the whole.
    """

    strands: tuple[tuple[str, str], ...]
    unscreenable: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Tell whether there is nothing to judge, and nothing that can't be."""
        return not (self.strands or self.unscreenable)

    @property
    def texts(self) -> tuple[str, ...]:
        """List what is judged: all of it joined, and what counts alone."""
        whole, parts = whole_and_parts(self.strands)
        return whole, *parts


class Found:
    """Collects what a walk finds; `pieces` says that names may go on in the next chunk."""

    __slots__ = ("_pieces", "strands", "unscreenable")

    def __init__(self, *, pieces: bool = False) -> None:
        self.strands: list[tuple[str, str]] = []
        self.unscreenable: list[str] = []
        self._pieces = pieces

    def text(self, voice: str, at: str, text: str) -> None:
        """Take a text, by whose voice it is and where it stands."""
        if text:
            self.strands.append((f"{voice}/{at}", text))

    def name(self, at: str, name: str) -> None:
        """Take a name that may be somebody's words; chunks may spell it, or spell by such."""
        self.text(NAMES, at, name)
        if self._pieces and name:
            self.text(SPELLED, "", f"{name} ")

    def refuse(self, owner: str) -> None:
        """Name a field that can't be screened."""
        self.unscreenable.append(owner)

    def contents(self) -> Contents:
        """Give all that was found."""
        return Contents(tuple(self.strands), tuple(dict.fromkeys(self.unscreenable)))


class Field(Protocol):
    """What a field of a dialect is to the judge."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Read a value that isn't null and stands `at` a place."""
        ...


def anything(value: Any, found: Found, at: str) -> None:
    """Take every string and every name of a value; the field `at` is named in a refusal."""
    Walk(found, at).read(value, at, 0)


class Walk:
    """Reads what no tree knows."""

    def __init__(self, found: Found, owner: str) -> None:
        """Take where to put what is found, and the field that a refusal names."""
        self._found = found
        self._owner = owner

    def read(self, value: Any, at: str, level: int) -> None:
        """Take every string and every name of a value."""
        if level > MOST_LEVELS:
            self._found.refuse("")
        elif isinstance(value, str):
            if looks_like_media(value):
                self._found.refuse(self._owner)
            else:
                self._found.text(OTHER, at, value)
        elif isinstance(value, dict):
            kind = value.get("type")
            if isinstance(kind, str) and is_unreadable(kind):
                self._found.refuse(self._owner)
                return
            for key, item in value.items():
                self.read_field(key, item, f"{at}.{key}" if at else key, level)
        elif isinstance(value, list):
            refuse_numbers(value, self._found, self._owner)
            for place, item in enumerate(value):
                if isinstance(item, (str, dict, list)):
                    self.read(item, f"{at}[{index_of(item, place)}]", level + 1)

    def read_field(self, key: str, item: Any, at: str, level: int) -> None:
        """Take a name and what it holds."""
        if isinstance(item, list) and has_tokens(key):
            # A chunk may bring them one by one.
            refuse_numbers(item, self._found, self._owner, most=0)
        if is_unreadable(key) and isinstance(item, (str, dict, list)) and item:
            self._found.refuse(self._owner)
        else:
            self._found.text(OTHER, f"{at}:", key)
            self.read(item, at, level + 1)


def material(value: Any) -> Contents:
    """Read what belongs to no protocol: every string, and every name in it."""
    found = Found()
    anything(value, found, "")
    return found.contents()


def read(field: Field, value: Any, at: str = "", *, pieces: bool = False) -> Contents:
    """Read a value as what a dialect says it is."""
    found = Found(pieces=pieces)
    field.read(value, found, at)
    return found.contents()


def string_in(value: Any, field: str) -> str:
    """Give the string in a field of an object; an empty one where there is none."""
    found = value.get(field) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def index_of(item: Any, place: int) -> int:
    """Give the index that an item brings along, so that all pieces of one text have one name."""
    index = item.get("index") if isinstance(item, dict) else None
    return index if type(index) is int else place


def refuse_numbers(values: list[Any], found: Found, owner: str, most: int = 1) -> None:
    """Refuse the field that holds a list of numbers."""
    if are_numbers(values, most):
        found.refuse(owner)
