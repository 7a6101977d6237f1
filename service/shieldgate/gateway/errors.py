"""The one table from errors to replies, in OpenAI's envelope; no judged text is repeated."""

import math
import re
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shieldgate.errors import (
    ConfigurationError,
    LimitReached,
    NotAllowed,
    Overloaded,
    ScorerUnavailable,
    ShieldgateError,
    UnknownKey,
    UnknownName,
    UpstreamError,
)
from shieldgate.openai.errors import ErrorBody, ErrorEnvelope

INVALID = "invalid_request_error"
UNAVAILABLE = "moderation_unavailable"

UPSTREAM_ID = "x-upstream-request-id"

log = structlog.get_logger(__name__)

RETRY_SECONDS = 5  # for failures that don't say themselves when to try again

# What is not listed here is a defect of ours: a 500, by way of the outermost middleware.
_REPLIES: Mapping[type[ShieldgateError], tuple[int, str, str]] = {
    UnknownKey: (401, INVALID, "invalid_api_key"),
    NotAllowed: (403, INVALID, "not_allowed"),
    LimitReached: (429, "rate_limit_error", "rate_limit_exceeded"),
    UnknownName: (400, INVALID, "unknown_name"),
    # The template has no words for judging a response, or the guideline leaves no room for it.
    ConfigurationError: (400, INVALID, "unsupported"),
    Overloaded: (429, "rate_limit_error", "overloaded"),
    ScorerUnavailable: (503, "server_error", UNAVAILABLE),
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
    408: "The body took too long to arrive.",
    401: "There is no API key, or it is not one of this server's.",
    403: "The API key does not allow this.",
    413: "The body, or a text in it, is too long.",
    415: "The body is compressed.",
    429: "The queue is full, or the key's limit reached; `Retry-After` says when to come again.",
    500: "A defect of ours; `x-request-id` finds it in the log.",
    503: "Nothing was judged: the scorer is not loaded, or it failed.",
}
WITH_A_BODY = (400, 408, 413, 415, 503)


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe errors for OpenAPI."""
    return {s: {"model": ErrorEnvelope, "description": _MEANINGS[s]} for s in statuses}


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
    app.exception_handler(ClientDisconnect)(_gone)


def reply(
    status: int,
    message: str,
    type_: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Write an error in OpenAI's envelope."""
    body = ErrorBody(message=message, type=type_, param=param, code=code)
    return JSONResponse(ErrorEnvelope(error=body).model_dump(), status, headers)


def body(error: ShieldgateError) -> ErrorBody:
    """Write an error as the object `error` of a reply or of an event."""
    if isinstance(error, UpstreamError):
        return _of_upstream(error)
    _, type_, code = _entry(error)
    return ErrorBody(message=str(error), type=type_, code=code)


def note(failure: UpstreamError) -> None:
    """Log that the model behind the gateway failed, in our words: its own may quote the caller."""
    write = log.warning if failure.status >= 500 else log.info
    write("upstream failed", why=str(failure), status=failure.status)


def _entry(error: ShieldgateError) -> tuple[int, str, str]:
    return next(_REPLIES[k] for k in type(error).__mro__ if k in _REPLIES)


def _of_upstream(error: UpstreamError) -> ErrorBody:
    """Write what upstream said, as far as it has the form of OpenAI's errors."""
    said = {key: value for key, value in (error.body or {}).items() if isinstance(value, str)}
    return ErrorBody(
        message=said.get("message") or str(error),
        type=said.get("type") or "upstream_error",
        param=said.get("param"),
        code=error.code,
    )


async def _upstream(request: Request, error: UpstreamError) -> JSONResponse:
    request.state.outcome = "upstream_failed"
    note(error)
    headers = {}
    if error.request_id is not None:
        headers[UPSTREAM_ID] = error.request_id
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return JSONResponse(ErrorEnvelope(error=body(error)).model_dump(), error.status, headers)


def answer(error: ShieldgateError) -> JSONResponse:
    """Write the reply to an error that is in the table."""
    status, type_, code = _entry(error)
    headers = {}
    if status in (429, 503):
        waits = error if isinstance(error, LimitReached | Overloaded | ScorerUnavailable) else None
        seconds = (waits and waits.retry_after) or RETRY_SECONDS
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    elif status == 401:
        headers["www-authenticate"] = "Bearer"
    return reply(status, str(error), type_, code=code, headers=headers)


async def _known(request: Request, error: ShieldgateError) -> JSONResponse:
    if isinstance(error, ScorerUnavailable):
        request.state.outcome = "unjudged"
    return answer(error)


async def _invalid(request: Request, error: RequestError) -> JSONResponse:
    code = "text_too_long" if error.status == 413 else "invalid_value"
    return reply(error.status, str(error), INVALID, param=error.param, code=code)


async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return reply(400, "The body is not valid JSON.", INVALID, code="invalid_json")
    if first["loc"] == ("body",) and not _is_json(request):
        message = "Send the body as JSON, with the header `content-type: application/json`."
        return reply(400, message, INVALID, code="invalid_json")
    param = ".".join(_key(part) for part in first["loc"][1:]) or None
    what = f"{param}: {first['msg']}." if param else f"{first['msg']}."
    return reply(400, what, INVALID, param=param, code=first["type"])


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    status = error.status_code
    message = _HTTP_MESSAGES.get(status, str(error.detail))
    code = _HTTP_CODES.get(status)
    return reply(status, message, INVALID, code=code, headers=error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> JSONResponse:
    # Nobody reads this; the status is for the metrics, as nginx has it.
    return reply(499, "The caller hung up.", INVALID)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _key(part: int | str) -> str:
    """Name a place in the body; a key that can't be one of ours may be user text."""
    text = str(part)
    return text if re.fullmatch(r"[A-Za-z0-9_]{1,40}", text) else "(a key)"
