"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import orjson
from pydantic import BaseModel

from shieldgate.dialects.interface import Endpoint, JsonObject, Refusal
from shieldgate.dialects.openai import ACCOUNT, BEARER, FILTERED, OpenAI
from shieldgate.dialects.openai_request import field_items, material_beside
from shieldgate.dialects.openai_text import contents
from shieldgate.dialects.plan import Plan, Subject, distinct
from shieldgate.openai.chat import ChatRequest
from shieldgate.policy import Profile
from shieldgate.types import Exchange

_INSTRUCTING = ("system", "developer")
_DEFINITIONS = ("tools", "functions")
# What a chat is made of, and judged by what makes plans of it.
_CHAT = ("messages", "response_format", *_DEFINITIONS)


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
    texts, unreadable = material_beside(body, _CHAT)
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
        contexts=(window or last,),
        choices_each=body.get("n") or 1,
        prefill=prefill,
    )


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


def _instructions(turns: Sequence[_Turn], body: JsonObject) -> Iterator[Subject]:
    """Give what tells the model how to behave; definitions as JSON, as a model is shown them."""
    for turn in turns:
        if turn.role in _INSTRUCTING:
            yield Subject(turn.field, Exchange(turn.text))
    for field, value in field_items(body, _DEFINITIONS):
        yield Subject(field, Exchange(orjson.dumps(value).decode()))
    form = body.get("response_format")
    if form not in (None, {}, {"type": "text"}, {"type": "json_object"}):
        yield Subject("response_format", Exchange(orjson.dumps(form).decode()))
