"""`POST /v1/screen`: exchanges in, verdicts with all their reasons out."""

from time import perf_counter

from fastapi import APIRouter, Request

from shieldgate.gateway.concurrency import while_connected
from shieldgate.gateway.errors import WITH_A_BODY, RequestError, declared
from shieldgate.gateway.services import ServicesDep
from shieldgate.gateway.state import state_of
from shieldgate.schemas import ExchangeResult, ScorerInfo, ScreenReply, ScreenRequest
from shieldgate.types import DIRECTIONS

router = APIRouter()


@router.post("/v1/screen", responses=declared(*WITH_A_BODY, 429))
async def screen(body: ScreenRequest, request: Request, services: ServicesDep) -> ScreenReply:
    """Judge one exchange or several.

    What is asked for in `policies` is judged beside what the profile demands, never instead.
    Where the guard fails, the profile's `on_failure` decides: the reply is a 503, or a result
    with the action `failed_open` and an `error`.
    """
    started = perf_counter()
    exchanges = body.all()
    if len(exchanges) > services.settings.max_inputs:
        raise RequestError(
            f"A request holds at most {services.settings.max_inputs} exchanges.", "exchanges"
        )
    book, state = services.policies.current, state_of(request.scope)
    key = state.key
    named = book.profile(body.profile) if body.profile else None
    rules = {
        direction: book.rules(services.profile(key, book, direction, named), body.policies)
        for direction in DIRECTIONS
    }
    state.profile = rules["prompt"].profile.name
    await services.accept(key, exchanges, "exchanges" if body.exchanges else "prompt")
    with services.screener.deadline():
        judged = await while_connected(
            request, (services.screener.screen(e, rules[e.direction]) for e in exchanges)
        )
    scorer = services.screener.scorer
    return ScreenReply(
        scorer=ScorerInfo.of(scorer.identity) if scorer.loaded else None,
        policy_book=book.version,
        profile=rules["prompt"].profile.name,
        results=[ExchangeResult.of(j.verdict, j.seconds, j.failure) for j in judged],
        milliseconds=round((perf_counter() - started) * 1000, 3),
    )
