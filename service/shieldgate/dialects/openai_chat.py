"""`POST /v1/chat/completions`."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from shieldgate.dialects.beside import field_items, material_beside
from shieldgate.dialects.conversation import Message, converse, definitions
from shieldgate.dialects.interface import Endpoint, JsonObject, Refusal
from shieldgate.dialects.openai import ACCOUNT, BEARER, FILTERED
from shieldgate.dialects.openai_choices import ChoicesRoute
from shieldgate.dialects.openai_request import CHAT_FIELDS
from shieldgate.dialects.openai_text import ROLES, contents
from shieldgate.dialects.plan import Plan, Subject, distinct
from shieldgate.openai.chat import ChatRequest
from shieldgate.policy import Profile

_DEFINITIONS = ("tools", "functions")
_OF_TOOLS = ("type", "function", "custom", "name", "description", "parameters")
# What a chat is made of, and judged by what makes plans of it.
_CHAT = ("messages", "response_format", "modalities", *_DEFINITIONS)


class OpenAIChat(ChoicesRoute):
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
        delta = ({} if begun else {"role": "assistant"}) | _said(refusal.after(begun=begun))
        choice = {"index": index, "logprobs": None}
        # Apart, because the official client overlooks a reason to finish in the first chunk.
        return [
            {**choice, "delta": delta, "finish_reason": None},
            {**choice, "delta": {}, "finish_reason": FILTERED},
        ]


def _said(refusal: Refusal) -> dict[str, str]:
    return {"content" if refusal.as_content else "refusal": refusal.text}


def plan_chat(body: JsonObject, profile: Profile) -> Plan:
    """Say what is judged of a body that was read as a ChatRequest."""
    messages = [
        Message(_role(message), f"messages[{place}]", contents(message))
        for place, message in enumerate(body["messages"])
    ]
    tools = list(field_items(body, _DEFINITIONS))
    found = converse(messages, profile, {_tool_name(tool) for _, tool in tools})
    subjects = list(found.subjects)
    if profile.instructions == "judge":
        subjects += definitions(tools, _OF_TOOLS, [_tool_name(tool) for _, tool in tools])
        subjects += _response_format(body)
    texts, unreadable = material_beside(body, CHAT_FIELDS, _CHAT)
    modalities = [] if body.get("modalities") in (None, [], ["text"]) else ["modalities"]
    return Plan(
        distinct([*subjects, *texts]),
        (*found.unscreenable, *modalities, *unreadable),
        contexts=(found.context,),
        choices_each=body.get("n") or 1,
        prefill=found.prefill,
    )


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    # Whoever isn't known speaks as a user, whose words are judged in every case.
    return role if role in ROLES else "user"


def _tool_name(tool: Any) -> str:
    if not isinstance(tool, dict):
        return ""
    for inner in (tool.get("function"), tool.get("custom"), tool):
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            return str(inner["name"])
    return ""


def _response_format(body: JsonObject) -> Iterator[Subject]:
    form = body.get("response_format")
    if form not in (None, {}, {"type": "text"}, {"type": "json_object"}):
        yield from definitions([("response_format", form)], (), ())
