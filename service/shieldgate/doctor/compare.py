"""Somebody's prompt and a published one in, their differences out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from shieldgate.doctor.classify import MARKERS, Difference
from shieldgate.doctor.findings import Finding, Place, Span
from shieldgate.doctor.prompts import FIELDS, Asked, Word, words
from shieldgate.prompt import TEMPLATES, Template
from shieldgate.types import DIRECTIONS, Direction

# Below this part of common words, a list of differences would say nothing, and a guideline is
# none of the published ones.
_ALIKE = 0.5
# Differences with so few words between them, on one line, are one.
_APART = 3


def published_words(template: Template, direction: Direction) -> list[Word] | None:
    """Cut a published format into words; None where it doesn't judge this direction."""
    source = template.for_prompt if direction == "prompt" else template.for_response
    return None if source is None else list(words(source))


def nearest(asked: Asked) -> Template:
    """Find the published format that shares most words with a prompt; `chat` wins ties."""
    theirs = _unbegun(asked.words())

    def likeness(template: Template) -> float:
        ours = published_words(template, asked.direction) or []
        return _matcher(_unbegun(ours), theirs).ratio()

    return max(TEMPLATES.values(), key=likeness)


def _unbegun(prompt: Sequence[Word]) -> list[Word]:
    return [w for w in prompt if w.text != "<bos>"]


def _matcher(ours: Sequence[Word], theirs: Sequence[Word]) -> SequenceMatcher[str]:
    return SequenceMatcher(None, [w.text for w in ours], [w.text for w in theirs], autojunk=False)


def compare(
    asked: Asked, template: Template, guidelines: Mapping[str, Mapping[Direction, str]]
) -> list[Finding]:
    """List how a prompt differs from a published format, which judges its direction.

    `guidelines` are the published ones by policy id.
    """
    ours = published_words(template, asked.direction) or []
    theirs = asked.words()
    found = list(_begin_of_sequence(asked, ours, theirs))
    ours = _unbegun(ours)
    while theirs and theirs[0].text == "<bos>":
        theirs = theirs[1:]
    if any(w.text == "\r\n" for w in theirs):
        found.append(Finding.of("line-ends"))
        theirs = [Word("\n", w.at) if w.text == "\r\n" else w for w in theirs]
    margins = _margins(theirs)
    if len(margins) > 1:
        pairs = _pairs(ours, theirs)
        around = (pair for pair in pairs if pair[1][0] <= margins[0] < pair[1][1])
        place = Place.of(asked.text, ours, theirs, next(around, pairs[0]))
        found.append(Finding.of("indented", [place], lines=len(margins)))
        theirs = [w for i, w in enumerate(theirs) if i not in margins]
    order = [[w.text for w in side if w.text in FIELDS] for side in (ours, theirs)]
    if _likeness(ours, theirs) < _ALIKE:
        gemma = re.search(r"<start_of_turn>\s*(user|model)", asked.text)
        return [*found, Finding.of("gemma-chat" if gemma else "foreign")]
    if order[0] != order[1] and set(order[0]) <= set(order[1]):
        # What is moved would be listed as taken out here and put in there.
        return [*found, Finding.of("order", published=_listed(order[0]), theirs=_listed(order[1]))]
    found += _differences(asked, ours, theirs)
    return [*found, *_guideline(asked, guidelines)]


def _likeness(ours: Sequence[Word], theirs: Sequence[Word]) -> float:
    """Tell which part of the words both share, white space aside."""
    one, other = ([w for w in side if w.text.strip()] for side in (ours, theirs))
    return _matcher(one, other).ratio()


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(field[1:-1] for field in fields)


def _begin_of_sequence(
    asked: Asked, ours: Sequence[Word], theirs: Sequence[Word]
) -> Iterator[Finding]:
    own = next((i for i, w in enumerate(theirs) if w.text != "<bos>"), len(theirs))
    count = own + bool(asked.adds_bos)
    if count > 1:
        place = Place.of(asked.text, ours, theirs, ((0, 1), (0, own)))
        yield Finding.of("bos-added") if asked.adds_bos else Finding.of("bos-doubled", [place])
    elif asked.adds_bos is None:
        yield Finding.of("bos-once" if own else "bos-by-tokenizer", certain=False)
    elif count == 0:
        place = Place.of(asked.text, ours, theirs, ((0, 1), (0, 0)))
        yield Finding.of("bos-missing", [place])


def _margins(theirs: Sequence[Word]) -> list[int]:
    """Find the white space that begins lines, but for what ends the prompt."""
    return [
        i
        for i, w in enumerate(theirs[:-1])
        if w.text.isspace() and w.text != "\n" and (i == 0 or theirs[i - 1].text == "\n")
    ]


def _differences(asked: Asked, ours: Sequence[Word], theirs: Sequence[Word]) -> list[Finding]:
    by_kind: dict[str, list[Place]] = {}
    for pair in _pairs(ours, theirs):
        kind = Difference(ours, theirs, *pair).kind
        by_kind.setdefault(kind, []).append(Place.of(asked.text, ours, theirs, pair))
    return [Finding.of(kind, places) for kind, places in by_kind.items()]


def _pairs(ours: Sequence[Word], theirs: Sequence[Word]) -> list[tuple[Span, Span]]:
    """Pair the words that differ; those close together are one pair."""
    found: list[tuple[Span, Span]] = []
    for tag, i1, i2, j1, j2 in _matcher(ours, theirs).get_opcodes():
        if tag == "equal":
            continue
        start = i1, j1
        if found:
            (before, ended), (theirs_before, _) = found[-1]
            between = [w.text for w in ours[ended:i1]]
            if len(between) <= _APART and not {"\n", *FIELDS, *MARKERS}.intersection(between):
                found.pop()
                start = before, theirs_before
        found.append(((start[0], i2), (start[1], j2)))
    return found


def _guideline(asked: Asked, published: Mapping[str, Mapping[Direction, str]]) -> Iterator[Finding]:
    """Compare a guideline that is written out with the published ones."""
    text = asked.value("{guideline}")
    if text is None or _is_field(text):
        return
    heads = [id for id, texts in published.items() if _head(texts["prompt"]) in text.lower()]
    items = 1 + len(re.findall(r"\n\s*(?:[*•-]|\d+[.)])\s", text))
    if len(heads) > 1 or items > 1:
        policies = ", ".join(heads) if len(heads) > 1 else f"a list of {items}"
        yield Finding.of("several-policies", policies=policies)
        return
    policy = closest_policy(text, published)
    if policy is None:
        yield Finding.of("own-policy", certain=False)
        return
    meant = published[policy][asked.direction]
    other = next(d for d in DIRECTIONS if d != asked.direction)
    if text == published[policy][other]:
        yield Finding.of("guideline-direction", policy=policy, other=other)
    elif text != meant:
        ours, start = list(words(meant)), asked.spans["{guideline}"][0]
        theirs = [Word(w.text, start + w.at) for w in words(text)]
        places = [Place.of(asked.text, ours, theirs, pair) for pair in _pairs(ours, theirs)]
        kind = "guideline-wrapped" if text.split() == meant.split() else "guideline"
        yield Finding.of(kind, places, policy=policy)


def closest_policy(text: str, published: Mapping[str, Mapping[Direction, str]]) -> str | None:
    """Find the policy whose published guideline a text is, in other words perhaps."""
    alike = {
        id: max(_ratio(guideline, text) for guideline in texts.values())
        for id, texts in published.items()
    }
    best = max(alike, key=lambda id: (_head(published[id]["prompt"]) in text.lower(), alike[id]))
    named = _head(published[best]["prompt"]) in text.lower()
    return best if named or alike[best] > _ALIKE else None


def _is_field(text: str) -> bool:
    """Tell a placeholder, such as `{safety_policy}` or `[policy]`, from a guideline."""
    return bool(re.fullmatch(r"[\[{<$(]+[^\n\]}>]{1,60}[\]}>)]*", text.strip()))


def _head(guideline: str) -> str:
    """Give what a guideline is called, in small letters."""
    return guideline.partition(":")[0].strip('"').lower()


def _ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a.split(), b.split(), autojunk=False).ratio()
