"""Tell in which language a text is that is none of those known; a guess, and none where unsure.

The library is a naive Bayes classifier of byte n-grams (Lui and Baldwin, langid.py, ACL 2012).
"""

from collections.abc import Collection
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING
from unicodedata import normalize

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Chosen on benchmarks/languages and 24,000 public texts of English: how probable another language
# is at least, and all of those known together at most, against it.
_SURE, _KNOWN = 0.3, 0.02
_SHORTEST = 8  # bytes of letters; what is shorter resembles anything


def unsupported_language(text: str, known: Collection[str]) -> str | None:
    """Guess the language of a text, as an ISO 639 code, where it is none of those `known`.

    Gives None for a known one, for what is no language or too short to tell, and in doubt. Takes a
    tenth of a millisecond for a sentence or two, to which longer ones should be cut.
    """
    text = normalize("NFKC", text)
    if len("".join(filter(str.isalpha, text)).encode("utf-8", "replace")) < _SHORTEST:
        return None
    share: dict[str, float] = dict(_identifier().rank(text))
    share["en"] += share.pop("pcm")  # Nigerian Pidgin, for which much slang is taken
    of_known = sum(share.pop(language, 0.0) for language in known)
    language, most = max(share.items(), key=itemgetter(1))
    if language == "zxx" or most < _SURE or of_known > _KNOWN * most:
        return None
    return language


def load() -> None:
    """Load the classifier, which takes half a second, before somebody waits for it."""
    _identifier()


@cache
def _identifier() -> "LanguageIdentifier":
    # Here, because it imports numpy, and a scorer of which no languages are known does without.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
