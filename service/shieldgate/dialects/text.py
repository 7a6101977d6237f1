"""Finds the texts in JSON by what a dialect says of each of its fields.

A dialect writes down its objects as trees of the fields below, and that is the one place that says
what becomes of each: a text, JSON in a string, a name, a setting of the machine, or what can't be
screened. What no tree knows is taken for text, names and all, unless it looks like an image, a
sound, a file or tokens.
"""

import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shieldgate.strands import NAMES, SPELLED, spaced, whole_and_parts

MOST_LEVELS = 100

OTHER = "other"

# So many words in names of fields or tools spell nothing.
_FEW_WORDS = 6

# Names whose values are no text, as words of the name or anywhere in it.
_MEDIA = re.compile(r"image|audio|video|pixel|embeds|embedding|hiddenstate|inlinedata")
_MEDIA_WORDS = {"file", "files", "media", "photo", "photos", "picture", "pictures", "attachments"}
_TOKEN_WORDS = {"token", "tokens", "ids"}
_TOKEN_IDS = re.compile(r"(tokens?|input|output|prompt)ids$")
# A template or a processor is a program: what it makes of a text, nobody knows.
_PROGRAM = re.compile(r"template$|logitsprocessors?$|logitprocessors?$")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
# A value that is one data: URL, or begins like a file of a known kind in base64.
_DATA_URL = re.compile(r"\s*data:[^\s,]{0,200},\S{16,}\s*", re.IGNORECASE)
_BASE64 = re.compile(
    r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|JVBERi0|SUQz|T2dnUw|ZkxhQw|UEsDB|AAAA.GZ0eX|//[uv]Q)"
    r"[A-Za-z0-9+/\s_-]{32,}={0,2}\s*"
)

# What stands around the made-up part of an id: of whom it is, and the number of a call.
_ID_FRAME = re.compile(
    r"^(?:chatcmpl-tool|chatcmpl|cmpl|functions|call|toolu|tooluse|fc|gen|msg|resp|req|rs|fp|up"
    r"|run|b|ws)[-_.]|:[0-9]{1,4}$"
)
_ID = re.compile(r"[A-Za-z0-9_:.-]{1,64}")
_SEALED = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_DIGITS = re.compile(r"[0-9a-f-]*[0-9][0-9a-f-]*", re.IGNORECASE)
# Runs of letters that may be words, and what pairs of letters such mostly consist of.
_RUN = re.compile(r"[A-Za-z][a-z]{2,}|[A-Z]{3,}")
_PAIRS = """
ab ac ad ag ai ak al am an ap ar as at ay ba be bo br ca ce ch ck co cr ct da de dg di ds ea ec ed
ee ef eg el em en er es et ev ew ex ey fa fi fo fu ga ge gg gl go gs gu ha he hi ho ht hu ic id ie
ig il im in io is it ju ke la ld le li ll lo ls lt lu ly ma me mo mp ms mu na nc nd ne ng ni no ns
nt oc od of ok ol om on oo op or os ot ou ow pa pe pi pl po pr pt ra rd re ri rn ro rs rt ry sa sc
se sh sl so ss st ta tc te th ti to tr ts tu ud ue ug un up ur us ut ve wa we wh wi wo ws xt yo
"""
_COMMON = frozenset(_PAIRS.split())
_MODEL = re.compile(r"[A-Za-z0-9_.:/@+-]{0,96}")


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
        """Take a text; what is no text by its looks can't be screened."""
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
        if not _numbers(value):
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
        self._read(value, found, at, at, 0)

    def _read(self, value: Any, found: Found, at: str, owner: str, level: int) -> None:
        if level > MOST_LEVELS:
            found.refuse("")
        elif isinstance(value, str):
            found.text(self.voice, at, value)
        elif isinstance(value, dict):
            for key, item in value.items():
                found.text(self.voice, f"{at}.{key}:", key)
                self._read(item, found, f"{at}.{key}", owner, level + 1)
        elif isinstance(value, list):
            for place, item in enumerate(value):
                self._read(item, found, f"{at}[{place}]", owner, level + 1)


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
            found.name(at, _ID_FRAME.sub("", value))


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a server has signed or encrypted, for itself to read; all else is a text."""

    voice: str

    def read(self, value: Any, found: Found, at: str) -> None:
        """Pass what is base64, nowhere words, and no base64 of a text."""
        if not isinstance(value, str):
            anything(value, found, at)
        elif not _SEALED.fullmatch(value) or _wordy_anywhere(value):
            found.text(self.voice, at, value)
        elif plain := _decoded(value):
            found.text(self.voice, at, plain)


@dataclass(frozen=True, slots=True)
class ModelName:
    """The name of a model: a word with digits, or with few words in it."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Pass what could be such a name."""
        if not isinstance(value, str):
            anything(value, found, at)
        elif not _MODEL.fullmatch(value) or len(_WORDS.findall(value)) > (
            3 + 4 * any(map(str.isdigit, value))
        ):
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
            _refuse_numbers(value, found, at)
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
                    _Walk(found, at).read_field(key, item, where, 0)
                elif item is not None:
                    known.read(item, found, where)
        elif type(value) is list:
            for place, item in enumerate(value):
                where = f"{at}[{_index(item, place)}]"
                (self if type(item) is dict else self.bare).read(item, found, where)
            _refuse_numbers(value, found, at)
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
            _refuse_numbers(value, self._found, self._owner)
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
                elif key not in self._known.numbers or not _numbers(item):
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


def anything(value: Any, found: Found, at: str) -> None:
    """Take every string and every name of a value; the field `at` is named in a refusal."""
    _Walk(found, at).read(value, at, 0)


class _Walk:
    """Reads what no tree knows."""

    def __init__(self, found: Found, owner: str) -> None:
        self._found = found
        self._owner = owner

    def read(self, value: Any, at: str, level: int) -> None:
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
            _refuse_numbers(value, self._found, self._owner)
            for place, item in enumerate(value):
                if isinstance(item, (str, dict, list)):
                    self.read(item, f"{at}[{_index(item, place)}]", level + 1)

    def read_field(self, key: str, item: Any, at: str, level: int) -> None:
        if isinstance(item, list) and not _TOKEN_WORDS.isdisjoint(_words(key)):
            # A chunk may bring them one by one.
            _refuse_numbers(item, self._found, self._owner, most=0)
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


def many_words(names: Iterable[str]) -> bool:
    """Tell whether names are so many words that they could say something."""
    return len(spaced(names).split()) > _FEW_WORDS


def is_unreadable(name: str) -> bool:
    """Tell whether a field of this name holds an image, a sound, a file, tokens or a program."""
    words = _words(name)
    joined = "".join(words)
    return bool(
        _MEDIA.search(joined)
        or _MEDIA_WORDS.intersection(words)
        or _TOKEN_IDS.search(joined)
        or _PROGRAM.search(joined)
    )


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def looks_like_media(text: str) -> bool:
    """Tell whether a string is no text, but a data: URL or a file in base64."""
    if len(text) < 24:
        return False
    return bool(_DATA_URL.fullmatch(text) or _BASE64.fullmatch(text))


def machine_made(name: str) -> bool:
    """Tell whether nobody could read an id: it is short, and no half of it looks like words."""
    if not _ID.fullmatch(name):
        return False
    rest = _ID_FRAME.sub("", name)
    if _DIGITS.fullmatch(rest):
        return True
    if len(rest) < 4 and rest.isalpha():
        return False
    return not _wordy(rest)


def _wordy(name: str) -> bool:
    """Tell whether half of it looks like words."""
    words = sum(len(run) for run in _RUN.findall(name) if _like_a_word(run.lower()))
    return words * 2 >= len(name)


def _wordy_anywhere(value: str) -> bool:
    return any(_wordy(value[start : start + 64]) for start in range(0, len(value), 64))


def _decoded(value: str) -> str:
    """Read the text that base64 holds, if it is one."""
    plain = value.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        return urlsafe_b64decode(plain + "=" * (-len(plain) % 4)).decode()
    except ValueError:
        return ""


def _like_a_word(run: str) -> bool:
    pairs = [run[place : place + 2] in _COMMON for place in range(len(run) - 1)]
    return sum(pairs) * 2 >= len(pairs)


def _index(item: Any, place: int) -> int:
    """Give the index that an item brings along, so that all pieces of one text have one name."""
    index = item.get("index") if isinstance(item, dict) else None
    return index if type(index) is int else place


def _refuse_numbers(values: list[Any], found: Found, owner: str, most: int = 1) -> None:
    if are_numbers(values, most):
        found.refuse(owner)


def are_numbers(values: list[Any], most: int = 1) -> bool:
    """Tell whether a list is one of numbers, other things or lists of one among them or not."""
    return _count_numbers(values) > most


def _count_numbers(values: list[Any]) -> int:
    single = (value[0] if type(value) is list and len(value) == 1 else value for value in values)
    return sum(type(value) in (int, float) for value in single)


def _numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_numbers, value))
    if isinstance(value, dict):
        return all(key.isdigit() and _numbers(item) for key, item in value.items())
    return not isinstance(value, str)
