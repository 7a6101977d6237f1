"""Which languages a scorer is said to know: by the operator, its checkpoint, or its card."""

import re
from collections.abc import Sequence

# Ours were trained on English alone, and Google's is "available in English" by its card.
_ENGLISH = re.compile(r"(starter|small|(.*/)?shieldgemma-[^/]+)@.*")


def languages_of(name: str, said: Sequence[str] | None) -> Sequence[str] | None:
    """Give what was `said`, else what the card of a scorer of that name says; else None.

    Languages are ISO 639 codes; the name is `MODEL@DIGEST`.
    """
    if said is None and _ENGLISH.fullmatch(name):
        return ("en",)
    return said
