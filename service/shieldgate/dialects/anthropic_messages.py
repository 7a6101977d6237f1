"""`POST /v1/messages`, as Anthropic has it: https://docs.claude.com/en/api/messages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Declared

from shieldgate.dialects import anthropic_text as text
from shieldgate.dialects.anthropic_stream import (
    NOTHING_SPENT,
    MessageStream,
    envelope,
    known_usage,
    stop,
)
from shieldgate.dialects.beside import field_items, material_beside
from shieldgate.dialects.conversation import INSTRUCTING, Message, converse, definitions
from shieldgate.dialects.fields import Anything, Object, Passed, Unscreenable, known
from shieldgate.dialects.interface import (
    Answer,
    CallerRequest,
    Credential,
    Endpoint,
    JsonObject,
    Problem,
    Refusal,
    Verdicts,
)
from shieldgate.dialects.openai import BEARER, CREDENTIALS, added_screening
from shieldgate.dialects.openai_moderation import moderation
from shieldgate.dialects.plan import Plan, Subject, distinct
from shieldgate.dialects.text import Field, read, string_in
from shieldgate.openai.chat import ScreenedRequest
from shieldgate.policy import Profile
from shieldgate.sse import Event

_PASSES = ("anthropic-version", "anthropic-beta")
# The client shows a key as Bearer since its version 2, and did in x-api-key before.
_ACCOUNT = ("authorization", "x-api-key")
# Counts what a request would cost; no model answers, and only the number comes back.
COUNT_TOKENS = Endpoint("/messages/count_tokens", BEARER, _ACCOUNT, _PASSES)

# https://docs.claude.com/en/api/errors; 529 is the API's own word for "come again later".
_OVERLOADED = 529
_ERRORS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}
_TYPES = frozenset((*_ERRORS.values(), "invalid_request_error", "api_error"))

_TOOL = ("type", "name", "description", "input_schema")
_LEVEL = known("none", "low", "medium", "high", "xhigh", "max")
_KIND = known("enabled", "disabled", "adaptive", "between_tools")
_FIELDS: dict[str, Field] = {
    **dict.fromkeys(
        (
            *("model", "stop_sequences", "metadata", "cache_control", "service_tier", "speed"),
            *("inference_geo", "diagnostics", "user_profile_id", "workspace_id", "tool_choice"),
        ),
        Passed(),
    ),
    **dict.fromkeys(("max_tokens", "stream", "temperature", "top_k", "top_p"), Anything()),
    "thinking": Object(
        {
            "type": _KIND,
            "budget_tokens": Anything(),
            "display": known("summarized", "omitted"),
        }
    ),
    "output_config": Object({"effort": _LEVEL, "format": Passed()}),
    # What the model reads there stands elsewhere: files, tools of other servers, older turns.
    **dict.fromkeys(("container", "mcp_servers", "thread"), Unscreenable()),
}
_ELSEWHERE = ("messages", "system", "tools", "output_format")


class MessagesRequest(ScreenedRequest):
    """A chat; `messages` are read one by one, whatever they hold."""

    messages: list[Any] = Declared(
        max_length=10_000, examples=[[{"role": "user", "content": "How do I bake bread?"}]]
    )
    stream: bool | None = None


class MessagesErrorBody(BaseModel):
    """What went wrong, in the API's words for its kind; `code` and `param` are ours."""

    model_config = ConfigDict(frozen=True)

    type: str
    message: str
    code: str | None = None
    param: str | None = None


class MessagesError(BaseModel):
    """The body of every reply that is an error."""

    model_config = ConfigDict(frozen=True)

    type: Literal["error"] = "error"
    error: MessagesErrorBody


_OF_UPSTREAM = {"model": MessagesError, "description": "Upstream's own status and error."}


class AnthropicMessages:
    """Anthropic's Messages."""

    name = "messages"
    description = """Answer a chat with the upstream model, in the form of Anthropic's Messages.

    The prompts are judged before it is asked, or at the same time, and the answer before it
    leaves. What is blocked is a message with the `stop_reason` `refusal`, and its `stop_details`
    name the policies. With the field `moderation` a caller may ask for more screening, and is
    told the verdicts.
    """
    route = "/v1/messages"
    request_model: type[BaseModel] = MessagesRequest
    error_model: type[BaseModel] = MessagesError
    credentials: tuple[Credential, ...] = CREDENTIALS
    request_id = "request-id"
    endpoint = Endpoint("/messages", BEARER, _ACCOUNT, _PASSES)
    prompt_param = "messages"
    choices_param: str | None = None
    on_block: Literal["error", "refusal"] = "refusal"
    responses: Mapping[int | str, dict[str, Any]] = {
        200: {
            "description": "The answer, in the form and with the fields that upstream gave it; "
            "or a refusal, with `moderation` beside it.",
            "content": {
                "application/json": {"schema": {"type": "object", "required": ["content"]}},
                "text/event-stream": {"itemSchema": {"type": "object", "required": ["data"]}},
            },
        },
        _OVERLOADED: {
            "model": MessagesError,
            "description": "Nothing was judged: the scorer is busy, not loaded, or it failed.",
        },
        "4XX": _OF_UPSTREAM,
        "5XX": _OF_UPSTREAM,
    }

    def read(self, request: MessagesRequest) -> CallerRequest:
        """Read a request."""
        body = request.for_upstream()
        return CallerRequest(body, bool(body.get("stream")), added_screening(request.moderation))

    def plan(self, body: JsonObject, profile: Profile) -> Plan:
        """Say what is judged of a body; what tools gave is a turn of its own."""
        messages = [
            Message(_role(message), f"messages[{place}]", text.message(message))
            for place, message in enumerate(body["messages"])
        ]
        if body.get("system") is not None:
            messages.insert(0, Message(INSTRUCTING[0], "system", text.system(body["system"])))
        tools = list(field_items(body, ("tools",)))
        names = [string_in(tool, "name") for _, tool in tools]
        found = converse(messages, profile, set(names))
        subjects = list(found.subjects)
        if profile.instructions == "judge":
            subjects += [*definitions(tools, _TOOL, names), *_formats(body)]
        texts, unreadable = material_beside(body, _FIELDS, _ELSEWHERE)
        return Plan(
            distinct([*subjects, *texts]),
            (*found.unscreenable, *unreadable),
            contexts=(found.context,),
            prefill=found.prefill,
        )

    def answers(self, reply: JsonObject, body: JsonObject | None = None) -> list[Answer]:
        """Read a whole reply, which is one answer."""
        if not isinstance(reply.get("content"), list):
            return []
        said = read(text.REPLY, reply)
        return [Answer(0, said.strands, bool(said.unscreenable))]

    def screened(
        self,
        reply: JsonObject,
        stopped: Sequence[bool],
        refusal: Refusal,
        verdicts: Verdicts | None,
    ) -> dict[str, Any]:
        """Write a reply as it came, or a refusal that has spent as much."""
        if any(stopped):
            return _refused(reply, refusal, verdicts, known_usage(reply))
        return {**reply, **_told(verdicts)}

    def blocked(self, verdicts: Verdicts) -> dict[str, Any]:
        """Write the body of the 400 that says that a prompt was blocked."""
        blocking = next(j.verdict for j in verdicts.inputs if j.verdict.action.stops)
        message = f"The prompt was blocked. It violates: {', '.join(blocking.violated)}."
        body = self.error(Problem(400, "content_filter", message, self.prompt_param))
        return {**body, **_told(verdicts)}

    def refused(
        self, body: JsonObject, choices: int, refusal: Refusal, verdicts: Verdicts, *, unasked: bool
    ) -> dict[str, Any]:
        """Write a refusal; what a model that was asked has spent, nobody knows."""
        return _refused(body, refusal, verdicts, NOTHING_SPENT)

    def stream(
        self, body: JsonObject, choices: int, *, enforces: bool = True, counts_usage: bool = False
    ) -> MessageStream:
        """Begin a streamed reply."""
        return MessageStream(body)

    def is_end(self, event: Event) -> bool:
        """Recognise `message_stop`; some servers write OpenAI's end after it."""
        return event.name == "message_stop" or event.data == "[DONE]"

    def status(self, problem: Problem) -> int:
        """Say that a guard which can't be had just now is overloaded."""
        later = problem.status == 503 and "retry-after" in problem.headers
        return _OVERLOADED if later else problem.status

    def error(self, problem: Problem) -> dict[str, Any]:
        """Write an error in Anthropic's envelope."""
        status = self.status(problem)
        kind = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        body = MessagesErrorBody(
            type=problem.type if problem.type in _TYPES else kind,
            message=problem.message,
            code=problem.code,
            param=problem.param,
        )
        return MessagesError(error=body).model_dump(exclude_none=True)


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if text.only_results(message) and role == "user":
        return "tool"
    # Whoever isn't known speaks as a user, whose words are judged in every case.
    return role if role in text.ROLES else "user"


def _formats(body: JsonObject) -> Iterator[Subject]:
    """Give the schemas of answers that are asked for, which the model is shown."""
    config = body.get("output_config")
    within = config.get("format") if isinstance(config, dict) else None
    for field, form in (("output_config", within), ("output_format", body.get("output_format"))):
        if form:
            yield from definitions([(field, form)], (), ())


def _refused(
    given: JsonObject, refusal: Refusal, verdicts: Verdicts | None, usage: JsonObject
) -> dict[str, Any]:
    said = [{"type": "text", "text": refusal.text}] if refusal.as_content else []
    return {**envelope(given, said, usage), **stop(refusal, verdicts), **_told(verdicts)}


def _told(verdicts: Verdicts | None) -> dict[str, Any]:
    return {"moderation": moderation(verdicts)} if verdicts else {}
