"""The one table from errors to replies; a dialect words them, and no judged text is repeated."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shieldgate.dialects.interface import Problem, Wording
from shieldgate.errors import (
    ConfigurationError,
    ExceedsLimit,
    LimitReached,
    NotAllowed,
    NothingKept,
    Overloaded,
    ScorerUnavailable,
    ShieldgateError,
    StoreFailed,
    TextGone,
    TextTaken,
    TooLong,
    UnknownKey,
    UnknownName,
    UnsupportedLanguage,
    UpstreamError,
)
from shieldgate.gateway.state import state_of
from shieldgate.openai.errors import ErrorEnvelope, field_path

UPSTREAM_ID = "x-upstream-request-id"

log = structlog.get_logger(__name__)

RETRY_SECONDS = 5  # for failures that don't say themselves when to try again

# What is not listed here is a defect of ours: a 500, by way of the outermost middleware.
_REPLIES: Mapping[type[ShieldgateError], tuple[int, str]] = {
    UnknownKey: (401, "invalid_api_key"),
    NotAllowed: (403, "not_allowed"),
    LimitReached: (429, "rate_limit_exceeded"),
    ExceedsLimit: (413, "rate_limit_too_small"),
    UnknownName: (400, "unknown_name"),
    # The template has no words for judging a response, or the guideline leaves no room for it.
    ConfigurationError: (400, "unsupported"),
    UnsupportedLanguage: (400, UnsupportedLanguage.code),
    TooLong: (413, "text_too_long"),
    Overloaded: (429, "overloaded"),
    ScorerUnavailable: (503, ScorerUnavailable.code),
    NothingKept: (404, "texts_not_kept"),
    TextGone: (404, "text_gone"),
    TextTaken: (409, "text_taken"),
    StoreFailed: (503, "store_failed"),
}

_HTTP_CODES = {
    404: "unknown_url",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_large",
    415: "body_encoded",
}
_HTTP_MESSAGES = {
    404: "There is nothing at this URL. /docs lists what there is.",
    405: "This URL does not take this method. /docs lists what there is.",
}


_MEANINGS = {
    400: "The request is wrong, and `param` names the field.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    401: "There is no API key, or it is not one of this server's.",
    403: "The API key does not allow this.",
    409: "Somebody else was here before.",
    413: "The body, or a text in it, is too long, takes too long to judge, or holds more than the "
    "key may send in a minute.",
    415: "The body is compressed.",
    429: "The queue is full, or the key's limit reached; `Retry-After` says when to come again.",
    500: "A defect of ours; `x-request-id` finds it in the log.",
    503: "Nothing was judged: the scorer is not loaded, or it failed; or a database did.",
}
WITH_A_BODY = (400, 408, 413, 415, 503)
_COMPONENT = "#/components/schemas/{model}"


_WORDS = {
    "missing": "is missing",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "bool_type": "must be true or false",
    **dict.fromkeys(("model_attributes_type", "model_type", "dict_type"), "must be a JSON object"),
}
_NEAR = 0.8  # one path is nearly another, by the ratio of difflib
# What other APIs, and our own other routes, call the fields of a request.
_MEANT = {
    **dict.fromkeys(("inputs", "texts"), ("input", "exchanges")),
    **dict.fromkeys(("input", "text", "content", "prompts"), ("input", "prompt")),
    **dict.fromkeys(("answer", "completion", "output"), ("response",)),
    "prompt": ("input",),
    "policy": ("policies",),
    "profile": ("model",),
    "model": ("profile",),
}


def declared(
    *statuses: int, model: type[BaseModel] = ErrorEnvelope
) -> dict[int | str, dict[str, Any]]:
    """Describe errors for OpenAPI, whose components are to hold `model`.

    By its name, because of a model FastAPI makes a validator for each status of each route.
    """
    content = {"application/json": {"schema": {"$ref": _COMPONENT.format(model=model.__name__)}}}
    return {s: {"description": _MEANINGS[s], "content": content} for s in statuses}


def components(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """Give the schemas of models, and of those within them, by their names."""
    _, schemas = models_json_schema(
        [(model, "serialization") for model in models], ref_template=_COMPONENT
    )
    found: dict[str, Any] = schemas["$defs"]
    return found


class RequestError(Exception):
    """A request is well-formed and still can't be served; `param` names the field."""

    def __init__(self, message: str, param: str, status: int = 400) -> None:
        """Take a sentence for the caller."""
        super().__init__(message)
        self.param = param
        self.status = status


def install(app: FastAPI) -> None:
    """Make `app` answer its errors by this table."""
    for kind in _REPLIES:
        app.exception_handler(kind)(_known)
    app.exception_handler(UpstreamError)(_upstream)
    app.exception_handler(RequestError)(_invalid)
    app.exception_handler(RequestValidationError)(_malformed)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(ClientDisconnect)(_disconnected)


def respond(problem: Problem, wording: Wording) -> JSONResponse:
    """Write the reply to a problem."""
    return JSONResponse(wording.error(problem), wording.status(problem), problem.headers)


def problem_of(error: ShieldgateError) -> Problem:
    """Look an error up in the table."""
    if isinstance(error, UpstreamError):
        return _of_upstream(error)
    status, code = next(_REPLIES[k] for k in type(error).__mro__ if k in _REPLIES)
    headers = {}
    if status in (429, 503):
        waits = error if isinstance(error, LimitReached | Overloaded | ScorerUnavailable) else None
        seconds = (waits and waits.retry_after) or RETRY_SECONDS
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    return Problem(status, code, str(error), headers=headers)


def log_failure(failure: UpstreamError) -> None:
    """Log that the model behind the gateway failed, in our words: its own may quote the caller."""
    write = log.warning if failure.status >= 500 else log.info
    write("upstream failed", why=str(failure), status=failure.status)


def _of_upstream(error: UpstreamError) -> Problem:
    """Tell what upstream said, as far as it has the form that most servers use."""
    said = {key: value for key, value in (error.body or {}).items() if isinstance(value, str)}
    headers = {}
    if error.request_id is not None:
        headers[UPSTREAM_ID] = error.request_id
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return Problem(
        error.status,
        error.code,
        said.get("message") or str(error),
        param=said.get("param"),
        type=said.get("type") or "upstream_error",
        headers=headers,
    )


def _reply(request: Request, problem: Problem) -> JSONResponse:
    return respond(problem, state_of(request.scope).wording)


async def _upstream(request: Request, error: UpstreamError) -> JSONResponse:
    state_of(request.scope).outcome = "upstream_failed"
    log_failure(error)
    return _reply(request, problem_of(error))


async def _known(request: Request, error: ShieldgateError) -> JSONResponse:
    if isinstance(error, ScorerUnavailable):
        state_of(request.scope).outcome = "unjudged"
    return _reply(request, problem_of(error))


async def _invalid(request: Request, error: RequestError) -> JSONResponse:
    code = {404: "model_not_found", 413: "text_too_long"}.get(error.status, "invalid_value")
    return _reply(request, Problem(error.status, code, str(error), error.param))


async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    # A name that nobody knows is why another is missing.
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    if first["type"] == "json_invalid":
        return _reply(request, Problem(400, "invalid_json", "The body is not valid JSON."))
    if first["loc"] == ("body",) and not _is_json(request):
        message = "Send the body as JSON, with the header `content-type: application/json`."
        return _reply(request, Problem(400, "invalid_json", message))
    param = field_path(first["loc"][1:])
    if first["type"] == "extra_forbidden":
        what = f"{param} is no field here{_meant(request, first['loc'])}"
    elif said := _WORDS.get(first["type"]):
        what = f"{param or 'The body'} {said}."
    else:
        what = f"{param}: {first['msg']}." if param else f"{first['msg']}."
    return _reply(request, Problem(400, first["type"], what, param))


def _meant(request: Request, place: Sequence[int | str]) -> str:
    """Say which field of the body was probably meant by one that it doesn't have."""
    field = getattr(request.scope.get("route"), "body_field", None)
    known = getattr(field and field.field_info.annotation, "model_fields", {})
    if len(place) != 2 or not known:
        return "."
    name = str(place[1])
    near = [meant for meant in _MEANT.get(name, ()) if meant in known]
    near = near or difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f". There are {', '.join(known)}."


async def _http(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    message = _HTTP_MESSAGES.get(status, str(error.detail))
    if status == 404:
        state = request.app.state
        if near := difflib.get_close_matches(request.scope["path"], state.paths, 1, _NEAR):
            message = f"There is nothing at this URL. Did you mean {near[0]}? /docs lists all."
        else:
            screened = (path for path in state.screened if path.startswith("/v1/"))
            message += f" What is screened is sent to {', '.join(screened)}."
    headers = error.headers or {}
    if status == 405 and (allowed := headers.get("Allow")):
        head = ", HEAD" if "GET" in allowed else ""
        headers = {"allow": f"{allowed}{head}, OPTIONS"}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    return _reply(request, Problem(status, _HTTP_CODES.get(status), message, headers=headers))


async def _disconnected(request: Request, error: ClientDisconnect) -> JSONResponse:
    # Nobody reads this; the status is for the metrics, as nginx has it.
    return _reply(request, Problem(499, None, "The caller hung up."))


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")
