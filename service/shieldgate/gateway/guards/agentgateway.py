"""agentgateway's webhook: https://agentgateway.dev/docs/standalone/latest/llm/guardrails/webhook."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field

from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.guards.calls import Calls
from shieldgate.gateway.guards.guard import Asked, Found, Guard
from shieldgate.gateway.services import ServicesDep
from shieldgate.gateway.state import state_of
from shieldgate.openai.chat import WritableRequest
from shieldgate.openai.text import Text

router = APIRouter()

_CHAT = OpenAIChat()
_BLOCKED = 403
_ERRORS = declared(*WITH_A_BODY, 429)

CallId = Annotated[str | None, Header(alias="x-shieldgate-call-id", max_length=200)]
Profile = Annotated[Text | None, Header(alias="x-shieldgate-profile", max_length=200)]


class Messages(BaseModel):
    """What the model is sent."""

    model_config = ConfigDict(frozen=True)

    messages: list[Any] = Field(
        max_length=10_000, examples=[[{"role": "user", "content": "How do I bake bread?"}]]
    )


class Choices(BaseModel):
    """What the model answers, or a window of it."""

    model_config = ConfigDict(frozen=True)

    choices: list[dict[str, Any]] = Field(
        max_length=1_000, examples=[[{"message": {"role": "assistant", "content": "Slowly."}}]]
    )


class PromptRequest(WritableRequest):
    """A request on its way to the model."""

    model_config = ConfigDict(frozen=True)

    body: Messages


class AnswerRequest(WritableRequest):
    """A reply on its way back."""

    model_config = ConfigDict(frozen=True)

    body: Choices


class Pass(BaseModel):
    """Let it pass; a reason is only for logs."""

    reason: str


class Reject(BaseModel):
    """Answer instead. Without all of `body` and `status_code` agentgateway reads a `Pass`."""

    body: str
    status_code: int
    reason: str


class WebhookAction(BaseModel):
    """What becomes of it."""

    action: Reject | Pass


@router.post("/request", responses=_ERRORS)
async def prompt(
    body: PromptRequest,
    request: Request,
    services: ServicesDep,
    call_id: CallId = None,
    profile: Profile = None,
) -> WebhookAction:
    """Judge a request for agentgateway's webhook.

    With `x-shieldgate-call-id` its reply is judged with it, where that comes with the same.
    """
    guard = Guard.of(request, services, profile=profile)
    plan = guard.plan(_CHAT, body.body.model_dump())
    found = await guard.prompts(plan)
    if call_id and not found.stops:
        await _calls(request, services).begin([call_id], Asked.of(plan))
    return _action(found, "prompt")


@router.post("/response", responses=_ERRORS)
async def answer(
    body: AnswerRequest,
    request: Request,
    services: ServicesDep,
    call_id: CallId = None,
    profile: Profile = None,
) -> WebhookAction:
    """Judge a reply for agentgateway's webhook, or a window of one that is streamed."""
    guard = Guard.of(request, services, profile=profile)
    known = (await _calls(request, services).find([call_id])).get(call_id) if call_id else None
    answers = _CHAT.answers(body.body.model_dump())
    found = await guard.answers(answers, known.asked if known else [Asked("")])
    return _action(found, "answer")


def _calls(request: Request, services: ServicesDep) -> Calls:
    return Calls(services.history, state_of(request.scope).caller)


def _action(found: Found, what: str) -> WebhookAction:
    if not found.stops:
        return WebhookAction(action=Pass(reason="nothing was blocked"))
    reason = found.reason(what)
    return WebhookAction(action=Reject(body=reason, status_code=_BLOCKED, reason=reason))
