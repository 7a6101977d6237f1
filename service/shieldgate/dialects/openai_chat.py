"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Any

import orjson
from pydantic import BaseModel

from shieldgate.dialects.interface import Endpoint, JsonObject, Refusal
from shieldgate.dialects.openai import ACCOUNT, BEARER, FILTERED, OpenAI
from shieldgate.dialects.openai_request import CHAT_FIELDS, field_items, material_beside
from shieldgate.dialects.openai_text import INSTRUCTING, ROLES, contents
from shieldgate.dialects.plan import Plan, Subject, distinct
from shieldgate.dialects.text import Contents, many_words
from shieldgate.openai.chat import ChatRequest
from shieldgate.policy import Profile
from shieldgate.strands import (
    NAMES,
    Strands,
    decoded,
    spaced,
    strings_of,
    voice,
    whole_and_parts,
)
from shieldgate.types import Exchange

_DEFINITIONS = ("tools", "functions")
_OF_TOOLS = ("type", "function", "custom", "name", "description", "parameters")
# What a chat is made of, and judged by what makes plans of it.
_CHAT = ("messages", "response_format", "modalities", *_DEFINITIONS)


class OpenAIChat(OpenAI):
    """OpenAI's chat completions."""

    name = "chat"
    description = """Answer a chat with the upstream model.

    The prompts are judged before it is asked, or at the same time, and every choice of the
    answer before it leaves. `model` goes to upstream; the profile is the operator's. With the
    field `moderation` a caller may ask for more screening, and is told the verdicts.
    """
    route = "/v1/chat/completions"
    request_model: type[BaseModel] = ChatRequest
    endpoint = Endpoint("/chat/completions", BEARER, ACCOUNT)
    prompt_param = "messages"

    _id = "chatcmpl"
    _objects = ("chat.completion", "chat.completion.chunk")

    def plan(self, body: JsonObject, profile: Profile) -> Plan:
        """Say what is judged of a chat."""
        return plan_chat(body, profile)

    def stopped_choice(self, index: int, refusal: Refusal) -> dict[str, Any]:
        """Write a choice with a message that refuses."""
        message = {"role": "assistant", "content": None, "refusal": None, **_said(refusal)}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": FILTERED}

    def last_choices(self, index: int, refusal: Refusal, *, begun: bool) -> list[dict[str, Any]]:
        """Write the refusal, then the reason."""
        # Clients join the strings of all deltas, the role's too.
        delta = _said(refusal) if begun else {"role": "assistant", **_said(refusal)}
        if begun and refusal.as_content:
            # Apart from what of the answer has left.
            delta["content"] = f"\n\n{refusal.text}"
        choice = {"index": index, "logprobs": None}
        # Apart, because the official client overlooks a reason to finish in the first chunk.
        return [
            {**choice, "delta": delta, "finish_reason": None},
            {**choice, "delta": {}, "finish_reason": FILTERED},
        ]


def _said(refusal: Refusal) -> dict[str, str]:
    return {"content" if refusal.as_content else "refusal": refusal.text}


def plan_chat(body: JsonObject, profile: Profile) -> Plan:
    """Say what is judged of a body that was read as a ChatRequest.

    Always judged are the newest user turn and what follows it; `profile.history` says what is of
    the older turns. User messages in a row are one turn. The assistant's messages are judged as
    answers to the user turn before them, all others as prompts. Names that messages bring along
    are judged once for all of them.
    """
    messages: list[Any] = body["messages"]
    read = [contents(message) for message in messages]
    turns = _turns(messages, read)
    older = 1 if profile.history == "latest" else profile.window
    users = [turn for turn in turns if turn.role == "user"][-older:]
    window = Subject.of("messages", [strand for turn in users for strand in turn.strands])
    subjects = [*_conversation(turns, profile), window, *_names(read, body)]
    if profile.instructions == "judge":
        subjects += _instructions(turns, body)
    texts, unreadable = material_beside(body, CHAT_FIELDS, _CHAT)
    subjects += texts
    unscreenable = [
        f"messages[{place}].{field}".rstrip(".")
        for place, found in enumerate(read)
        for field in found.unscreenable
    ]
    if body.get("modalities") not in (None, [], ["text"]):
        unscreenable.append("modalities")
    unscreenable += unreadable
    last = next((turn.text for turn in reversed(turns) if turn.role != "assistant"), "")
    ending = takewhile(lambda turn: turn.role == "assistant", reversed(turns))
    prefill = "\n".join(reversed([turn.text for turn in ending]))
    return Plan(
        distinct(subjects),
        tuple(unscreenable),
        contexts=(window.exchange.prompt or last,),
        choices_each=body.get("n") or 1,
        prefill=prefill,
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    field: str
    strands: Strands
    text: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, role: str, place: int, strands: Strands) -> "_Turn":
        return cls(role, f"messages[{place}]", strands, *whole_and_parts(strands))


def _turns(messages: Sequence[Any], read: Sequence[Contents]) -> list[_Turn]:
    """Make turns of messages; user messages in a row are one."""
    single = [
        (_role(message), place, [s for s in found.strands if voice(s[0]) != NAMES])
        for place, (message, found) in enumerate(zip(messages, read, strict=True))
    ]
    turns: list[_Turn] = []
    for role, group in groupby(single, lambda message: message[0]):
        row = list(group)
        if role == "user":
            row = [(role, row[0][1], [strand for _, _, said in row for strand in said])]
        turns += [_Turn.of(*message) for message in row]
    return turns


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    # Whoever isn't known speaks as a user, whose words are judged in every case.
    return role if role in ROLES else "user"


def _conversation(turns: Sequence[_Turn], profile: Profile) -> Iterator[Subject]:
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
        if place >= first and turn.role not in INSTRUCTING:
            prompt, response = turn.text, None
            if turn.role == "assistant":
                prompt, response = asked, turn.text
            yield Subject(turn.field, Exchange(prompt, response, parts=turn.parts))


def _names(read: Sequence[Contents], body: JsonObject) -> Iterator[Subject]:
    """Give the names that messages bring along, joined; those of tools are judged with these."""
    tools = {_tool_name(tool) for _, tool in field_items(body, _DEFINITIONS)}
    names = dict.fromkeys(
        text for found in read for strand, text in found.strands if voice(strand) == NAMES
    )
    given = [decoded(name) for name in names if name not in tools]
    # One that is no word is a text by itself, too.
    texts = tuple(name for name in given if not name.isidentifier())
    yield Subject("messages", Exchange(spaced(given), parts=texts if len(given) > 1 else ()))


def _tool_name(tool: Any) -> str:
    if not isinstance(tool, dict):
        return ""
    for inner in (tool.get("function"), tool.get("custom"), tool):
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            return str(inner["name"])
    return ""


def _instructions(turns: Sequence[_Turn], body: JsonObject) -> Iterator[Subject]:
    """Give what tells the model how to behave; definitions as JSON, as a model is shown them."""
    for turn in turns:
        if turn.role in INSTRUCTING:
            yield Subject(turn.field, Exchange(turn.text, parts=turn.parts))
    definitions = list(field_items(body, _DEFINITIONS))
    for field, value in definitions:
        known = {key: value[key] for key in _OF_TOOLS if key in value} if type(value) is dict else 0
        yield _json(field, value, known or value)
    yield from _spread([value for _, value in definitions])
    form = body.get("response_format")
    if form not in (None, {}, {"type": "text"}, {"type": "json_object"}):
        yield _json("response_format", form)


def _spread(definitions: list[Any]) -> Iterator[Subject]:
    """Give what is spread over definitions: their names, and texts of a word or two."""
    names = [_tool_name(tool) for tool in definitions if len(definitions) > 1]
    short: list[str] = []
    ahead = definitions[::-1]
    while ahead:
        item = ahead.pop()
        if isinstance(item, list):
            short += [each for each in item if isinstance(each, str)]
            ahead += item[::-1]
        elif isinstance(item, dict):
            if isinstance(properties := item.get("properties"), dict):
                names += properties
            if isinstance(said := item.get("description"), str) and said.count(" ") < 2:
                short.append(said)
            ahead += [*item.values()][::-1]
    for words in (names, short):
        if many_words(words):
            yield Subject("tools", Exchange(spaced(words)))


def _json(field: str, *values: Any) -> Subject:
    """Judge JSON as it is, and its texts without the JSON around them."""
    whole, *known = [orjson.dumps(value).decode() for value in values]
    found = Subject.of(field, [("content/", whole)])
    texts = "\n".join(text for text in strings_of(values[0]) if " " in text)
    parts = dict.fromkeys((*found.exchange.parts, *known, texts))
    return Subject(
        field, replace(found.exchange, parts=tuple(p for p in parts if p not in ("", whole)))
    )
