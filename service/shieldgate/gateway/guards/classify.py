"""`POST /classify` as vLLM has it: https://docs.vllm.ai/en/stable/models/pooling_models.html."""

import math
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.guards.guard import Found, Guard, grade
from shieldgate.gateway.services import ServicesDep
from shieldgate.openai.chat import WritableRequest
from shieldgate.openai.text import Text
from shieldgate.types import Exchange

router = APIRouter()

_CHAT = OpenAIChat()
SAFE = "safe"
_BELOW = math.nextafter(0.5, 0)


class ClassifyRequest(WritableRequest):
    """Texts, each judged as a prompt, or a conversation."""

    model_config = ConfigDict(
        frozen=True, json_schema_extra={"examples": [{"input": ["How do I bake bread?"]}]}
    )

    model: Text | None = Field(None, max_length=200)
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=10_000)] | None = None
    messages: Annotated[list[Any], Field(min_length=1, max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "ClassifyRequest":
        if (self.input is None) == (self.messages is None):
            raise PydanticCustomError("shape", "Give either an input or messages")
        return self


class Classification(BaseModel):
    """The worst policy that is violated, or `safe`; `probs` are those of safe and of violated.

    They are placed so that 0.5 is the threshold of the profile.
    """

    index: int
    label: str
    probs: list[float]
    num_classes: int = 2


class Usage(BaseModel):
    """Nothing is counted."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class ClassifyReply(BaseModel):
    """One classification for each text."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: Usage = Usage()


@router.post("/classify", responses=declared(*WITH_A_BODY, 429))
async def classify(body: ClassifyRequest, request: Request, services: ServicesDep) -> ClassifyReply:
    """Judge texts as prompts, each for itself, by the profile that `model` adds."""
    book = services.policies.current
    named = book.meant(body.model, services.screener.name)
    guard = Guard.of(request, services, profile=named.name if named else None, may_open=False)
    if body.messages is not None:
        found = [await guard.prompts(guard.plan(_CHAT, {"messages": body.messages}))]
    else:
        texts = [body.input] if isinstance(body.input, str) else body.input or []
        judged = await guard.screen([Exchange(text) for text in texts], "prompt")
        found = judged.apart(len(texts))
    return ClassifyReply(
        id=f"classify-{uuid4().hex}",
        created=int(time()),
        model=services.screener.name,
        data=[_classification(place, each) for place, each in enumerate(found)],
    )


def _classification(index: int, found: Found) -> Classification:
    if found.unscreenable:
        return Classification(index=index, label="unscreenable", probs=[0.0, 1.0])
    stops = found.blocking
    graded = {id: grade(j) for id, j in (stops or found.worst).items()}
    worst = max(graded, key=lambda id: graded[id], default=SAFE)
    violated = graded.get(worst, 0.0)
    if not stops:  # one that is only monitored stops nothing
        worst, violated = SAFE, min(violated, _BELOW)
    return Classification(index=index, label=worst, probs=[1 - violated, violated])
