"""Texts that strangers wrote, as a terminal may safely show them."""

import re
import unicodedata
from collections.abc import Iterator

# More marks than any language puts on a letter run over the lines above and below.
_MARKS = 4
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """Part a text into what is shown as it is, and, told by True, what is shown by its number.

    The latter are control characters, such as those that move a cursor; controls of direction;
    what is invisible, and what Unicode does not know. New lines and tabs are as ever.
    """
    plain, marks = "", 0
    for character in text.replace("\r\n", "\n"):
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if character == "\t":
            plain += "    "
        elif character == "\n" or not (category in _UNSAFE or marks > _MARKS):
            plain += character
        else:
            if plain:
                yield plain, False
            plain = ""
            yield f"<U+{ord(character):04X}>", True
    if plain:
        yield plain, False


def plain(text: str) -> str:
    """Write a text so that it may be shown, in one line."""
    return re.sub(r"\s+", " ", "".join(part for part, _ in parts(text)))
