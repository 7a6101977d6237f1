"""The turns of a conversation: which of them are judged, as what, and what an answer answers."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Any

import orjson

from shieldgate.dialects.looks import many_words
from shieldgate.dialects.plan import Subject, dealt_out
from shieldgate.dialects.text import Contents
from shieldgate.policy import Profile
from shieldgate.strands import (
    NAMES,
    Strands,
    decoded,
    spaced,
    strings_in,
    strings_of,
    voice,
    whole_and_parts,
)
from shieldgate.types import Exchange

INSTRUCTING = ("system", "developer")
# What of a JSON Schema has names of somebody's own, and what has words of the protocol.
_NAMING = ("properties", "patternProperties", "dependentSchemas", "definitions", "$defs")
_OF_SCHEMAS = ("type", "name", "format", "$ref", "$schema", "contentEncoding", "syntax")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was read: who speaks, the field that it stands in, and what it says."""

    role: str
    field: str
    contents: Contents


@dataclass(frozen=True, slots=True)
class Conversation:
    """What of a conversation is judged, and what its answer is judged with.

    `context` is the prompt that the answer answers, and `prefill` how it begins.
    """

    subjects: tuple[Subject, ...]
    unscreenable: tuple[str, ...]
    context: str
    prefill: str


def converse(
    messages: Sequence[Message], profile: Profile, tools: Collection[str] = ()
) -> Conversation:
    """Say what is judged of messages; names that are in `tools` are judged with the definitions.

    Always judged are the newest user turn and what follows it; `profile.history` says what is of
    the older turns. User messages in a row are one turn. The assistant's messages are judged as
    answers to the user turn before them, all others as prompts. Names that messages bring along
    are judged once for all of them.
    """
    turns = _turns(messages)
    older = 1 if profile.history == "latest" else profile.window
    users = [turn for turn in turns if turn.role == "user"][-older:]
    window = Subject.of("messages", [strand for turn in users for strand in turn.strands])
    judged = list(_judged(turns, profile))
    subjects = [turn.subject(asked) for turn, asked in judged if turn.role not in INSTRUCTING]
    subjects += [window, _names(messages, tools)]
    subjects += [turn.subject() for turn, _ in judged if turn.role in INSTRUCTING]
    spoken = [(turn.role, piece) for turn, _ in judged for piece in turn.pieces]
    for role in (None, *dict.fromkeys(role for role, _ in spoken)):
        # What others say in between makes no speaker look harmless.
        subjects += dealt_out("messages", (said for by, said in spoken if role in (None, by)))
    unscreenable = [
        f"{message.field}.{field}".rstrip(".")
        for message in messages
        for field in message.contents.unscreenable
    ]
    last = next((turn.text for turn in reversed(turns) if turn.role != "assistant"), "")
    ending = takewhile(lambda turn: turn.role == "assistant", reversed(turns))
    prefill = "\n".join(reversed([turn.text for turn in ending]))
    context = window.exchange.prompt or last
    return Conversation(tuple(subjects), tuple(unscreenable), context, prefill)


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    field: str
    strands: Strands
    text: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, role: str, field: str, strands: Strands) -> "_Turn":
        return cls(role, field, strands, *whole_and_parts(strands))

    @property
    def pieces(self) -> Sequence[str]:
        """Give the strings in it, or itself."""
        return strings_in(self.text) or [self.text]

    def subject(self, asked: str | None = None) -> Subject:
        """Judge it as a prompt, or as the answer to what was `asked`."""
        if asked is None:
            return Subject(self.field, Exchange(self.text, parts=self.parts))
        return Subject(self.field, Exchange(asked, self.text, parts=self.parts))


def _turns(messages: Sequence[Message]) -> list[_Turn]:
    """Make turns of messages; user messages in a row are one."""
    single = [(m.role, m.field, _said(m)) for m in messages]
    turns: list[_Turn] = []
    for role, group in groupby(single, lambda message: message[0]):
        row = list(group)
        if role == "user":
            row = [(role, row[0][1], [strand for _, _, said in row for strand in said])]
        turns += [_Turn.of(*message) for message in row]
    return turns


def _said(message: Message) -> list[tuple[str, str]]:
    return [strand for strand in message.contents.strands if voice(strand[0]) != NAMES]


def _judged(turns: Sequence[_Turn], profile: Profile) -> Iterator[tuple[_Turn, str | None]]:
    """Give the turns that are judged, those that are answers with what was asked."""
    users = [place for place, turn in enumerate(turns) if turn.role == "user"]
    first = 0
    if profile.history == "latest" and users:
        first = users[-1]
    elif profile.history == "window" and len(users) > profile.window:
        first = users[-profile.window]
    asked = ""
    for place, turn in enumerate(turns):
        if turn.role == "user":
            asked = turn.text
        if turn.role in INSTRUCTING:
            if profile.instructions == "judge":
                yield turn, None
        elif place >= first:
            yield turn, asked if turn.role == "assistant" else None


def _names(messages: Sequence[Message], tools: Collection[str]) -> Subject:
    """Give the names that messages bring along, joined."""
    names = dict.fromkeys(
        text
        for message in messages
        for strand, text in message.contents.strands
        if voice(strand) == NAMES
    )
    given = [decoded(name) for name in names if name not in tools]
    # One that is no word is a text by itself, too.
    texts = tuple(name for name in given if not name.isidentifier())
    return Subject("messages", Exchange(spaced(given), parts=texts if len(given) > 1 else ()))


def definitions(
    given: Sequence[tuple[str, Any]], known: Collection[str], names: Sequence[str]
) -> Iterator[Subject]:
    """Give definitions of tools, each with its place, as JSON, as a model is shown them.

    What of each is `known` to the protocol is judged without the rest, too; and so is what is
    spread over them: their names, those of properties, and texts of a word or two under one name.
    The schemas of answers are definitions, too.
    """
    for field, value in given:
        kept = {key: value[key] for key in known if key in value} if type(value) is dict else {}
        yield as_json(field, value, kept or value)
    said = list(names) if len(given) > 1 else []
    short: dict[str, list[str]] = defaultdict(list)
    ahead = [value for _, value in reversed(given)]
    while ahead:
        item = ahead.pop()
        if isinstance(item, list):
            ahead += item[::-1]
        elif isinstance(item, dict):
            for key, value in item.items():
                if key in _NAMING and isinstance(value, dict):
                    said += value
                elif isinstance(value, list):
                    short[key] += [each for each in value if isinstance(each, str)]
                elif isinstance(value, str) and value.count(" ") < 2 and key not in _OF_SCHEMAS:
                    short[key].append(value)
            ahead += [*item.values()][::-1]
    for words in (said, *short.values()):
        if many_words(words):
            yield Subject(given[0][0].partition("[")[0], Exchange(spaced(words)))


def as_json(field: str, *values: Any) -> Subject:
    """Judge a value as the JSON that a model is shown, and its texts without the JSON around them.

    Further values are judged by themselves, likewise.
    """
    whole, *known = [orjson.dumps(value).decode() for value in values]
    found = Subject.of(field, [("content/", whole)])
    texts = ["\n".join(text for text in strings_of(value) if " " in text) for value in values]
    parts = dict.fromkeys((*found.exchange.parts, *known, *texts))
    return Subject(
        field, replace(found.exchange, parts=tuple(p for p in parts if p not in ("", whole)))
    )
