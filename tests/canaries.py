"""Texts that are found again wherever they leak, in fragments and in other encodings."""

import json
import random
import string
from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from urllib.parse import quote, quote_plus

FRAGMENT = 12
"""The shortest part of a canary that counts as a leak, in characters."""

_WORDS = random.SystemRandom()


def canary(*, ascii_only: bool = False) -> str:
    """Make a text that nothing else contains; not all of it is ASCII, or safe in JSON and URLs."""

    def letters(count: int) -> str:
        return "".join(_WORDS.choices(string.ascii_letters, k=count))

    middle = letters(8) if ascii_only else 'é"☃\\ß'
    return f"{letters(24)} {middle} {letters(24)}"


def leaks(haystack: bytes, canaries: Iterable[str]) -> list[tuple[str, bytes]]:
    """List each canary that left a fragment in a haystack, and how that looks there."""
    haystack = haystack.lower()
    needles = {needle: text for text in canaries for needle in _needles(text)}
    seen: set[bytes] = set()
    for size in {len(needle) for needle in needles}:
        windows = {haystack[i : i + size] for i in range(len(haystack) - size + 1)}
        seen |= windows & needles.keys()
    return list({needles[needle]: (needles[needle], needle) for needle in seen}.values())


@cache
def _needles(text: str) -> frozenset[bytes]:
    """List what every fragment of a text may look like, in lower case."""
    found = set()
    for start in range(len(text) - FRAGMENT + 1):
        fragment = text[start : start + FRAGMENT]
        raw = fragment.encode()
        written = json.dumps(fragment)[1:-1]
        found |= {
            raw,
            fragment.lower().encode(),
            fragment[::-1].encode(),
            written.encode(),
            json.dumps(written)[1:-1].encode(),
            quote(fragment).encode(),
            quote_plus(fragment).encode(),
            repr(raw)[2:-1].encode(),
            raw.hex().encode(),
            fragment.encode("utf-16-le"),
            fragment.encode("utf-16-be"),
        }
        for offset in range(3):
            # What stands before and after shares its first and last digits with the neighbours.
            digits = b64encode(b"\0" * offset + raw).rstrip(b"=")[(offset * 8 + 5) // 6 : -1]
            found |= {digits, digits.translate(bytes.maketrans(b"+/", b"-_"))}
    return frozenset(needle.lower() for needle in found)
