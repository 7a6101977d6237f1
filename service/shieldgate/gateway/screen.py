"""`POST /v1/screen`: exchanges in, verdicts with all their reasons out."""

from collections.abc import Sequence
from time import perf_counter

from fastapi import APIRouter, Request

from shieldgate.access.keys import Key
from shieldgate.errors import NotAllowed, ScoringError
from shieldgate.gateway.concurrency import while_connected
from shieldgate.gateway.errors import WITH_A_BODY, RequestError, declared
from shieldgate.gateway.services import Services, ServicesDep
from shieldgate.gateway.state import state_of
from shieldgate.given_settings import flag
from shieldgate.policy import Rules
from shieldgate.schemas import ExchangeResult, Explained, ScorerInfo, ScreenReply, ScreenRequest
from shieldgate.types import DIRECTIONS, Exchange, Judged

router = APIRouter()


@router.post("/v1/screen", responses=declared(*WITH_A_BODY, 403, 429))
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
    if body.explain:
        _check_explained(services, key, exchanges)
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
    explained = None
    if body.explain:
        [exchange], [verdict] = exchanges, judged
        [explained] = await while_connected(
            request, [_explain(services, exchange, rules[exchange.direction], verdict)]
        )
    scorer = services.screener.scorer
    return ScreenReply(
        scorer=ScorerInfo.of(scorer.identity) if scorer.loaded else None,
        policy_book=book.version,
        profile=rules["prompt"].profile.name,
        results=[ExchangeResult.of(j.verdict, j.seconds, j.failure, explained) for j in judged],
        milliseconds=round((perf_counter() - started) * 1000, 3),
    )


def _check_explained(services: Services, key: Key | None, exchanges: Sequence[Exchange]) -> None:
    """Raise NotAllowed for callers who may not ask for an explanation, RequestError for several."""
    if key is None and services.settings.keyless:
        raise NotAllowed(
            "Explanations cost as much as many scores, so a server that answers anybody "
            f"({flag('keyless')}) gives none. The operator can give it {flag('keys')}."
        )
    if key is not None and not key.explain:
        raise NotAllowed(
            "This API key may not ask for explanations. The operator can give it `explain: true` "
            "in the file of keys."
        )
    if len(exchanges) > 1:
        raise RequestError("One exchange is explained at a time.", "explain")


async def _explain(
    services: Services, exchange: Exchange, rules: Rules, judged: Judged
) -> Explained:
    """Explain a verdict; where that fails, say so beside it."""
    if judged.failure is not None:
        return Explained.failed(judged.failure)
    try:
        return Explained(policies=await services.screener.explain(exchange, rules, judged))
    except ScoringError as failure:
        return Explained.failed(failure)
