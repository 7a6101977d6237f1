"""Characters that are written by their numbers, and codes that need no key; pure."""

import base64
import html
import re
from collections.abc import Callable

# Codes within codes.
_LEVELS = 3

# As in HTML, but for the entities that ordinary text is full of; the `&` may be one itself.
_ENTITY = re.compile(
    r"&(?:amp;|#38;)*(?:#(?:\d{2,8}|[xX][\da-fA-F]{2,8})(?:;|(?=&)|(?!\w))"
    r"|(?!amp;|lt;|gt;|quot;|apos;)[A-Za-z]{2,31};)"
)
_AMPERSANDS = re.compile("&(?:amp;|#38;)+")
# As in addresses, programs, e-mail and Unicode's charts; ASCII only.
_ASCII = "([2-7][0-9a-fA-F])"
_NUMBERED = re.compile(
    rf"%(?:25)*+{_ASCII}|(?<!\\)\\++(?:x|u00|U0{{6}}|u\{{0*+){_ASCII}\}}?"
    rf"|U\+00{_ASCII} ?"
)
_OCTAL = re.compile(r"(?:\\(?:0[4-7][0-7]|1[0-7][0-7])){3,}")
_QUOTED = re.compile("(?:=[2-7][0-9A-F]){3,}")
# One number after another.
_HEXADECIMAL = re.compile(r"(?<!\w)(?:(?:0x)?[2-7][\da-fA-F][ ,]{0,2}){8,}(?!\w)")
_DECIMAL = re.compile(r"(?<!\w)(?:(?:3[2-9]|[4-9]\d|1[01]\d|12[0-6])[ ,]{1,2}){8,}\d{2,3}(?!\w)")
_BINARY = re.compile(r"(?<!\w)(?:0[01]{7} ?){6,}(?!\w)")
_BASE64 = re.compile(r"(?<![\w+/-])[A-Za-z0-9+/_-]{20,}={0,2}(?![\w+/=-])")
_LETTERS = re.compile("[A-Za-z0-9 ]")


def decoded(text: str) -> str:
    """Read what is coded, in codes within codes, too."""
    for _ in range(_LEVELS):
        plain = text
        for code, read in _CODES:
            plain = code.sub(read, plain)
        if plain == text:
            break
        text = plain
    return text


def _entity(found: re.Match[str]) -> str:
    return html.unescape(_AMPERSANDS.sub("&", found.group()))


def _numbered(found: re.Match[str]) -> str:
    return chr(int(next(filter(None, found.groups())), 16))


def _numbers(digits: str, base: int) -> Callable[[re.Match[str]], str]:
    each = re.compile(digits)

    def read(found: re.Match[str]) -> str:
        return _said(found.group(), bytes(int(n, base) for n in each.findall(found.group())))

    return read


def _base64(found: re.Match[str]) -> str:
    given = found.group()
    letters = given.rstrip("=").translate(str.maketrans("-_", "+/"))
    if len(letters) % 4 == 1:
        return given
    return _said(given, base64.b64decode(letters + "=" * (-len(letters) % 4)))


def _said(given: str, read: bytes) -> str:
    """Give what was read if it is mostly letters and digits, which what means no text seldom is."""
    text = read.decode(errors="replace")
    return text if len(_LETTERS.findall(text)) > 0.8 * len(text) else given


_CODES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (_ENTITY, _entity),
    (_NUMBERED, _numbered),
    (_OCTAL, _numbers("[0-7]{3}", 8)),
    (_QUOTED, _numbers("[2-7][0-9A-F]", 16)),
    (_HEXADECIMAL, _numbers("[2-7][0-9a-fA-F]", 16)),
    (_DECIMAL, _numbers("[0-9]+", 10)),
    (_BINARY, _numbers("[01]{8}", 2)),
    (_BASE64, _base64),
)
