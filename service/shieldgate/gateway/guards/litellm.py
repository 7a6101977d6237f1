"""LiteLLM's generic guardrail: https://docs.litellm.ai/docs/adding_provider/generic_guardrail_api."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from shieldgate.dialects.interface import Answer
from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.dialects.openai_text import contents
from shieldgate.dialects.plan import Plan
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.guards.calls import Calls
from shieldgate.gateway.guards.guard import Asked, Found, Guard
from shieldgate.gateway.services import ServicesDep
from shieldgate.gateway.state import state_of
from shieldgate.openai.chat import WritableRequest
from shieldgate.openai.text import Text
from shieldgate.schemas import Name

router = APIRouter()
log = structlog.get_logger(__name__)

_CHAT = OpenAIChat()
_Items = Annotated[list[Any], Field(max_length=10_000)]


class Added(BaseModel):
    """What the configuration or the caller adds to the profile; other parameters are not ours."""

    model_config = ConfigDict(frozen=True)

    profile: Name | None = None
    policies: list[Name] = Field(default_factory=list, max_length=100)


class GuardrailRequest(WritableRequest):
    """A request to a model, or the reply so far; what else LiteLLM tells is not read."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "input_type": "request",
                    "litellm_call_id": "8a1e9a0e-5b0c-4d1c-9d0e-0c9a3b1e7f11",
                    "texts": ["How do I bake bread?"],
                }
            ]
        },
    )

    input_type: Literal["request", "response"]
    litellm_call_id: Text | None = None
    litellm_trace_id: Text | None = None
    texts: Annotated[list[Text], Field(max_length=10_000)] | None = None
    images: _Items | None = None
    structured_messages: _Items | None = None
    tools: _Items | None = None
    tool_calls: _Items | None = None
    additional_provider_specific_params: Added | None = None


class GuardrailReply(BaseModel):
    """What becomes of it; `judged_with_prompt` is ours, and null for requests."""

    action: Literal["BLOCKED", "NONE"]
    blocked_reason: str | None = None
    stream_holdback_chars: list[int] | None = None
    judged_with_prompt: bool | None = None


@router.post(
    "/beta/litellm_basic_guardrail_api",
    responses=declared(*WITH_A_BODY, 429),
    response_model_exclude_none=True,
)
async def litellm(
    body: GuardrailRequest, request: Request, services: ServicesDep
) -> GuardrailReply:
    """Judge a request or a reply for LiteLLM's `generic_guardrail_api`.

    A block is a 200; where the guard fails it is a 503, which LiteLLM takes for unreachable. A
    reply is judged with the prompt that came before under its `litellm_call_id`.
    """
    added = body.additional_provider_specific_params or Added()
    guard = Guard.of(request, services, profile=added.profile, policies=added.policies)
    calls = Calls(services.history, state_of(request.scope).caller)
    ids = list(dict.fromkeys(filter(None, (body.litellm_call_id, body.litellm_trace_id))))
    if body.input_type == "request":
        plan = _plan(guard, body)
        found = await guard.prompts(plan)
        if not found.stops:
            await calls.begin(ids, Asked.of(plan))
        reply = _reply(found, "prompt")
    else:
        known = await calls.find(ids)
        if not known:
            log.info("a reply is judged without its prompt", mend="list pre_call in its mode, too")
        call = known.get(body.litellm_call_id or "")
        asked = next((each.asked for each in known.values()), (Asked(""),))
        found = await guard.answers(_answers(body), asked, growing=bool(call and call.answering))
        if call:
            await calls.answered(str(body.litellm_call_id), call)
        reply = _reply(found, "answer")
        reply.judged_with_prompt = bool(known)
        if guard.rules["response"].profile.streaming.mode == "full":
            reply.stream_holdback_chars = [len(text) for text in body.texts or ()]
    return reply


def _plan(guard: Guard, body: GuardrailRequest) -> Plan:
    """Say what is judged: the messages, else the texts, and what of these no message holds."""
    messages = body.structured_messages or []
    held = {text for message in messages for _, text in contents(message).strands}
    texts: list[Any] = [
        {"role": "user", "content": text} for text in body.texts or () if text not in held
    ]
    if not messages and body.tool_calls:
        # As of a tool: judged as what the model reads, and no beginning of an answer.
        texts.append({"role": "tool", "tool_calls": body.tool_calls})
    main, beside = (messages, texts) if messages else (texts, [])
    tools = {"tools": body.tools} if body.tools else {}
    plan = guard.plan(_CHAT, {"messages": main, **tools})
    other = guard.plan(_CHAT, {"messages": beside})
    images = ("images",) if body.images else ()
    unread = (*plan.unscreenable, *other.unscreenable, *images)
    return replace(plan.joined(other), unscreenable=unread)


def _answers(body: GuardrailRequest) -> list[Answer]:
    """Read the texts as choices; whose the calls of tools are is not told, so each has them."""
    calls = {"tool_calls": body.tool_calls} if body.tool_calls else {}
    choices = [
        {"index": place, "message": {"content": text, **calls}}
        for place, text in enumerate(body.texts or [""])
    ]
    images = [Answer(0, (), unscreenable=True)] if body.images else []
    return [*_CHAT.answers({"choices": choices}), *images]


def _reply(found: Found, what: str) -> GuardrailReply:
    if found.stops:
        return GuardrailReply(action="BLOCKED", blocked_reason=found.reason(what))
    return GuardrailReply(action="NONE")
