"""`POST /v1/moderations`: OpenAI's contract, with our policies beside its categories."""

from uuid import uuid4

from fastapi import APIRouter, Request

from shieldgate.gateway.concurrency import while_connected
from shieldgate.gateway.errors import WITH_A_BODY, RequestError, declared
from shieldgate.gateway.services import ServicesDep
from shieldgate.gateway.state import state_of
from shieldgate.openai.categories import CATEGORIES
from shieldgate.openai.moderations import Moderation, ModerationReply, ModerationRequest
from shieldgate.policy import PolicyBook
from shieldgate.types import Exchange, Verdict

router = APIRouter()


@router.post("/v1/moderations", responses=declared(*WITH_A_BODY, 429))
async def moderate(
    body: ModerationRequest, request: Request, services: ServicesDep
) -> ModerationReply:
    """Judge texts as prompts.

    `model` selects a profile where it names one (`GET /v1/models` lists them); any other name is
    served by the default profile, unless it is nearly a profile's. `x-shieldgate-profile` tells
    which one judged. With an API key, the profile that it is bound to is judged all
    the same.
    """
    if len(body.input) > services.settings.max_inputs:
        raise RequestError(
            f"A request holds at most {services.settings.max_inputs} inputs.", "input"
        )
    book, state = services.policies.current, state_of(request.scope)
    key = state.key
    named = book.meant(body.model, services.screener.name)
    profile = services.profile(key, book, "prompt", named)
    state.profile = profile.name
    rules = book.rules(profile)
    exchanges = [Exchange(text) for text in body.input]
    await services.accept(key, exchanges, "input")
    # `flagged: false` can't say that a text was not judged, so this surface never fails open.
    with services.screener.deadline():
        judged = await while_connected(
            request, (services.screener.screen(e, rules, may_open=False) for e in exchanges)
        )
    return ModerationReply(
        id=f"modr-{uuid4().hex}",
        model=services.screener.scorer.identity.name,
        results=[_result(j.verdict, book) for j in judged],
    )


def _result(verdict: Verdict, book: PolicyBook) -> Moderation:
    """Write a verdict as OpenAI's categories, each the worst of the policies that speak for it."""
    scores = dict.fromkeys(CATEGORIES, 0.0)
    flags = dict.fromkeys(CATEGORIES, False)
    judged: set[str] = set()
    for j in verdict.judgements:
        for key in (*book.policies[j.policy].openai, j.policy):
            scores[key] = max(scores.get(key, 0.0), j.probability)
            flags[key] = flags.get(key, False) or j.violated
            judged.add(key)
    return Moderation(
        flagged=bool(verdict.violated),
        categories=flags,
        category_scores=scores,
        category_applied_input_types={key: ["text"] if key in judged else [] for key in scores},
        unsupported_language=verdict.unsupported_language,
    )
