"""Somebody's prompt and a published one in, what differs out: where, of which kind, how to mend it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from shieldgate.doctor.kinds import KINDS
from shieldgate.doctor.prompts import FIELDS, Asked, Word, words
from shieldgate.prompt import TEMPLATES, Template
from shieldgate.types import Direction

# Below this part of common words, a list of differences would say nothing.
_ALIKE = 0.5
# Differences with so few words between them, on one line, are one.
_APART = 3
# How many characters around a difference are shown.
_AROUND = 28

_MARKERS = ("<start_of_turn>", "<end_of_turn>")
_QUOTES = str.maketrans("‘’“”´`", "''\"\"''")  # noqa: RUF001 - what editors make of quotes


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a prompt something differs, from 1, and both texts there.

    The two texts are one line each, with what can't be seen shown; what differs is at [start, end)
    of each, and begins below each other.
    """

    line: int
    column: int
    published: str
    theirs: str
    differs: tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference of a kind of `KINDS`, or, where not `certain`, what a file alone can't tell.

    `places` are in the prompt; `line` is that of a setting in its file.
    """

    kind: str
    what: str
    why: str
    mend: str
    places: Sequence[Place] = ()
    line: int | None = None
    certain: bool = True

    @classmethod
    def of(
        cls,
        kind: str,
        places: Sequence[Place] = (),
        *,
        line: int | None = None,
        certain: bool = True,
        **said: object,
    ) -> "Finding":
        """Say what a kind says, with `said` filled in."""
        what, why, mend = (text.format_map(said) for text in KINDS[kind])
        return cls(kind, what, why, mend, tuple(places), line, certain)


def published_words(template: Template, direction: Direction) -> list[Word] | None:
    """Cut a published format into words; None where it doesn't judge this direction."""
    source = template.for_prompt if direction == "prompt" else template.for_response
    return None if source is None else list(words(source))


def nearest(asked: Asked) -> Template:
    """Find the published format that shares most words with a prompt; `chat` wins ties."""
    theirs = [w.text for w in asked.words() if w.text != "<bos>"]

    def likeness(template: Template) -> float:
        ours = published_words(template, asked.direction) or []
        same = [w.text for w in ours if w.text != "<bos>"]
        return SequenceMatcher(None, same, theirs, autojunk=False).ratio()

    return max(TEMPLATES.values(), key=likeness)


def compare(
    asked: Asked, template: Template, guidelines: Mapping[str, Mapping[Direction, str]]
) -> list[Finding]:
    """List how a prompt differs from a published format, which judges its direction.

    `guidelines` are the published ones by policy id.
    """
    ours = published_words(template, asked.direction) or []
    theirs = asked.words()
    found = list(_begin_of_sequence(asked, ours, theirs))
    ours = [w for w in ours if w.text != "<bos>"]
    while theirs and theirs[0].text == "<bos>":
        theirs = theirs[1:]
    if any(w.text == "\r\n" for w in theirs):
        found.append(Finding.of("line-ends"))
        theirs = [Word("\n", w.at) if w.text == "\r\n" else w for w in theirs]
    margins = _margins(theirs)
    if len(margins) > 1:
        place = _place(asked.text, ours, theirs, (0, 0), (margins[0], margins[0] + 1))
        found.append(Finding.of("indented", [place], lines=len(margins)))
        theirs = [w for i, w in enumerate(theirs) if i not in set(margins)]
    order = [[w.text for w in side if w.text in FIELDS] for side in (ours, theirs)]
    missing = [field for field in order[0] if field not in order[1]]
    if _likeness(ours, theirs) < _ALIKE:
        gemma = re.search(r"<start_of_turn>\s*(user|model)", asked.text)
        return [*found, Finding.of("gemma-chat" if gemma else "foreign", template=template.name)]
    found += (Finding.of(f"no-{field[1:-1]}") for field in missing)
    if not missing and order[0] != order[1]:
        # What is moved would be listed as taken out here and put in there.
        return [*found, Finding.of("order", published=_listed(order[0]), theirs=_listed(order[1]))]
    found += _differences(asked, ours, theirs)
    return [*found, *_guideline(asked, guidelines)]


def _likeness(ours: Sequence[Word], theirs: Sequence[Word]) -> float:
    sides = ([w.text for w in side if w.text.strip()] for side in (ours, theirs))
    return SequenceMatcher(None, *sides, autojunk=False).ratio()


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(field[1:-1] for field in fields)


def _begin_of_sequence(
    asked: Asked, ours: Sequence[Word], theirs: Sequence[Word]
) -> Iterator[Finding]:
    own = next((i for i, w in enumerate(theirs) if w.text != "<bos>"), len(theirs))
    count = own + bool(asked.adds_bos)
    if count > 1:
        place = _place(asked.text, ours, theirs, (0, 1), (0, own))
        yield Finding.of("bos-added") if asked.adds_bos else Finding.of("bos-doubled", [place])
    elif asked.adds_bos is None:
        yield Finding.of("bos-once" if own else "bos-by-tokenizer", certain=False)
    elif count == 0:
        yield Finding.of("bos-missing", [_place(asked.text, ours, theirs, (0, 1), (0, 0))])


def _margins(theirs: Sequence[Word]) -> list[int]:
    """Find the white space that begins lines, but for what ends the prompt."""
    return [
        i
        for i, w in enumerate(theirs[:-1])
        if w.text.isspace() and w.text != "\n" and (i == 0 or theirs[i - 1].text == "\n")
    ]


def _differences(asked: Asked, ours: Sequence[Word], theirs: Sequence[Word]) -> list[Finding]:
    by_kind: dict[str, list[Place]] = {}
    for mine, other in _opcodes(ours, theirs):
        kind = _kind(ours, theirs, mine, other)
        by_kind.setdefault(kind, []).append(_place(asked.text, ours, theirs, mine, other))
    return [Finding.of(kind, places) for kind, places in by_kind.items()]


def _opcodes(
    ours: Sequence[Word], theirs: Sequence[Word]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Pair the words [i1, i2) and [j1, j2) that differ; those close together are one pair."""
    matcher = SequenceMatcher(None, [w.text for w in ours], [w.text for w in theirs], False)
    found: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            continue
        if found:
            (i0, i), (j0, j) = found[-1]
            between = [w.text for w in ours[i:i1]]
            if len(between) <= _APART and not any(
                w == "\n" or w in FIELDS or w in _MARKERS for w in between
            ):
                found[-1] = ((i0, i2), (j0, j2))
                continue
        found.append(((i1, i2), (j1, j2)))
    return found


def _kind(
    ours: Sequence[Word],
    theirs: Sequence[Word],
    mine: tuple[int, int],
    other: tuple[int, int],
) -> str:
    """Say of which kind of `KINDS` a difference is."""
    taken = "".join(w.text for w in ours[slice(*mine)])
    given = "".join(w.text for w in theirs[slice(*other)])
    following = ours[mine[1]].text if mine[1] < len(ours) else ""
    at_end = other[1] == len(theirs)
    if at_end and given.endswith((" ", "\t")):
        return "ends-in-space"
    if any(marker in taken + given for marker in _MARKERS):
        return _turn(taken, given, at_end)
    if not (taken + given).strip():
        joined = [w.text for w in (*theirs[: other[0]][-1:], *theirs[other[1] :][:1])]
        return _spacing(taken, given, following, at_end, "\n" in joined)
    if taken.translate(_QUOTES) == given.translate(_QUOTES):
        return "quotes"
    for mark, kind in (("*", "bullet"), ("===", "rule")):
        if taken.strip() == mark or (mark in taken and not taken.replace(mark, "").strip()):
            return kind
    if at_end and not taken.strip():
        return "after-question"
    if mine == (0, 0):
        return "before-preamble"
    return _region(ours, mine[0])


def _turn(taken: str, given: str, at_end: bool) -> str:
    if at_end and "<start_of_turn>" in given:
        return "model-turn"
    if re.search(r"<start_of_turn>\s*(user|model|system)\b", given):
        return "turn-role"
    lost = sum(taken.count(m) - given.count(m) for m in _MARKERS)
    return "turn-missing" if lost > 0 else "turn-extra"


def _spacing(taken: str, given: str, following: str, at_end: bool, beside: bool) -> str:
    """Name a difference of white space; `beside` tells whether theirs has a line end next to it."""
    if at_end:
        return "ending"
    if "\n" in taken and "\n" not in given and not beside:
        return "newline-before-end" if following == "<end_of_turn>" else "joined"
    if "\n" in given and taken and "\n" not in taken:
        return "wrapped"
    return "blank-lines" if "\n" in taken + given else "spaces"


def _region(ours: Sequence[Word], at: int) -> str:
    """Name the part of a published prompt that a word of it is in."""
    before = [w.text for w in ours[: at + 1]]
    opened = before.count("<start_of_turn>")
    if not opened:
        return "preamble"
    if opened > before.count("<end_of_turn>"):
        return "heading-response" if opened > 1 else "heading-prompt"
    if "Does" in before:
        return "question"
    return "principle"


def _place(
    text: str,
    ours: Sequence[Word],
    theirs: Sequence[Word],
    mine: tuple[int, int],
    other: tuple[int, int],
) -> Place:
    """Show a difference with what is around it; both sides begin with what is before it."""
    at = theirs[other[0]].at if other[0] < len(theirs) else len(text)
    befores, sides = [], []
    for side, (start, end) in ((ours, mine), (theirs, other)):
        befores.append(_visible("".join(w.text for w in side[:start]))[-_AROUND:])
        changed = "".join(w.text for w in side[start:end])
        changed = _visible(changed, spaces=not any(map(str.isalnum, changed)))
        after = _visible("".join(w.text for w in side[end : end + _AROUND]))
        sides.append((changed[: 2 * _AROUND], after[:_AROUND]))
    width = max(map(len, befores))
    (taken, rest), (given, remainder) = sides
    return Place(
        line=text.count("\n", 0, at) + 1,
        column=at - (text.rfind("\n", 0, at) + 1) + 1,
        published=befores[0].rjust(width) + taken + rest,
        theirs=befores[1].rjust(width) + given + remainder,
        differs=((width, width + len(taken)), (width, width + len(given))),
    )


def _visible(text: str, *, spaces: bool = False) -> str:
    """Show what can't be seen: line ends, tabs, no-break spaces and, if wanted, spaces."""
    shown = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\ufeff": "⟨BOM⟩"}
    if spaces:
        shown[" "] = "·"
    return text.translate(str.maketrans(shown))


def _guideline(
    asked: Asked, published: Mapping[str, Mapping[Direction, str]]
) -> Iterator[Finding]:
    """Compare a guideline that is written out with the published ones."""
    text = asked.value("{guideline}")
    if text is None or _is_field(text):
        return
    heads = [id for id, texts in published.items() if _head(texts["prompt"]) in text]
    if len(heads) > 1:
        yield Finding.of("several-policies", policies=", ".join(heads))
        return
    texts = {(id, d): t for id, both in published.items() for d, t in both.items()}
    if (same := next((key for key, t in texts.items() if t == text), None)) is not None:
        if same[1] != asked.direction:
            yield Finding.of("guideline-direction", policy=same[0], other=same[1])
        return
    known = [key for key in texts if key[1] == asked.direction and _likeness_of(texts[key], text)]
    closest = max(known, key=lambda key: _ratio(texts[key], text), default=None)
    if closest is None:
        yield Finding.of("own-policy", certain=False)
        return
    ours = list(words(texts[closest]))
    start = asked.spans["{guideline}"][0]
    theirs = [Word(w.text, start + w.at) for w in words(text)]
    places = [_place(asked.text, ours, theirs, *pair) for pair in _opcodes(ours, theirs)]
    wrapped = " ".join(text.split()) == " ".join(texts[closest].split())
    kind = "guideline-wrapped" if wrapped else "guideline"
    yield Finding.of(kind, places, policy=closest[0])


def _is_field(text: str) -> bool:
    """Tell a placeholder, such as `{safety_policy}` or `[policy]`, from a guideline."""
    return bool(re.fullmatch(r"[\[{<$(]+\s*[.\w ]{1,40}\s*[\]}>)]*", text.strip()))


def _head(guideline: str) -> str:
    """Give what a guideline is called, with its quotes."""
    return guideline.partition(":")[0]


def _likeness_of(guideline: str, text: str) -> bool:
    return _head(guideline).strip('"').lower() in text.lower() or _ratio(guideline, text) > 0.7


def _ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a.split(), b.split(), autojunk=False).ratio()
