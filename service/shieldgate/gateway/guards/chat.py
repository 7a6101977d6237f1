"""A guard that is asked by chat and answers as Llama Guard does."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.guards.guard import Found, Guard
from shieldgate.gateway.services import ServicesDep
from shieldgate.openai.chat import DONE, WritableRequest
from shieldgate.openai.text import Text
from shieldgate.sse import Event, json_event

router = APIRouter()

_CHAT = OpenAIChat()
_NOTHING_SPENT = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class GuardChatRequest(WritableRequest):
    """A conversation to judge; how an answer is to be sampled means nothing here."""

    model_config = ConfigDict(frozen=True)

    model: Text | None = Field(None, max_length=200)
    messages: list[Any] = Field(
        min_length=1, max_length=10_000, examples=[[{"role": "user", "content": "Hello"}]]
    )
    stream: StrictBool | None = None


class GuardMessage(BaseModel):
    """`safe`, or `unsafe` and in a second line the policies."""

    role: str
    content: str


class GuardChoice(BaseModel):
    """The one choice."""

    index: int
    message: GuardMessage
    finish_reason: str


class GuardCompletion(BaseModel):
    """A chat completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[GuardChoice]
    usage: dict[str, int]


_ANSWERED: dict[str, Any] = {
    "model": GuardCompletion,
    "content": {"text/event-stream": {"itemSchema": {"type": "object"}}},
}


@router.post(
    "/v1/guards/chat/completions",
    response_class=Response,
    responses={200: _ANSWERED, **declared(*WITH_A_BODY, 429)},
)
async def guard_chat(body: GuardChatRequest, request: Request, services: ServicesDep) -> Response:
    """Judge a conversation, and answer `safe`, or `unsafe` and the policies.

    One that ends with the assistant is an answer, judged with its prompt. `model` may name a
    profile, which is judged too.
    """
    book = services.policies.current
    named = book.meant(body.model, services.screener.name)
    guard = Guard.of(request, services, profile=named.name if named else None, may_open=False)
    found = await guard.prompts(guard.plan(_CHAT, {"messages": body.messages}))
    streamed = bool(body.stream)
    said = {"role": "assistant", "content": _verdict(found)}
    choice = {"index": 0, "delta" if streamed else "message": said, "finish_reason": "stop"}
    reply = {**_CHAT.envelope(body.model_dump(), streamed=streamed), "choices": [choice]}
    if streamed:
        data = json_event(reply) + Event(DONE).encode()
        return Response(data, media_type="text/event-stream")
    return JSONResponse({**reply, "usage": _NOTHING_SPENT})


def _verdict(found: Found) -> str:
    if not found.stops:
        return "safe"
    return f"unsafe\n{','.join(found.blocking) or 'unscreenable'}"
