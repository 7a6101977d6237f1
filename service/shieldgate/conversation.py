"""Requests for completions in, what is to be judged out; pure.

The rule: what the model reads is judged. `docs/coverage.md` says of every field what becomes of
it, and is held to that by a test.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Any

import orjson

from shieldgate.openai.chat import contents, material
from shieldgate.policy import Profile
from shieldgate.types import Exchange

_INSTRUCTING = ("system", "developer")
_DEFINITIONS = ("tools", "functions")
# What a chat and a completion are made of, and judged by what makes plans of them.
_CHAT = ("messages", "response_format", *_DEFINITIONS)
_COMPLETION = ("prompt",)
_NAMED = (
    *("prediction", "documents", "chat_template", "chat_template_kwargs", "suffix"),
    "web_search_options",
)
# Prompts in another form than text, as vLLM and SGLang have them.
_UNREADABLE = {"prompt_embeds", "input_embeds", "prompt_token_ids", "input_ids"}
# What no model reads; `docs/coverage.md` has the reasons.
_PASSED = {
    *("model", "stop", "user", "safety_identifier", "metadata", "service_tier"),
    *("tool_choice", "function_call", "audio", "modalities"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("stream_options", "logit_bias"),
}
# Templates write these into the prompt, so that only what is known of them passes.
_EFFORTS = {"none", "minimal", "low", "medium", "high", "xhigh"}
_LEVELS = {"reasoning_effort": _EFFORTS, "verbosity": _EFFORTS}


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to judge, and the field of the request that it stands in."""

    field: str
    exchange: Exchange


@dataclass(frozen=True, slots=True)
class Plan:
    """What is judged of one request before its answers leave, and beside them.

    `prompts` are all judged, and one violation blocks the request; no two are the same.
    `unscreenable` lists the fields that hold what no scorer here can read. `contexts` has the
    prompts that the choices answer, `choices_each` choices to each of them. `begun` is the
    beginning of an answer that the model may be asked to go on with: judged with what it adds.
    """

    prompts: tuple[Subject, ...]
    unscreenable: tuple[str, ...]
    contexts: tuple[str, ...]
    choices_each: int
    begun: str = ""

    def context(self, choice: int) -> str:
        """Give the prompt with which the choice of this index is judged."""
        return self.contexts[min(choice // self.choices_each, len(self.contexts) - 1)]

    def joined(self, other: "Plan") -> "Plan":
        """Judge what another plan for the same request judges, too."""
        return replace(self, prompts=_distinct((*self.prompts, *other.prompts)))


def plan_chat(body: Mapping[str, Any], profile: Profile) -> Plan:
    """Say what is judged of a body that was read as a ChatRequest.

    Always judged are the newest user turn and what follows it; `profile.history` says what is of
    the older turns. User messages in a row are one turn. The assistant's messages are judged as
    answers to the user turn before them, all others as prompts.
    """
    messages: list[Any] = body["messages"]
    read = [contents(message) for message in messages]
    turns = _turns(messages, [found.text for found in read])
    older = 1 if profile.history == "latest" else profile.window
    window = "\n".join([turn.text for turn in turns if turn.role == "user"][-older:])
    subjects = [*_conversation(turns, profile), Subject("messages", Exchange(window))]
    if profile.instructions == "judge":
        subjects += _instructions(turns, body)
    texts, unreadable = _material(body, _CHAT)
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
    begun = "\n".join(reversed([turn.text for turn in ending]))
    return Plan(_distinct(subjects), tuple(unscreenable), (window or last,), 1, begun)


def plan_completion(body: Mapping[str, Any], profile: Profile) -> Plan:
    """Say what is judged of a body that was read as a CompletionRequest.

    Each prompt of a list is judged by itself, and has `n` choices. A `suffix` is judged by itself
    too, and as one text with each prompt, which the answers between them are judged with. Tokens
    are unscreenable.
    """
    given = body.get("prompt")
    if isinstance(given, list) and not all(isinstance(item, int) for item in given):
        prompts = {f"prompt[{place}]": item for place, item in enumerate(given)}
    else:
        prompts = {"prompt": given or ""}
    texts = {field: item if isinstance(item, str) else "" for field, item in prompts.items()}
    unscreenable = [field for field, item in prompts.items() if not isinstance(item, str)]
    suffix = material(body.get("suffix")).text
    around = {field: "\n".join(filter(None, (text, suffix))) for field, text in texts.items()}
    subjects = [Subject(field, Exchange(text)) for field, text in texts.items()]
    material_texts, unreadable = _material(body, _COMPLETION)
    subjects += material_texts
    subjects += [Subject(field, Exchange(text)) for field, text in around.items()]
    unscreenable += unreadable
    contexts = tuple(around.values()) or ("",)
    return Plan(_distinct(subjects), tuple(unscreenable), contexts, body.get("n") or 1)


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    field: str
    text: str


def _turns(messages: Sequence[Any], texts: Sequence[str]) -> list[_Turn]:
    """Make turns of messages; user messages in a row are one."""
    single = [
        _Turn(_role(message), f"messages[{place}]", text)
        for place, (message, text) in enumerate(zip(messages, texts, strict=True))
    ]
    turns: list[_Turn] = []
    for role, group in groupby(single, lambda turn: turn.role):
        row = list(group)
        if role == "user":
            row = [_Turn(role, row[0].field, "\n".join(turn.text for turn in row))]
        turns += row
    return turns


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    # Whoever isn't known speaks as a user, whose words are judged in every case.
    return role if role in (*_INSTRUCTING, "assistant", "tool", "function") else "user"


def _conversation(turns: Sequence[_Turn], profile: Profile) -> Iterator[Subject]:
    users = [place for place, turn in enumerate(turns) if turn.role == "user"]
    first = users[-1] if users and profile.history != "all" else 0
    asked = ""
    for place, turn in enumerate(turns):
        if turn.role == "user":
            asked = turn.text
        if place >= first and turn.role not in _INSTRUCTING:
            answers = turn.role == "assistant"
            yield Subject(
                turn.field, Exchange(asked, turn.text) if answers else Exchange(turn.text)
            )


def _instructions(turns: Sequence[_Turn], body: Mapping[str, Any]) -> Iterator[Subject]:
    """Give what tells the model how to behave; definitions as JSON, as a model is shown them."""
    for turn in turns:
        if turn.role in _INSTRUCTING:
            yield Subject(turn.field, Exchange(turn.text))
    for field, value in _items(body, _DEFINITIONS):
        yield Subject(field, Exchange(orjson.dumps(value).decode()))
    form = body.get("response_format")
    if form not in (None, {}, {"type": "text"}, {"type": "json_object"}):
        yield Subject("response_format", Exchange(orjson.dumps(form).decode()))


def _material(body: Mapping[str, Any], read: Iterable[str]) -> tuple[list[Subject], list[str]]:
    """Give the texts beside what was `read`, and name the fields that can't be.

    Documents are taken one by one. A field that is not known is named `body`, because its name
    may be any text.
    """
    subjects: list[Subject] = []
    unreadable: list[str] = []
    for name, value in body.items():
        known = _LEVELS.get(name, ())
        if name in read or name in _PASSED or (isinstance(value, str) and value in known):
            continue
        if name in _UNREADABLE and value is not None:
            unreadable.append(name)
            continue
        named = name if name in (*_NAMED, *_LEVELS) else "body"
        items = _items(body, (name,)) if name == "documents" else [(named, value)]
        for field, item in items:
            found = material(item)
            subjects.append(Subject(field, Exchange(found.text)))
            if found.unscreenable:
                unreadable.append(field)
    return subjects, unreadable


def _items(body: Mapping[str, Any], fields: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for field in fields:
        value = body.get(field)
        if isinstance(value, list):
            yield from ((f"{field}[{place}]", item) for place, item in enumerate(value))
        elif value is not None:
            yield field, value


def _distinct(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """Leave out what is blank, and what an earlier subject judges already."""
    first: dict[Exchange, Subject] = {}
    for subject in subjects:
        exchange = subject.exchange
        judged = exchange.prompt if exchange.response is None else exchange.response
        if judged.strip():
            first.setdefault(exchange, subject)
    return tuple(first.values())
