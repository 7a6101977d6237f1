"""Puts the strands of a message or an answer together: one text to judge, and what counts alone.

A strand is named `voice/path`. What one reader reads as one (the content, the reasoning, the calls
of tools) is one voice. A voice is judged alone, so that nothing beside it makes it look harmless,
and joined to the others, so that nothing is hidden by being spread.
"""

import re
from collections.abc import Callable, Iterable
from itertools import groupby

Strands = Iterable[tuple[str, str]]

NAMES, SPELLED, ARRIVED = "names", "spelled", "arrived"
# Judged only by themselves: names that are no words of a text, and other ways to write a text.
_APART = (NAMES, SPELLED, ARRIVED, "logprobs", "prompt_logprobs")

_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_UNICODE = re.compile(r"\\u[0-9a-fA-F]{4}")
_CONTROL = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# JSON in a string of JSON in a string: each level doubles the backslashes.
_LEVELS = 8
# A string of JSON, markup or a program that is a value, not the name of one; so many of so few
# words may be the words of a sentence.
_STRING = re.compile(
    r"""(?:(?m:^)[^\S\n]*|[\[{(,:=+?]\s*|\b(?:return|yield|print)\s+)[bfru]?"""
    r"""(?:"((?:[^"\\\n]|\\.)*+)"|'((?:[^'\\\n]|\\.)*+)')"""
    r"""(?=\s*(?:[\]}),;+\n>#]|/[/>]|[\w:.-]++=|$))"""
)
_FEW_STRINGS, _FEW_WORDS = 4, 5
# What parts the words of a name, a number at their end included.
_JOINT = re.compile(r"[\s_.:/@+-]+(?:[0-9]+(?![A-Za-z0-9]))?|(?<=[a-z])(?=[A-Z])")


def voice(strand: str) -> str:
    """Give the voice that a strand belongs to."""
    return strand.partition("/")[0]


def whole_and_parts(strands: Strands, prefill: str = "") -> tuple[str, tuple[str, ...]]:
    """Join strands to one text, and list the other texts that are to be judged as well.

    These are each voice alone, all in their order where voices take turns, what JSON in a string
    says once it is decoded, and its strings joined where each is few words. `prefill` is what
    the content goes on with.
    """
    strands = list(strands)
    texts = _texts(strands, prefill)
    plain = [(name, decoded(text)) for name, text in strands]
    if plain != strands:
        texts += _texts(plain, prefill)
    texts.append(in_pieces(said for _, text in plain for said in strings_in(text)))
    whole, *parts = dict.fromkeys(text for text in texts if text.strip()) or [""]
    return whole, tuple(parts)


def decoded(text: str) -> str:
    """Read the escapes of JSON in a string, whether it is complete or not, level by level.

    A text that is no JSON is left as it is, unless it spells characters by their number.
    """
    if "\\" not in text or not (text.lstrip()[:1] in ("{", "[", '"') or _UNICODE.search(text)):
        return text
    for _ in range(_LEVELS):
        plain = _ESCAPE.sub(_character, text)
        if plain == text:
            break
        text = plain
    # Halves of a pair become one character, and others what no tokenizer stumbles over.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def in_pieces(texts: Iterable[str], join: Callable[[Iterable[str]], str] = " ".join) -> str:
    """Join the texts of up to four words, as those of a sentence; few of them say nothing."""
    pieces = [text.strip() for text in texts if len(text.split(None, _FEW_WORDS)) < _FEW_WORDS]
    return join(filter(None, pieces)) if len(pieces) >= _FEW_STRINGS else ""


def strings_in(text: str) -> list[str]:
    """List the strings in JSON and in code that are values, wherever they stand in a text.

    Of a string that is JSON itself, its strings.
    """
    found: list[str] = []
    for one, other in _STRING.findall(text):
        said = one or other
        plain = decoded(said)
        found += [said] if plain == said else strings_in(plain) or [said]
    return found


def strings_of(value: object) -> list[str]:
    """List the strings in JSON, in their order; names of fields are none."""
    found: list[str] = []
    ahead = [value]
    while ahead:
        item = ahead.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            ahead += reversed(item.values())
        elif isinstance(item, list):
            ahead += reversed(item)
    return found


class Arrivals:
    """What pieces of an answer say in the order in which they come, as who shows all would see it.

    That is what its strands say one after the other, unless they take turns.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._last: set[str] = set()
        self._left: set[str] = set()
        self._take_turns = False

    def take(self, piece: Strands) -> None:
        """Take the texts of a piece; what it says in several strands at once counts once."""
        said: dict[str, str] = {}
        for strand, text in piece:
            if text and voice(strand) not in _APART and not strand.endswith((":", ".name")):
                said[strand] = said.get(strand, "") + text
        if said:
            self._left |= self._last - said.keys()
            self._take_turns |= not self._left.isdisjoint(said)
            self._last = {*said}
            self._texts += dict.fromkeys(said.values())

    def strand(self) -> tuple[str, str]:
        """Give it as a strand, whose text is empty where the others say the same."""
        self._texts = ["".join(self._texts)]
        return f"{ARRIVED}/", self._texts[0] if self._take_turns else ""


def spaced(names: Iterable[str]) -> str:
    """Write names as the words they consist of: `i_will` and `iWill` as two."""
    return " ".join(filter(None, (_JOINT.sub(" ", name).strip() for name in names)))


def _texts(strands: list[tuple[str, str]], prefill: str) -> list[str]:
    voices: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for strand, text in strands:
        said = names if strand.endswith(".name") and voice(strand) not in _APART else voices
        # In either, so that voices stand in the order in which they began.
        voices.setdefault(voice(strand), [])
        said.setdefault(voice(strand), []).append(text)
    joined: dict[str, str] = {}
    # What stands in fields of somebody's own is judged without their names, too.
    named = {voice(strand) for strand, _ in strands if strand.endswith(":")} - {*_APART}
    apart = [
        "\n".join(text for strand, text in strands if voice(strand) == each and strand[-1] != ":")
        for each in voices
        if each in named
    ]
    for each, texts in voices.items():
        if each in _APART:
            apart.append(spaced(texts) if each in (NAMES, SPELLED) else "\n".join(texts))
        else:
            lines = [spaced(names[each]), *texts] if each in names else texts
            joined[each] = "\n".join(lines)
    whole = prefill + "\n".join(joined.values())
    if "content" in joined:
        joined["content"] = prefill + joined["content"]
    shown = [
        (voice(strand), text)
        for strand, text in strands
        if voice(strand) not in _APART and not strand.endswith((":", ".name"))
    ]
    turns = [each for each, _ in groupby(each for each, _ in shown)]
    if len(turns) > len({*turns}):
        apart.append(prefill + "\n".join(text for _, text in shown))
    return [whole, *joined.values(), *apart]


def _character(escape: re.Match[str]) -> str:
    number, letter = escape.groups()
    return chr(int(number, 16)) if number else _CONTROL.get(letter, letter)
