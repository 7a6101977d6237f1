"""Tells by their looks what is no text: media, ids that machines made up, numbers."""

import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable
from typing import Any

from shieldgate.english import is_word
from shieldgate.strands import spaced

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
# What parts single letters, and digits in place of letters.
_BETWEEN_LETTERS = re.compile(r"(?<![A-Za-z0-9][A-Za-z0-9])[_.:-]+(?=[A-Za-z0-9](?![A-Za-z0-9]))")
_LETTERS_FOR = str.maketrans("013457", "oieast")
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


def has_tokens(name: str) -> bool:
    """Tell whether a field of this name may hold tokens."""
    return not _TOKEN_WORDS.isdisjoint(_words(name))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def looks_like_media(text: str) -> bool:
    """Tell whether a string is no text, but a data: URL or a file in base64."""
    if len(text) < 24:
        return False
    return bool(_DATA_URL.fullmatch(text) or _BASE64.fullmatch(text))


def without_frame(name: str) -> str:
    """Leave out what stands around the made-up part of an id."""
    return _ID_FRAME.sub("", name)


def machine_made(name: str) -> bool:
    """Tell whether nobody could read an id: it is short, and no half of it looks like words."""
    if not _ID.fullmatch(name):
        return False
    rest = without_frame(name)
    if _DIGITS.fullmatch(rest):
        return True
    if len(rest) < 4 and rest.isalpha():
        return False
    return not (_wordy(rest) or _disguised(rest))


def _disguised(name: str) -> bool:
    """Tell whether half of it is English words, or looks like words where it is spelt out."""
    joined = _BETWEEN_LETTERS.sub("", name)
    letters = joined.translate(_LETTERS_FOR)
    words = sum(len(run) for run in _RUN.findall(letters) if is_word(run))
    return words * 2 >= len(name) or (joined != name and _wordy(letters))


def looks_sealed(value: str) -> bool:
    """Tell whether a string is base64 that looks nowhere like words."""
    return bool(_SEALED.fullmatch(value)) and not any(
        _wordy(value[start : start + 64]) for start in range(0, len(value), 64)
    )


def is_model_name(value: str) -> bool:
    """Tell whether a string could name a model: a word with digits, or with few words in it."""
    most = 3 + 4 * any(map(str.isdigit, value))
    return bool(_MODEL.fullmatch(value)) and len(_WORDS.findall(value)) <= most


def _wordy(name: str) -> bool:
    """Tell whether half of it looks like words."""
    words = sum(len(run) for run in _RUN.findall(name) if _like_a_word(run.lower()))
    return words * 2 >= len(name)


def decoded_base64(value: str) -> str:
    """Read the text that base64 holds, if it is one."""
    plain = value.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        return urlsafe_b64decode(plain + "=" * (-len(plain) % 4)).decode()
    except ValueError:
        return ""


def _like_a_word(run: str) -> bool:
    pairs = [run[place : place + 2] in _COMMON for place in range(len(run) - 1)]
    return sum(pairs) * 2 >= len(pairs)


def are_numbers(values: list[Any], most: int = 1) -> bool:
    """Tell whether a list is one of numbers, other things or lists of one among them or not."""
    return _count_numbers(values) > most


def _count_numbers(values: list[Any]) -> int:
    single = (value[0] if type(value) is list and len(value) == 1 else value for value in values)
    return sum(type(value) in (int, float) for value in single)


def only_numbers(value: Any) -> bool:
    """Tell whether a value is numbers and flags, lists of such, or such by number."""
    if isinstance(value, list):
        return all(map(only_numbers, value))
    if isinstance(value, dict):
        return all(key.isdigit() and only_numbers(item) for key, item in value.items())
    return not isinstance(value, str)
