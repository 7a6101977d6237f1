"""The routes of the dialects: any model, screened in and out."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from inspect import cleandoc
from time import perf_counter
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from shieldgate.dialects.interface import Answer, Dialect, Refusal
from shieldgate.errors import UpstreamError
from shieldgate.gateway.call import Call, overload_as_unavailable
from shieldgate.gateway.concurrency import together, while_connected
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.services import ServicesDep
from shieldgate.gateway.streamed import StreamedAnswer
from shieldgate.strands import whole_and_parts
from shieldgate.types import Exchange, Judged
from shieldgate.upstream import Reply


def routes(dialects: Iterable[Dialect], statuses: Sequence[int]) -> APIRouter:
    """Make the routes of dialects; `statuses` are the errors that every route may answer with."""
    router = APIRouter()
    for dialect in dialects:
        router.post(
            dialect.route,
            name=dialect.name,
            description=cleandoc(dialect.description),
            response_class=Response,
            responses={
                **declared(*statuses, *WITH_A_BODY, model=dialect.error_model),
                **dialect.responses,
            },
        )(_handler(dialect))
    return router


def _handler(dialect: Dialect) -> Any:
    async def handle(body: Any, request: Request, services: ServicesDep) -> Response:
        call = await Call.of(request, body, dialect, services)
        exchanges = [subject.exchange for subject in call.plan.prompts]
        await services.accept(call.state.key, exchanges, dialect.prompt_param)
        if call.request.streamed:
            return StreamedAnswer(call)
        with overload_as_unavailable():
            [response] = await while_connected(request, [_whole(call)])
        return response

    handle.__annotations__["body"] = dialect.request_model
    return handle


async def _whole(call: Call) -> Response:
    """Answer without a stream; raise ScoringError and UpstreamError."""
    async with together() as group:
        asking = None
        if call.prompt_profile.prompt_check == "parallel":
            asking = group.create_task(ask(call))
        inputs = await call.judge_prompts()
        if refused := call.refuse(inputs):
            if asking:
                asking.cancel()
            return refused
        reply = await asking if asking else await ask(call)
    if isinstance(reply, UpstreamError):
        raise await call.screen_error(reply)
    return await _screened(call, inputs, reply)


async def ask(call: Call) -> Reply | UpstreamError:
    """Ask upstream; a refusal is a value, as it may not leave before the prompt's verdict."""
    asked = perf_counter()
    try:
        reply = await call.upstream.post(call.dialect.endpoint, call.request.body, call.headers)
    except UpstreamError as failure:
        return failure
    call.services.telemetry.phase("upstream", perf_counter() - asked)
    return reply


async def _screened(call: Call, inputs: Sequence[Judged], reply: Reply) -> Response:
    answers = call.dialect.answers(reply.body, call.request.body)
    if not answers:
        raise UpstreamError(
            "Upstream answered without choices.",
            code="upstream_invalid",
            request_id=reply.request_id,
        )
    # Before the deadline: what was not read could not be judged by `on_failure`, nor recorded.
    exchanges = [await _exchange(call, answer) for answer in answers]
    with call.services.screener.deadline():
        async with together() as group:
            tasks = [
                group.create_task(_judge(call, answer, exchange))
                for answer, exchange in zip(answers, exchanges, strict=True)
            ]
    outputs = [task.result() for task in tasks]
    call.state.name_outcome(outputs)
    if not any(judged.verdict.action.stops for judged in outputs):
        await call.remember(reply.body)
    body = call.dialect.screened(
        reply.body,
        [judged.verdict.action.stops for judged in outputs],
        Refusal.of(call.answer_profile),
        call.verdicts(inputs, outputs),
    )
    return Response(
        orjson.dumps(body),
        media_type="application/json",
        headers=call.reply_headers(reply.request_id),
    )


async def _exchange(call: Call, answer: Answer) -> Exchange:
    said = partial(whole_and_parts, answer.texts, call.plan.prefill)
    length = sum(len(text) for _, text in answer.texts)
    text, parts = await call.services.screener.read(said, length)
    return Exchange(call.plan.context(answer.choice), text, parts=parts)


async def _judge(call: Call, answer: Answer, exchange: Exchange) -> Judged:
    screener, rules = call.services.screener, call.rules["response"]
    unscreenable = call.unscreenable() if answer.unscreenable else None
    if unscreenable and unscreenable.verdict.action.stops:
        screener.record(exchange, unscreenable, rules)
        return unscreenable
    judged = await screener.screen(exchange, rules)
    return replace(judged, failure=unscreenable.failure) if unscreenable else judged
