"""What OpenAI's APIs share as dialects."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from shieldgate.dialects.interface import (
    CallerRequest,
    Credential,
    Endpoint,
    JsonObject,
    Problem,
    Verdicts,
)
from shieldgate.dialects.openai_moderation import filter_results, moderation
from shieldgate.dialects.plan import Plan
from shieldgate.openai.chat import (
    DONE,
    InlineModeration,
    ScreenedRequest,
    Screening,
    ScreeningPolicy,
)
from shieldgate.openai.errors import ErrorBody, ErrorEnvelope
from shieldgate.policy import AddedScreening, Profile
from shieldgate.sse import Event

BEARER = Credential("authorization", "Bearer")
# Azure's clients show a key in the last one, and several gateways take the one before.
CREDENTIALS = (BEARER, Credential("x-api-key"), Credential("api-key"))
ACCOUNT = (*(c.header for c in CREDENTIALS), "openai-organization", "openai-project")
# Upstream's list of models, which belongs to no chat.
MODELS = Endpoint("/models", BEARER, ACCOUNT)

FILTERED = "content_filter"

_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_ERROR = {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"}
_BLOCKED = {"type": "object", "required": ["error", "moderation"]}
_OF_UPSTREAM = {"model": ErrorEnvelope, "description": "Upstream's own status and error."}


def answering(schema: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Declare what comes back, for OpenAPI; a whole reply has this schema."""
    return {
        200: {
            "description": "The answer, in the form and with the fields that upstream gave it; "
            "`moderation` beside them where that was asked for or something happened.",
            "content": {
                "application/json": {"schema": schema},
                "text/event-stream": {"itemSchema": _EVENT},
            },
        },
        400: {
            "description": "The request is wrong, and `param` names the field; or its prompt was "
            "blocked, and `code` is `content_filter`.",
            "content": {"application/json": {"schema": {"anyOf": [_ERROR, _BLOCKED]}}},
        },
        "4XX": _OF_UPSTREAM,
        "5XX": _OF_UPSTREAM,
    }


class OpenAIRoute(ABC):
    """What OpenAI's APIs have in common: keys, errors, and how verdicts are asked for and told."""

    name: str
    description: str
    route: str
    request_model: type[BaseModel]
    endpoint: Endpoint
    prompt_param: str
    error_model: type[BaseModel] = ErrorEnvelope
    credentials: tuple[Credential, ...] = CREDENTIALS
    request_id = "x-request-id"
    choices_param: str | None
    on_block: Literal["error", "refusal"] = "error"
    responses: Mapping[int | str, dict[str, Any]]

    @abstractmethod
    def plan(self, body: JsonObject, profile: Profile) -> Plan:
        """Say what is judged of a body."""

    def read(self, request: ScreenedRequest) -> CallerRequest:
        """Read a request; a field `moderation` without a policy asks for scores both ways."""
        body = request.for_upstream()
        return CallerRequest(body, bool(body.get("stream")), added_screening(request.moderation))

    def moderation(self, verdicts: Verdicts) -> dict[str, Any]:
        """Write the field `moderation` of a reply."""
        return moderation(verdicts)

    def told(self, verdicts: Verdicts | None) -> dict[str, Any]:
        """Write what a reply tells of its verdicts, if anything."""
        return {"moderation": self.moderation(verdicts)} if verdicts else {}

    def blocked(self, verdicts: Verdicts) -> dict[str, Any]:
        """Write the body of the 400 that says that a prompt was blocked."""
        blocking = next(j.verdict for j in verdicts.inputs if j.verdict.action.stops)
        return {
            "error": {
                "message": f"The prompt was blocked. It violates: {', '.join(blocking.violated)}.",
                "type": _error_type(400),
                "param": self.prompt_param,
                "code": FILTERED,
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": filter_results(blocking),
                },
            },
            **self.told(verdicts),
        }

    def is_end(self, event: Event) -> bool:
        """Recognise `[DONE]`, which not every server sends."""
        return event.data == DONE

    def status(self, problem: Problem) -> int:
        """Take the status as it is."""
        return problem.status

    def error(self, problem: Problem) -> dict[str, Any]:
        """Write an error in OpenAI's envelope."""
        body = ErrorBody(
            message=problem.message,
            type=problem.type or _error_type(problem.status),
            param=problem.param,
            code=problem.code,
        )
        return ErrorEnvelope(error=body).model_dump()


def added_screening(asked: InlineModeration | None) -> AddedScreening | None:
    """Read the field `moderation`; without a policy it asks for scores in both directions."""
    if asked is None:
        return None
    score = Screening(mode="score")
    policy = asked.policy or ScreeningPolicy(input=score, output=score)
    return AddedScreening(
        asked.model,
        {
            "prompt": policy.input.mode if policy.input else None,
            "response": policy.output.mode if policy.output else None,
        },
    )


def _error_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
