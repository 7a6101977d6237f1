"""`POST /v1/messages/count_tokens`: what a request would cost; no model reads it."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from shieldgate.dialects.anthropic_messages import COUNT_TOKENS, MessagesError, MessagesRequest
from shieldgate.errors import UpstreamError
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.services import ServicesDep

router = APIRouter()


class TokenCount(BaseModel):
    """How many tokens upstream counts."""

    input_tokens: Annotated[int, Field(ge=0)]


@router.post("/v1/messages/count_tokens", responses=declared(*WITH_A_BODY, model=MessagesError))
async def count_tokens(
    body: MessagesRequest, request: Request, services: ServicesDep
) -> TokenCount:
    """Count the tokens of a request; nothing is judged, as nobody answers it."""
    try:
        reply = await services.model.post(COUNT_TOKENS, body.for_upstream(), request.headers)
    except UpstreamError as failure:
        # Its words are judged nowhere.
        raise failure.without_words() from failure
    counted = reply.body.get("input_tokens")
    if type(counted) is not int or counted < 0:
        raise UpstreamError(
            "Upstream did not count the tokens.",
            code="upstream_invalid",
            request_id=reply.request_id,
        )
    return TokenCount(input_tokens=counted)
