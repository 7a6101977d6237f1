"""Characters that are written by their numbers, and codes that need no key; pure."""

import base64
import html
import re
import unicodedata
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
    rf"%(?:25)*+(?:u00)?{_ASCII}|(?<!\\)\\++(?:x|u00|U0{{6}}|[ux]\{{0*+){_ASCII}\}}?"
    rf"|U\+00{_ASCII} ?"
)
# The same for other letters: bytes of UTF-8, or a number.
_BYTES = re.compile(r"(?:%[89a-fA-F][\da-fA-F]){2,}|(?:\\x[89a-fA-F][\da-fA-F]){2,}")
_CHARACTER = re.compile(
    r"(?<!\\)\\++(?:u(?=00[89a-fA-F]|0[1-9a-fA-F]|[1-9a-cA-C]|f[4-9a-fA-F])([\da-fA-F]{4})"
    r"|[ux]\{0*+([89a-fA-F][\da-fA-F]|[\da-fA-F]{3,5})\})"
    r"|%u(?=00[89a-fA-F]|0[1-9a-fA-F])([\da-fA-F]{4})"
)
_NAMED = re.compile(r"\\N\{([A-Za-z][\w -]{2,80})\}")
# As in style sheets.
_STYLE = re.compile(r"(?:\\0{0,4}[2-7][\da-fA-F] ?){6,}")
_OCTAL = re.compile(r"(?:\\(?:0[4-7][0-7]|1[0-7][0-7])){3,}")
_QUOTED = re.compile("(?:=[2-7][0-9A-F]){3,}")
# One number after another, with anything in between that isn't a letter.
_BETWEEN = r"[\s,;:|_-]{0,3}"
_HEXADECIMAL = re.compile(rf"(?<!\w)(?:(?:0x|00)?[2-7][\da-fA-F]{_BETWEEN}){{8,}}(?!\w)")
_CODE = r"(?:0?(?:3[2-9]|[4-9]\d)|1[01]\d|12[0-6])"
_DECIMAL = re.compile(rf"(?<!\w)(?:{_CODE}[\s,;:|-]{{1,3}}){{8,}}{_CODE}(?!\w)")
_OCTAL_NUMBERS = re.compile(
    r"(?<!\w)(?:(?:0o?)?(?:1[0-7][0-7]|0?[4-7][0-7])[\s,;:|-]{1,3}){8,}"
    r"(?:0o?)?(?:1[0-7][0-7]|0?[4-7][0-7])(?!\w)"
)
_BITS = r"(?:(?:0b)?0?[01]{7})++(?![^\W_])"
_BINARY = re.compile(rf"(?<!\w){_BITS}(?:{_BETWEEN}{_BITS})*+")
_FEW_BYTES = 6
_BASE64 = re.compile(r"(?<![\w+/-])[A-Za-z0-9+/_-]{20,}={0,2}(?![\w+/=-])")
# In pieces, of words or of a line each.
_BASE64_PIECES = re.compile(
    r"(?<![\w+/-])(?:[A-Za-z0-9+/]{2,76}={0,2}\s{1,2}){3,}[A-Za-z0-9+/]{2,76}={0,2}(?![\w+/=-])"
)
_PIECE = re.compile(r"[A-Za-z0-9+/]+={0,2}|\s+")
_BASE32 = re.compile(r"(?<!\w)(?:[A-Z2-7]{24,}|[a-z2-7]{24,})={0,6}(?![\w=])")


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


def _binary(found: re.Match[str]) -> str:
    digits = found.group().replace("0b", "")
    # With seven digits each where they are parted, with eight where they may not be.
    words = re.findall("[01]+", digits)
    each = 7 if {len(word) for word in words} == {7} else 8
    joined = "".join(words)
    read = bytes(int(joined[n : n + each], 2) for n in range(0, len(joined), each))
    return _said(found.group(), read) if len(read) >= _FEW_BYTES else found.group()


def _bytes(found: re.Match[str]) -> str:
    try:
        return bytes.fromhex(re.sub(r"%|\\x", "", found.group())).decode()
    except ValueError:
        return found.group()


def _character(found: re.Match[str]) -> str:
    number = int(next(filter(None, found.groups())), 16)
    return found.group() if 0xD800 <= number < 0xE000 else chr(number)


def _named(found: re.Match[str]) -> str:
    try:
        return unicodedata.lookup(found[1])
    except KeyError:
        return found.group()


def _base64(found: re.Match[str]) -> str:
    given = found.group()
    if (text := _unpacked(given)) != given:
        return text
    # The path of an address has the same letters.
    return "/".join(_unpacked(part) if len(part) >= 20 else part for part in given.split("/"))


def _unpacked(given: str) -> str:
    letters = given.rstrip("=").translate(str.maketrans("-_", "+/"))
    if len(letters) % 4 == 1:
        return given
    return _said(given, base64.b64decode(letters + "=" * (-len(letters) % 4)))


def _pieces(found: re.Match[str]) -> str:
    """Read pieces that are base64 each, or only together."""
    pieces = _PIECE.findall(found.group())[::2]
    together = "".join(pieces)
    if "=" not in together[:-2]:
        read = _unpacked(together)
        return found.group() if read == together else read
    texts = [_unpacked(piece) for piece in pieces]
    known = sum(text != piece for text, piece in zip(texts, pieces, strict=True))
    return " ".join(texts) if known * 4 >= len(pieces) * 3 else found.group()


def _base32(found: re.Match[str]) -> str:
    letters = found.group().rstrip("=").upper()
    try:
        return _said(found.group(), base64.b32decode(letters + "=" * (-len(letters) % 8)))
    except ValueError:
        return found.group()


def _said(given: str, read: bytes) -> str:
    """Give what was read if it is mostly letters and digits, which what means no text seldom is.

    Every second byte is 0 in UTF-16.
    """
    text = read.replace(b"\0", b"").decode(errors="replace")
    marks = sum(map(bool, map(unicodedata.combining, text)))
    letters = sum(c.isalnum() or c in " \u200b" for c in text)
    return text if letters > 0.8 * (len(text) - marks) else given


_CODES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (_ENTITY, _entity),
    (_NUMBERED, _numbered),
    (_BYTES, _bytes),
    (_CHARACTER, _character),
    (_NAMED, _named),
    (_STYLE, _numbers(r"[2-7][\da-fA-F](?![\da-fA-F])", 16)),
    (_OCTAL, _numbers("[0-7]{3}", 8)),
    (_QUOTED, _numbers("[2-7][0-9A-F]", 16)),
    (_HEXADECIMAL, _numbers("[2-7][0-9a-fA-F]", 16)),
    (_DECIMAL, _numbers("[0-9]+", 10)),
    (_OCTAL_NUMBERS, _numbers("(?<!\\d)(?:0o?)?([0-7]{2,3})(?!\\d)", 8)),
    (_BINARY, _binary),
    (_BASE32, _base32),
    (_BASE64_PIECES, _pieces),
    (_BASE64, _base64),
)
