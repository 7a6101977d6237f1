"""`POST /v1/responses`.

What it takes and gives is the official client's, `openai.types.responses`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from shieldgate.dialects.interface import (
    Answer,
    CallerRequest,
    Endpoint,
    JsonObject,
    Problem,
    Refusal,
    Verdicts,
)
from shieldgate.dialects.openai import ACCOUNT, BEARER, OpenAIRoute, answering
from shieldgate.dialects.openai_moderation import response_moderation
from shieldgate.dialects.openai_responses_reply import (
    NOTHING_SPENT,
    answered,
    envelope,
    refused_message,
    refusing,
    split,
)
from shieldgate.dialects.openai_responses_request import ResponsesThread, plan_response
from shieldgate.dialects.openai_responses_stream import ResponsesStream
from shieldgate.dialects.plan import Plan
from shieldgate.openai.chat import ScreenedRequest
from shieldgate.openai.responses import ResponsesRequest
from shieldgate.policy import Profile

_RESPONSE = {"type": "object", "required": ["output"]}


class OpenAIResponses(OpenAIRoute):
    """OpenAI's Responses."""

    name = "respond"
    description = """Answer by the upstream model, in OpenAI's Responses.

    Screened like a chat. `previous_response_id` and references to items are known where they went
    through here; a conversation, a stored prompt and `background` are refused.
    """
    route = "/v1/responses"
    request_model: type[BaseModel] = ResponsesRequest
    endpoint = Endpoint("/responses", BEARER, ACCOUNT)
    prompt_param = "input"
    choices_param: str | None = None
    responses: Mapping[int | str, dict[str, Any]] = answering(_RESPONSE)

    def read(self, request: ScreenedRequest) -> CallerRequest:
        """Read a request, and what it goes on with."""
        read = super().read(request)
        return replace(read, thread=ResponsesThread(read.body))

    def plan(self, body: JsonObject, profile: Profile) -> Plan:
        """Say what is judged of a body."""
        return plan_response(body, profile)

    def moderation(self, verdicts: Verdicts) -> dict[str, Any]:
        """Write one result for each direction."""
        return response_moderation(verdicts)

    def answers(self, reply: JsonObject, body: JsonObject) -> list[Answer]:
        """Read the one answer of a reply: its items, and what of it is no echo of the request."""
        if not isinstance(reply.get("output"), list):
            return []
        found = answered(reply, body)
        return [Answer(0, found.strands, bool(found.unscreenable))]

    def screened(
        self,
        reply: JsonObject,
        stopped: Sequence[bool],
        refusal: Refusal,
        verdicts: Verdicts | None,
    ) -> dict[str, Any]:
        """Write a reply, with a refusal in place of all its items where it is stopped."""
        if not any(stopped):
            return {**reply, **self.told(verdicts)}
        # Nothing is known of the request, so that what repeats it is left out.
        passed = {**envelope({}), **split(reply, {})[0]}
        return {**refusing(passed, [refused_message(refusal)]), **self.told(verdicts)}

    def refused(
        self, body: JsonObject, choices: int, refusal: Refusal, verdicts: Verdicts, *, unasked: bool
    ) -> dict[str, Any]:
        """Write a response that refuses; what a model that was asked has spent, nobody knows."""
        usage = {"usage": NOTHING_SPENT} if unasked else {}
        made = refusing(envelope(body), [refused_message(refusal)])
        return {**made, **usage, **self.told(verdicts)}

    def stream(
        self, body: JsonObject, choices: int, *, enforces: bool = True, counts_usage: bool = False
    ) -> ResponsesStream:
        """Begin a streamed response; its last event tells the usage, whatever is counted."""
        return ResponsesStream(body, self.told)

    def error(self, problem: Problem) -> dict[str, Any]:
        """Write an error; where upstream may not have this API, say what to ask instead."""
        if (problem.status, problem.code) == (404, "upstream_error"):
            hint = (
                f"If upstream has no {self.endpoint.path}, ask for chats: /v1/chat/completions is "
                "screened as well."
            )
            problem = replace(problem, message=f"{problem.message} {hint}")
        return super().error(problem)
