"""The fields of which dialects write down their objects.

A tree of them is the one place that says what becomes of each: a text, JSON in a string, a name, a
setting of the machine, or what can't be screened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shieldgate.dialects.looks import (
    decoded_base64,
    is_model_name,
    is_unreadable,
    looks_like_media,
    looks_sealed,
    machine_made,
    only_numbers,
    without_frame,
)
from shieldgate.dialects.text import (
    MOST_LEVELS,
    Field,
    Found,
    Walk,
    anything,
    index_of,
    refuse_numbers,
)
from shieldgate.strands import spaced


@dataclass(frozen=True, slots=True)
class Passed:
    """What no model reads as text."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Read nothing."""


@dataclass(frozen=True, slots=True)
class Unscreenable:
    """An image, a sound, a file, tokens, a program."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Refuse whatever is there."""
        if value not in ([], {}, ""):
            found.refuse(at)


@dataclass(frozen=True, slots=True)
class Anything:
    """What the dialect says nothing of; numbers and flags pass by themselves."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Take every string and every name."""
        anything(value, found, at)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Settings of the machine: numbers and flags, lists of such, and such by number."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Pass them, and read anything else as what nobody knows."""
        if not only_numbers(value):
            anything(value, found, at)


@dataclass(frozen=True, slots=True)
class Text:
    """A text of one of the voices."""

    voice: str

    def read(self, value: Any, found: Found, at: str) -> None:
        """Take a string; anything else is nothing that the dialect knows."""
        if isinstance(value, str) and not looks_like_media(value):
            found.text(self.voice, at, value)
        else:
            anything(value, found, at)


@dataclass(frozen=True, slots=True)
class Json:
    """JSON of the model's or the caller's making, mostly in a string: its names are no fields."""

    voice: str

    def read(self, value: Any, found: Found, at: str) -> None:
        """Take the string, or every string and every name in the value."""
        self._read(value, found, at, 0)

    def _read(self, value: Any, found: Found, at: str, level: int) -> None:
        if level > MOST_LEVELS:
            found.refuse("")
        elif isinstance(value, str):
            found.text(self.voice, at, value)
        elif isinstance(value, dict):
            for key, item in value.items():
                found.text(self.voice, f"{at}.{key}:", key)
                self._read(item, found, f"{at}.{key}", level + 1)
        elif isinstance(value, list):
            for place, item in enumerate(value):
                self._read(item, found, f"{at}[{place}]", level + 1)


@dataclass(frozen=True, slots=True)
class Known:
    """A word of the protocol; any other is somebody's."""

    values: frozenset[str]

    def read(self, value: Any, found: Found, at: str) -> None:
        """Pass what is known."""
        if not isinstance(value, str):
            anything(value, found, at)
        elif value not in self.values:
            found.name(at, value)


def known(*words: str) -> Known:
    """Name the words of the protocol that may stand somewhere."""
    return Known(frozenset(words))


@dataclass(frozen=True, slots=True)
class Id:
    """What a machine has made up to tell things apart; so `short` ones are no words."""

    known: frozenset[str] = frozenset()
    short: int = 0

    def read(self, value: Any, found: Found, at: str) -> None:
        """Pass what nobody could read."""
        if not isinstance(value, str):
            anything(value, found, at)
        elif not (len(value) <= self.short or value in self.known or machine_made(value)):
            found.name(at, without_frame(value))


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a server has signed or encrypted, for itself to read; all else is a text."""

    voice: str

    def read(self, value: Any, found: Found, at: str) -> None:
        """Pass what is base64, nowhere words, and no base64 of a text."""
        if not isinstance(value, str):
            anything(value, found, at)
        elif not looks_sealed(value):
            found.text(self.voice, at, value)
        elif plain := decoded_base64(value):
            found.text(self.voice, at, plain)


@dataclass(frozen=True, slots=True)
class ModelName:
    """The name of a model: a word with digits, or with few words in it."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Pass what could be such a name."""
        if not isinstance(value, str):
            anything(value, found, at)
        elif not is_model_name(value):
            found.name(at, value)


@dataclass(frozen=True, slots=True)
class Measures:
    """Numbers under names that are made of known words."""

    words: frozenset[str]
    values: frozenset[str] = frozenset()

    def read(self, value: Any, found: Found, at: str) -> None:
        """Pass numbers, and take every other name and word."""
        if isinstance(value, dict):
            for key, item in value.items():
                if not self.words.issuperset(spaced([key]).lower().split()):
                    found.name(f"{at}.{key}:", key)
                self.read(item, found, at)
        elif isinstance(value, list):
            refuse_numbers(value, found, at)
            for item in value:
                self.read(item, found, at)
        elif isinstance(value, str) and value not in self.values:
            found.name(at, value)


@dataclass(frozen=True, slots=True)
class Object:
    """An object of the dialect, or a list of such; `bare` is what else may stand there.

    A name that differs from a known one in case only is refused: some servers take it for that.
    """

    fields: Mapping[str, Field]
    bare: Field = Anything()
    folded: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Fold the names once."""
        object.__setattr__(self, "folded", frozenset(key.casefold() for key in self.fields))

    def read(self, value: Any, found: Found, at: str) -> None:
        """Read each field as what it is; an item of a list bears the `index` it brings along."""
        if type(value) is dict:
            for key, item in value.items():
                known = self.fields.get(key)
                where = f"{at}.{key}" if at else key
                if known is None:
                    if key.casefold() in self.folded:
                        found.refuse(where)
                    Walk(found, at).read_field(key, item, where, 0)
                elif item is not None:
                    known.read(item, found, where)
        elif type(value) is list:
            for place, item in enumerate(value):
                where = f"{at}[{index_of(item, place)}]"
                (self if type(item) is dict else self.bare).read(item, found, where)
            refuse_numbers(value, found, at)
        else:
            self.bare.read(value, found, at)


@dataclass(frozen=True, slots=True)
class Typed:
    """An object that is read by its type; one of no known type can't be screened."""

    kinds: Mapping[str, Field]

    def read(self, value: Any, found: Found, at: str) -> None:
        """Read an object as its type says."""
        kind = value.get("type") if isinstance(value, dict) else None
        known = self.kinds.get(kind) if isinstance(kind, str) else None
        if known is None:
            found.refuse(at)
        else:
            known.read(value, found, at)


@dataclass(frozen=True, slots=True)
class Parts:
    """A string, or a list of strings and of objects that are read by their types."""

    kinds: Mapping[str, Field]
    bare: Field

    def read(self, value: Any, found: Found, at: str) -> None:
        """Take the texts of all parts; anything else can't be screened."""
        if isinstance(value, str):
            self.bare.read(value, found, at)
        elif isinstance(value, list):
            for place, part in enumerate(value):
                where = f"{at}[{place}]"
                (self.bare if isinstance(part, str) else Typed(self.kinds)).read(part, found, where)
        else:
            found.refuse(at)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens with their alternatives: what follows one another in the outermost lists is a text."""

    voice: str
    fields: frozenset[str]
    numbers: frozenset[str]

    def read(self, value: Any, found: Found, at: str) -> None:
        """Join the tokens, and the alternatives rank by rank."""
        walk = _TokenWalk(self, found, at)
        walk.read(value, at, 0, 0)
        for where, texts in walk.tokens.items():
            found.text(self.voice, where, "".join(texts))


class _TokenWalk:
    def __init__(self, known: Tokens, found: Found, owner: str) -> None:
        self._known = known
        self._found = found
        self._owner = owner
        self.tokens: dict[str, list[str]] = {}

    def read(self, value: Any, at: str, level: int, lists: int) -> None:
        if level > MOST_LEVELS:
            self._found.refuse("")
        elif isinstance(value, str):
            if looks_like_media(value):
                self._found.refuse(self._owner)
            self._take(at, value)
        elif isinstance(value, list):
            refuse_numbers(value, self._found, self._owner)
            for place, item in enumerate(value):
                self.read(item, f"{at}[{place}]" if lists else at, level + 1, lists + 1)
        elif isinstance(value, dict):
            for place, (key, item) in enumerate(value.items()):
                known = key in self._known.fields
                # The alternatives of plain completions are keys.
                if not known:
                    self._take(f"{at}.{place}:", key)
                if key == "bytes" and item is not None:
                    self._bytes(value.get("token"), item, f"{at}.bytes")
                elif not known and is_unreadable(key) and isinstance(item, (str, dict, list)):
                    self._found.refuse(self._owner)
                elif key not in self._known.numbers or not only_numbers(item):
                    self.read(item, f"{at}.{key if known else place}", level + 1, lists)

    def _bytes(self, token: Any, given: Any, at: str) -> None:
        """Take the bytes of a token, unless they say what the token says."""
        try:
            text = bytes(given).decode(errors="ignore")
        except (TypeError, ValueError):
            self._found.refuse(self._owner)
        else:
            self._take(at, "" if text == token else text)

    def _take(self, at: str, text: str) -> None:
        self.tokens.setdefault(at, []).append(text)
