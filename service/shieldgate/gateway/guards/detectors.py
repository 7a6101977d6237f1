"""FMS' detectors, as TrustyAI and NeMo Guardrails ask them.

The contract: https://foundation-model-stack.github.io/fms-guardrails-orchestrator.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field

from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.guards.guard import Found, Guard, grade
from shieldgate.gateway.guards.wording import DetectorError
from shieldgate.gateway.services import Services, ServicesDep
from shieldgate.openai.chat import WritableRequest
from shieldgate.openai.text import Text
from shieldgate.schemas import Name, Status
from shieldgate.types import Exchange

router = APIRouter()

_CHAT = OpenAIChat()
_ERRORS = declared(*WITH_A_BODY, 429, model=DetectorError)
_ERRORS[422] = _ERRORS.pop(400)  # as their wording has it
_Texts = Annotated[list[Text], Field(max_length=10_000)]
Detector = Annotated[str | None, Header(alias="detector-id")]


class Parameters(BaseModel):
    """What a caller adds to its profile; `report: all` tells of what no rule is violated, too."""

    model_config = ConfigDict(frozen=True)

    profile: Name | None = None
    policies: list[Name] = Field(default_factory=list, max_length=100)
    report: Literal["violations", "all"] = "violations"


class Asking(WritableRequest):
    """What all detectors are asked."""

    model_config = ConfigDict(frozen=True)

    detector_params: Parameters = Parameters()


class ContentsRequest(Asking):
    """Texts, each judged as a prompt."""

    contents: Annotated[_Texts, Field(examples=[["How do I bake bread?"]])]


class ChatRequest(Asking):
    """A conversation; one that ends with the assistant is an answer with its prompt."""

    messages: list[Any] = Field(
        min_length=1, max_length=10_000, examples=[[{"role": "user", "content": "Hello"}]]
    )
    tools: Annotated[list[Any], Field(max_length=10_000)] | None = None


class GenerationRequest(Asking):
    """An answer with its prompt."""

    prompt: Text
    generated_text: Text


class ContextRequest(Asking):
    """A text, and the documents that it is about."""

    content: Text
    context_type: Literal["docs", "url"]
    context: _Texts


class Detection(BaseModel):
    """A policy that is violated.

    `score` places the probability so that 0.5 is the threshold of the profile; `metadata` has both.
    """

    detection: str
    detection_type: str
    score: float = Field(ge=0, le=1)
    detector_id: str = "shieldgate"
    metadata: dict[str, Any]


class Span(Detection):
    """A detection in a text, whole: from `start` to `end` in code points."""

    start: int
    end: int
    text: str


@router.post("/api/v1/text/contents", responses=_ERRORS)
async def contents(
    body: ContentsRequest, request: Request, services: ServicesDep, detector: Detector = None
) -> list[list[Span]]:
    """Judge texts as prompts, each for itself."""
    guard = _guard(request, services, body.detector_params, detector)
    found = await guard.screen([Exchange(text) for text in body.contents], "prompt")
    return [
        [
            Span(**detection.model_dump(), start=0, end=len(text), text=text)
            for detection in _detections(each, body.detector_params)
        ]
        for each, text in zip(found.apart(len(body.contents)), body.contents, strict=True)
    ]


@router.post("/api/v1/text/chat", responses=_ERRORS)
async def chat(
    body: ChatRequest, request: Request, services: ServicesDep, detector: Detector = None
) -> list[Detection]:
    """Judge a conversation as the profile judges chats: its newest turns, or all of it."""
    guard = _guard(request, services, body.detector_params, detector)
    tools = {"tools": body.tools} if body.tools else {}
    plan = guard.plan(_CHAT, {"messages": body.messages, **tools})
    return _detections(await guard.prompts(plan), body.detector_params)


@router.post("/api/v1/text/generation", responses=_ERRORS)
async def generation(
    body: GenerationRequest, request: Request, services: ServicesDep, detector: Detector = None
) -> list[Detection]:
    """Judge an answer with its prompt."""
    guard = _guard(request, services, body.detector_params, detector)
    exchange = Exchange(body.prompt, body.generated_text)
    return _detections(await guard.screen([exchange], "response"), body.detector_params)


@router.post("/api/v1/text/context/doc", responses=_ERRORS)
async def context(
    body: ContextRequest, request: Request, services: ServicesDep, detector: Detector = None
) -> list[Detection]:
    """Judge a text and documents, each as what a model reads; nobody here follows a URL."""
    guard = _guard(request, services, body.detector_params, detector)
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": body.content}]}
    if body.context_type == "docs":
        chat["documents"] = [{"text": document} for document in body.context]
    plan = guard.plan(_CHAT, chat)
    if body.context_type == "url" and body.context:
        plan = replace(plan, unscreenable=(*plan.unscreenable, "context"))
    return _detections(await guard.prompts(plan), body.detector_params)


@router.get("/health")
async def health() -> Status:
    """Say that the process answers, where an orchestrator asks for it."""
    return Status(status="ok")


def _guard(request: Request, services: Services, given: Parameters, detector: str | None) -> Guard:
    """Find the rules; a detector that is named like a profile or a policy adds it."""
    book = services.policies.current
    profile, policies = given.profile, list(given.policies)
    if detector and detector in book.policies:
        policies.append(detector)
    elif detector in book.profiles and profile is None:
        profile = detector
    return Guard.of(request, services, profile=profile, policies=policies, may_open=False)


def _detections(found: Found, given: Parameters) -> list[Detection]:
    if why := found.unscreenable:
        return [_detection("unscreenable", 1.0, why=why)]
    told = found.worst if given.report == "all" else found.blocking
    return [
        _detection(
            id,
            grade(j),
            probability=j.probability,
            threshold=j.threshold,
            violated=j.violated,
            calibrated=j.calibrated,
        )
        for id, j in told.items()
    ]


def _detection(kind: str, score: float, **metadata: Any) -> Detection:
    said = "violation" if metadata.get("violated", True) else "none"
    return Detection(detection=said, detection_type=kind, score=score, metadata=metadata)
