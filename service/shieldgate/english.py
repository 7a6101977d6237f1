"""English words that were written to be read by people and missed by a scorer; pure.

Words that nobody knows are read as those that they were made of, where several of them stand
together: run together, cut to pieces, turned round, shuffled, stretched, without their vowels.
`english_words.txt` has the words by their frequency, from the starter's training sources.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice, pairwise, takewhile
from string import ascii_lowercase, ascii_uppercase

# What an apostrophe cuts off is no word.
_WORD = re.compile(r"(?<![\w'\u2019*])[A-Za-z](?:[A-Za-z*]*[A-Za-z])?(?![\w@])")
# Where three of four unknown words in a row resemble different known ones, with few others among
# them, that is no accident.
_ROW, _MOST, _NEAR = 4, 3, 16

# Run together, `iWillFindYou`, or cut into groups of letters.
_RUN = re.compile(r"(?<![A-Za-z])(?:[A-Z]?[a-z]{19,}|[A-Z]{20,})(?![A-Za-z])")
_HUMPS = re.compile(r"(?<![A-Za-z])[A-Za-z]?[a-z]*+(?:[A-Z][a-z]*+){5,}")
_LONG = re.compile("[A-Za-z]{14}")
_GROUPS = re.compile(r"(?<![\w'\u2019])(?:[A-Za-z]{1,10}[ \n]){5,}[A-Za-z]*(?![\w'\u2019])")
_CHUNK = 80
# A letter costs 1.2 to 2.2 in English, over 3.5 in other languages and in codes.
_DEAREST, _UNKNOWN = 2.5, 14.0
_LONGEST = 16
# What is shorter resembles anything.
_SHORTEST = 3
_HEAD, _TAIL = re.compile("[A-Za-z]+"), re.compile(r"[A-Za-z]+\Z")
# Of harmful sentences 95 % have a third of their words among so many, of what stands in rows 18 %.
_FREQUENT, _FEWEST = 150, 5
_LETTERS = re.compile(r"[^\W\d_]+")

_ROT13 = str.maketrans(ascii_lowercase, ascii_lowercase[13:] + ascii_lowercase[:13])


def _alphabet(letters: str) -> dict[int, int]:
    return str.maketrans(ascii_lowercase + ascii_uppercase, letters + letters.upper())


_KEYS = (
    *((n, _alphabet(ascii_lowercase[n:] + ascii_lowercase[:n])) for n in range(1, 26)),
    (0, _alphabet(ascii_lowercase[::-1])),
)
_MASKS = "#_·"
# Also brackets, of which both ends count as the same.
_GAP = re.compile(r"[ .*_\n-]|-\n|[^\w\s.,;:!?'&@#%$|<>]{1,3}")
_BRACKETS = str.maketrans(")}]>", "({[<")
_VOWELS = re.compile("[aeiou]")
_MASKED = re.compile("[aeiou*]")
_REPEATED = re.compile(r"(.)\1+")


@cache
def _costs() -> dict[str, float]:
    """Give what each word costs: -log of its probability, by its rank (Zipf's law)."""
    words = files("shieldgate").joinpath("english_words.txt").read_text("ascii").split()
    scale = math.log(len(words))
    return {word: math.log((rank + 1) * scale) for rank, word in enumerate(words)}


@cache
def _frequent() -> frozenset[str]:
    return frozenset(islice(_costs(), _FREQUENT))


@cache
def _endings() -> frozenset[str]:
    """Give all that known words end in, themselves included."""
    return frozenset(word[start:] for word in _costs() for start in range(len(word)))


def plain_words(text: str) -> str:
    """Write words that only resemble English ones as these."""
    text = _GROUPS.sub(_regrouped, text)
    if _LONG.search(text):
        text = _HUMPS.sub(_parted, text)
        if any(_parted(run) != run.group() for run in _RUN.finditer(text)):
            # What signs cut off is shorter.
            text = re.sub("[A-Za-z]{8,}", _parted, text)
    text = _masked_by(text)
    words = _WORD.findall(text)
    if len(words) - sum(map(is_word, words)) >= _MOST:
        text = _unshifted(text, words)
        text = _replaced(_replaced(text, _whole), _resembling)
    return text


def _unshifted(text: str, words: list[str]) -> str:
    """Read an alphabet that begins elsewhere, or runs backwards, by the words that come of it.

    Chance makes no three words of four letters that are a quarter of all unknown ones.
    """
    unknown = {w for w in map(str.lower, words) if len(w) > _SHORTEST and w not in _costs()}
    if len(unknown) < _MOST:
        return text
    known = {key: sum(w.translate(key_map) in _costs() for w in unknown) for key, key_map in _KEYS}
    key = max(known, key=known.__getitem__)
    if known[key] < _MOST or known[key] * 4 < len(unknown):
        return text
    key_map = dict(_KEYS)[key]
    return _WORD.sub(lambda word: word.group().translate(key_map), text)


def _masked_by(text: str) -> str:
    """Write a star for a sign that stands for vowels, `w#ll`, where it does so in many words."""
    for sign in _MASKS:
        mask = re.compile(rf"(?<=[A-Za-z]){re.escape(sign)}+(?=[A-Za-z])")
        if text.count(sign) >= 2 * _MOST and len(mask.findall(text)) >= 2 * _MOST:
            starred = re.sub(rf"(?<=[A-Za-z*]){re.escape(sign)}", "*", text)
            if (read := _replaced(starred, _resembling)) != starred:
                return read
    return text


def rejoined(texts: Iterable[str], between: str = "\n") -> str:
    """Join texts by what stands `between` them, and the pieces of a word by nothing.

    Pieces make a word that is known where not each of them is one.
    """
    written: list[str] = []
    # The letters before the next text, of all texts that may hold the beginning of its first word.
    cut: list[str] = []
    for text in texts:
        head = _HEAD.match(text)
        letters = head.group() if head else ""
        size = _cut_word(cut, letters) if head else 0
        for seam in range(1, size):
            written[-2 * seam] = ""
        written += ["" if size else between, text]
        if letters != text:
            cut.clear()
        if tail := _TAIL.search(text[-_LONGEST:]):
            cut.append(tail.group())
        else:
            cut.clear()
    return "".join(written[1:])


def _cut_word(cut: list[str], last: str) -> int:
    """Count the pieces that make the longest word with the last one."""
    found, word = 0, last
    for size, piece in enumerate(reversed(cut), 1):
        word = piece + word
        if word.lower() not in _endings():
            break
        if is_word(word) and not all(map(is_word, (*cut[-size:], last))):
            found = size
    return found


def is_word(word: str) -> bool:
    """Tell whether a word is a known one, in capitals or not."""
    return word.lower() in _costs()


def is_sentence(text: str) -> bool:
    """Tell whether words could be a sentence: a third of such are among the most frequent ones."""
    words = _LETTERS.findall(text.lower())
    frequent = [word for word in words if word in _frequent()]
    return len({*words}) >= _FEWEST and len({*frequent}) > 1 and len(frequent) * 3 >= len(words)


def _regrouped(groups: re.Match[str]) -> str:
    """Part groups of letters into words anew, where few of them are words."""
    words = groups.group().split()
    if sum(map(is_word, words)) * 2 >= len(words):
        return groups.group()
    letters = "".join(words)
    # The first letters tell whether it is English.
    if not _in_words(letters[:_CHUNK]):
        return groups.group()
    return _parted_letters(letters)


def _parted(run: re.Match[str]) -> str:
    text = run.group()
    return text if is_word(text) else _parted_letters(text)


def _parted_letters(text: str) -> str:
    parted: list[str] = []
    start = 0
    while start < len(text):
        chunk = text[start : start + _CHUNK]
        start += len(chunk)
        words = _in_words(chunk).split() or [chunk]
        while start < len(text) and len(words) > 1 and len(chunk) - _LONGEST < sum(map(len, words)):
            # A word may go on in the next chunk, so that its beginning looks like others.
            start -= len(words.pop())
        parted += words
    return " ".join(parted) if any(map(is_word, parted)) else text


def _in_words(letters: str) -> str:
    """Part letters into the likeliest words; give nothing where these are hardly English."""
    costs, letters = _costs(), letters.lower()
    best = [(0.0, 0)]
    for end in range(1, len(letters) + 1):
        cheapest = (best[-1][0] + _UNKNOWN, end - 1)
        for start in range(max(0, end - _LONGEST), end):
            cost = costs.get(letters[start:end])
            if cost is not None and best[start][0] + cost < cheapest[0]:
                cheapest = best[start][0] + cost, start
        best.append(cheapest)
    end = len(letters)
    if best[end][0] > _DEAREST * end:
        return ""
    words = []
    while end:
        start = best[end][1]
        words.append(letters[start:end])
        end = start
    return " ".join(reversed(words))


@dataclass(frozen=True, slots=True)
class _Hit:
    """So many words that are another one; `turned` if it is backwards."""

    size: int
    word: str
    turned: bool = False


_Find = Callable[[list[str], list[str], int], _Hit | None]


def _replaced(text: str, find: _Find) -> str:
    """Write what is found as what it is, where enough of it stands together.

    `find` is given the words, what stands after each of them, and a place.
    """
    found = list(_WORD.finditer(text))
    words = [word.group().lower() for word in found]
    gaps = [text[a.end() : b.start()] for a, b in pairwise(found)]
    known = _costs()
    unknown: list[tuple[int, _Hit | None]] = []
    place = 0
    while place < len(words):
        hit = None
        if words[place] not in known or (place < len(gaps) and words[place + 1] not in known):
            hit = find(words, gaps, place)
            if hit or words[place] not in known:
                unknown.append((place, hit))
        place += hit.size if hit else 1
    kept: dict[int, _Hit] = {}
    for first in range(len(unknown) - _MOST + 1):
        row = unknown[first : first + _ROW]
        hits = {place: hit for place, hit in row if hit}
        if len({hit.word for hit in hits.values()}) >= _MOST and row[-1][0] - row[0][0] < _NEAR:
            kept |= hits
    turned = [found[place] for place, hit in kept.items() if hit.turned]
    if len(turned) * 2 > len(kept):
        start, end = turned[0].start(), turned[-1].end()
        return text[:start] + text[start:end][::-1] + text[end:]
    written, end = [], 0
    for place, hit in kept.items():
        written += [text[end : found[place].start()], hit.word]
        end = found[place + hit.size - 1].end()
    return "".join((*written, text[end:]))


def _whole(words: list[str], gaps: list[str], place: int) -> _Hit | None:
    """Find the known word that pieces make, with the same between all of them."""
    between = [gap.translate(_BRACKETS) for gap in gaps[place : place + 3]]
    if not between or not _GAP.fullmatch(between[0]):
        return None
    alike = sum(1 for _ in takewhile(between[0].__eq__, between))
    for size in range(alike + 1, 1, -1):
        joined = "".join(words[place : place + size])
        if len(joined) > 2 and joined in _costs():
            return _Hit(size, joined)
    return None


def _resembling(words: list[str], _: list[str], place: int) -> _Hit | None:
    """Find the known word that an unknown one resembles."""
    word, known = words[place], _costs()
    if word in known or len(word) < _SHORTEST:
        return None
    if (found := word[::-1]) in known:
        return _Hit(1, found, turned=True)
    for found in (word.replace("*", ""), word.translate(_ROT13)):
        if found in known:
            return _Hit(1, found)
    if word.endswith("ay"):
        # Pig Latin: the beginning of the word, and what else is put there.
        stem = word.removesuffix("ay")
        for turned in (stem.removesuffix("w"), *(stem[-n:] + stem[:-n] for n in range(1, 4))):
            if turned in known:
                return _Hit(1, turned)
    for looks, skeleton in _SKELETONS:
        if looks.match(word) and (hit := _by(skeleton).get(skeleton(word))):
            return _Hit(1, hit)
    return None


def _squeezed(word: str) -> str:
    return _REPEATED.sub(r"\1", word)


def _masked(word: str) -> str:
    return _MASKED.sub("*", word)


def _consonants(word: str) -> str:
    return word[0] + _VOWELS.sub("", word[1:])


def _shuffled(word: str) -> str:
    return word[0] + "".join(sorted(word[1:-1])) + word[-1]


def _anagram(word: str) -> str:
    return "".join(sorted(word))


# What a word looks like, and what it then has in common with the one that it was made of.
_SKELETONS: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (re.compile(r".*(.)\1"), _squeezed),
    (re.compile(r".*\*"), _masked),
    (re.compile(r"[^aeiou]+$"), _consonants),
    (re.compile(r".{4}"), _shuffled),
    (re.compile(r".{4}"), _anagram),
)


@cache
def _by(skeleton: Callable[[str], str]) -> dict[str, str]:
    """Map what words have in common to the most frequent of them."""
    found: dict[str, str] = {}
    for word in _costs():
        found.setdefault(skeleton(word), word)
    return found
