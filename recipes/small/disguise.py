"""Texts as people disguise them to pass a filter; what they say stays the same.

The service judges text in the readings that it knows, too (`shieldgate.normalise`). These make
the scorer itself less easy to mislead.
"""

import json
import unicodedata
from random import Random

_FULLWIDTH = {ord(c): ord(c) + 0xFEE0 for c in map(chr, range(0x21, 0x7F))}
_LOOKALIKES = str.maketrans("aeiostlAEIOST", "43105714310S7")
_ACCENTS = "\u0300\u0301\u0302\u0308\u030a"


def disguised(text: str, rng: Random) -> str:  # noqa: PLR0911 - one for each way
    """Disguise a text in one of nine ways, drawn by `rng`."""
    match rng.randrange(9):
        case 0:
            return text.replace(" ", rng.choice(("\u00a0", "\t", "  ", "\n")))
        case 1:
            return "".join(c + rng.choice(_ACCENTS) if c.isalpha() else c for c in text[:400])
        case 2:
            share = rng.uniform(0.3, 1.0)
            accented = (c + "\u0301" if c in "aeiou" and rng.random() < share else c for c in text)
            return unicodedata.normalize("NFC", "".join(accented))
        case 3:
            return " ".join(text[:300])
        case 4:
            return rng.choice((".", "-", "_", "*")).join(text[:300].split(" "))
        case 5:
            return json.dumps({"q": text})
        case 6:
            escaped = "".join(f"\\u{ord(c):04x}" for c in text[:120] if ord(c) < 0x10000)
            return f'{{"q": "{escaped}"}}'
        case 7:
            return text.translate(_FULLWIDTH)
        case _:
            return text.translate(_LOOKALIKES)
