"""`POST /v1/embeddings`: inputs are judged, then passed; nothing but numbers comes back."""

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shieldgate.dialects.interface import Verdicts
from shieldgate.dialects.openai_embeddings import OpenAIEmbeddings, numbers
from shieldgate.errors import UpstreamError
from shieldgate.gateway.call import Call, overload_as_unavailable
from shieldgate.gateway.chat import ask
from shieldgate.gateway.concurrency import while_connected
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.services import ServicesDep
from shieldgate.openai.embeddings import EmbeddingRequest

router = APIRouter()

_EMBEDDINGS = OpenAIEmbeddings()


@router.post(
    _EMBEDDINGS.route,
    responses={**declared(*WITH_A_BODY), **_EMBEDDINGS.responses},
    response_class=Response,
)
async def embed(body: EmbeddingRequest, request: Request, services: ServicesDep) -> Response:
    """Embed texts with the upstream model, once they are judged like prompts.

    A block is a 400, whatever the profile's `on_block` says: no embedding could say that it is a
    refusal. Of upstream's reply the numbers pass.
    """
    call = await Call.of(request, body, _EMBEDDINGS, services)
    exchanges = [subject.exchange for subject in call.plan.prompts]
    await services.accept(call.state.key, exchanges, _EMBEDDINGS.prompt_param)
    with overload_as_unavailable():
        [response] = await while_connected(request, [_embed(call)])
    return response


async def _embed(call: Call) -> Response:
    inputs = await call.judge_prompts()
    call.state.name_outcome(inputs)
    if any(judged.verdict.action.stops for judged in inputs):
        blocked = _EMBEDDINGS.blocked(Verdicts(inputs, (), call.services.screener.name))
        return JSONResponse(blocked, 400, {"x-should-retry": "false"})
    reply = await ask(call)
    if isinstance(reply, UpstreamError):
        raise await call.screen_error(reply)
    return Response(
        orjson.dumps(numbers(reply.body, call.request.body)),
        media_type="application/json",
        headers=call.reply_headers(reply.request_id),
    )
