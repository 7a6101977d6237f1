"""What stands beside the messages of a request and beside the answers of a reply, and is judged.

Each dialect says of its fields what they are; one that nobody knows is treated alike in all.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shieldgate.dialects.fields import Anything
from shieldgate.dialects.looks import are_numbers, is_unreadable, many_words
from shieldgate.dialects.plan import Subject, dealt_out
from shieldgate.dialects.text import OTHER, Field, Found, read
from shieldgate.strands import spaced

# What tells apart places that look alike: items of lists, fields with a number.
_NUMBERS = re.compile("[0-9]+")


def material_beside(
    body: Mapping[str, Any], fields: Mapping[str, Field], elsewhere: Iterable[str]
) -> tuple[list[Subject], list[str]]:
    """Give the texts beside what is read `elsewhere`, and name the fields that can't be screened.

    Documents are taken one by one, and short texts in places that look alike as one. A field that
    is not known is named `body`, because its name may be any text; one whose name differs from a
    known one in case only is refused.
    """
    subjects: list[Subject] = []
    unreadable: list[str] = []
    unknown: list[str] = []
    alike: dict[str, list[str]] = defaultdict(list)
    elsewhere = set(elsewhere)
    folded = {name.casefold() for name in (*fields, *elsewhere)}
    for name, value in body.items():
        field = fields.get(name)
        if name in elsewhere or value is None:
            continue
        if field is None:
            unknown.append(name)
            if name.casefold() in folded:
                unreadable.append(name)
            elif is_unreadable(name) and isinstance(value, (str, list, dict)) and value:
                unreadable.append("body")
                continue
        at = name if field else "body"
        items = [(at, value)]
        if name == "documents":
            items = list(field_items(body, (name,)))
            if isinstance(value, list) and are_numbers(value):
                unreadable.append(name)
        for where, item in items:
            found = read(field or Anything(), item, where)
            subjects.append(Subject.of(where, found.strands))
            for place, text in found.strands:
                if not place.endswith(":"):
                    alike[_NUMBERS.sub("", place)].append(text)
            unreadable += [each or where for each in found.unscreenable]
    if many_words(unknown):
        subjects.append(Subject.of("body", [("other/", spaced(unknown))]))
    for texts in ([subject.exchange.prompt for subject in subjects], *alike.values()):
        subjects += dealt_out("body", texts)
    return subjects, unreadable


def field_items(body: Mapping[str, Any], fields: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """List the values of fields, those of lists one by one, each with its place."""
    for field in fields:
        value = body.get(field)
        if isinstance(value, list):
            yield from ((f"{field}[{place}]", item) for place, item in enumerate(value))
        elif value is not None:
            yield field, value


def part_around(
    around: Mapping[str, Any], fields: Field
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Part what stands around the answers of a reply: what passes, and what is judged.

    A field that nobody knows passes if it holds no text, and if the names of such are few words:
    these come last.
    """
    passed: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    unknown: list[str] = []
    for key, item in around.items():
        found = Found()
        fields.read({key: item}, found, "")
        own = [(f"{OTHER}/{key}:", key)]
        if found.unscreenable or found.strands not in ([], own):
            beside[key] = item
        else:
            passed[key] = item
            unknown += [key] * len(found.strands)
    if many_words(unknown):
        beside |= {key: passed.pop(key) for key in unknown}
        unknown = []
    return passed, beside, unknown
