"""Portkey's webhook: https://portkey.ai/docs/integrations/guardrails/bring-your-own-guardrails."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from shieldgate.dialects import Dialect
from shieldgate.dialects.anthropic_messages import AnthropicMessages
from shieldgate.dialects.fields import Anything
from shieldgate.dialects.interface import Answer
from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.dialects.openai_completions import OpenAICompletions
from shieldgate.dialects.text import read
from shieldgate.gateway.guards.guard import Asked, Guard
from shieldgate.gateway.guards.wording import WebhookData, WebhookReply
from shieldgate.gateway.services import ServicesDep
from shieldgate.openai.chat import WritableRequest
from shieldgate.openai.text import Text
from shieldgate.schemas import Name

router = APIRouter()

_CHAT = OpenAIChat()
_DIALECTS: dict[str, Dialect] = {
    "complete": OpenAICompletions(),
    "messages": AnthropicMessages(),
}


class Hooked(BaseModel):
    """A request or a reply; `text` is the last of it, and read where there is no `json`."""

    model_config = ConfigDict(frozen=True)

    content: dict[str, Any] | None = Field(None, alias="json")
    text: Text | None = None


class WebhookRequest(WritableRequest):
    """What Portkey tells before and after a model is asked; what is not listed is not read."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "eventType": "beforeRequestHook",
                    "requestType": "chatComplete",
                    "request": {"json": {"messages": [{"role": "user", "content": "Hello"}]}},
                }
            ]
        },
    )

    eventType: Literal["beforeRequestHook", "afterRequestHook"]  # noqa: N815
    requestType: Text | None = None  # noqa: N815
    request: Hooked
    response: Hooked | None = None


@router.post("/v1/guards/portkey")
async def portkey(
    body: WebhookRequest,
    request: Request,
    services: ServicesDep,
    profile: Annotated[Name | None, Query()] = None,
    deadline_ms: Annotated[int, Query(ge=100, le=60_000)] = 2500,
) -> WebhookReply:
    """Judge a request, or a reply with its request, for Portkey's webhook.

    Portkey passes what it has no verdict on within three seconds. So where nothing was judged, be
    it too late, wrong, or over a limit, the reply is a 200 with the verdict false all the same,
    unless the profile fails open.
    """
    guard = Guard.of(request, services, profile=profile, seconds=deadline_ms / 1000)
    dialect = _DIALECTS.get(body.requestType or "", _CHAT)
    plan = guard.plan(dialect, _asked(body.request))
    if body.eventType == "beforeRequestHook":
        what, found = "prompt", await guard.prompts(plan)
    else:
        answers = _answers(body, dialect)
        what, found = "answer", await guard.answers(answers, [Asked.of(plan)])
    reason = found.reason(what) if found.stops else None
    return WebhookReply(
        verdict=not found.stops, data=WebhookData(violated=list(found.blocking), reason=reason)
    )


def _asked(hooked: Hooked) -> dict[str, Any]:
    """Give the body that the model was sent; what it has no field for is judged as text."""
    if hooked.content is None:
        return {"messages": [{"role": "user", "content": hooked.text or ""}]}
    return {"messages": [], **{key: v for key, v in hooked.content.items() if key != "n"}}


def _answers(body: WebhookRequest, dialect: Dialect) -> list[Answer]:
    """Read the choices of a reply; of one in another form, every text."""
    hooked = body.response or Hooked()
    if body.requestType == "embed":  # numbers
        return []
    if hooked.content is None:
        said = (("content/", hooked.text),) if hooked.text else ()
        return [Answer(0, said, unscreenable=not said)]
    if answers := dialect.answers(hooked.content, {}):
        return answers
    found = read(Anything(), hooked.content)
    return [Answer(0, found.strands, bool(found.unscreenable))]
