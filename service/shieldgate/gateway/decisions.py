"""`POST /v1/decisions` and `/v1/systemone`: questions about a text in, probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request

from shieldgate.decisions import openai, systemone
from shieldgate.decisions.questions import Question, Unanswerable, ask
from shieldgate.decisions.text import Shown, shown_items, shown_state
from shieldgate.decisions.wire import Wire
from shieldgate.gateway.concurrency import while_connected
from shieldgate.gateway.errors import WITH_A_BODY, RequestError, declared
from shieldgate.gateway.services import Services, ServicesDep
from shieldgate.gateway.state import state_of
from shieldgate.schemas import ExchangeResult
from shieldgate.scoring import turn
from shieldgate.types import Judgement

router = APIRouter()

# All questions of a request stand in one forward pass, with the text.
_MOST_CHARACTERS = 64_000


class ProfileVerdict(ExchangeResult):
    """What the caller's profile says of the text, whatever was asked."""

    profile: str
    policy_book: str


class Decision(Wire):
    """The answers in the order of the questions; `model` names the real scorer."""

    model: str
    answers: list[openai.Answer]
    usage: openai.Usage
    verdict: ProfileVerdict


class SystemOneReply(Wire):
    """The answers under the ids of the questions; `model` names the real scorer."""

    model: str
    answers: dict[str, systemone.Answer]
    usage: systemone.Usage
    verdict: ProfileVerdict


@router.post("/v1/decisions", responses=declared(*WITH_A_BODY, 429))
async def decide(body: openai.DecisionRequest, request: Request, services: ServicesDep) -> Decision:
    """Answer questions about one text, with a calibrated probability for each that is a policy.

    A question that is named like a policy is that policy; any other is judged by its instructions,
    uncalibrated. What the profile demands is judged beside them, and `verdict` says what it finds.
    """
    questions = body.asked()
    shown = shown_items(body.input)
    found = await _judge(request, services, shown, questions, model=body.model, param="input")
    return Decision(
        model=services.screener.name,
        answers=[
            openai.answer(question, judgement, known=found.knows(judgement))
            for question, judgement in zip(questions, found.answers, strict=True)
        ],
        usage=openai.Usage(input_tokens=found.tokens, total_tokens=found.tokens),
        verdict=found.verdict,
    )


@router.post("/v1/systemone", responses=declared(*WITH_A_BODY, 429))
async def structured_decisions(
    body: systemone.SystemOneRequest, request: Request, services: ServicesDep
) -> SystemOneReply:
    """Answer questions about one state, as `/v1/decisions` does."""
    questions = body.asked()
    for question in questions:
        if not question.answerable:
            raise RequestError(
                f"{question.at}: The scorer answers yes or no, and can't compare options. Ask one "
                "question of the type `noul` for each.",
                question.at,
            )
    shown = shown_state(body.state)
    shown = replace(shown, unscreenable=(*shown.unscreenable, *body.unscreenable))
    found = await _judge(request, services, shown, questions, model=body.model, param="state")
    return SystemOneReply(
        model=services.screener.name,
        answers={
            question.name or "": systemone.answer(question, judgement, known=found.knows(judgement))
            for question, judgement in zip(questions, found.answers, strict=True)
            if judgement is not None
        },
        usage=systemone.Usage(input_tokens=found.tokens),
        verdict=found.verdict,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A judgement for each question, None where it has no answer; and the profile's verdict.

    `tokens` counts those that were computed for it.
    """

    answers: Sequence[Judgement | None]
    verdict: ProfileVerdict
    tokens: int

    def knows(self, judgement: Judgement | None) -> bool:
        """Tell whether a judgement is by a policy of the book."""
        return judgement is not None and judgement.policy in self.verdict.policies


async def _judge(
    request: Request,
    services: Services,
    shown: Shown,
    questions: Sequence[Question],
    *,
    model: str | None,
    param: str,
) -> _Found:
    """Judge a text by all questions at once, and by the caller's profile."""
    if shown.unscreenable:
        field = shown.unscreenable[0]
        raise RequestError(f"{field} can't be judged by this scorer, only text can be.", field)
    book, state = services.policies.current, state_of(request.scope)
    named = book.meant(model, services.screener.name)
    profile = services.profile(state.key, book, shown.exchange.direction, named)
    state.profile = profile.name
    try:
        asked = ask(questions, book, profile)
    except Unanswerable as why:
        raise RequestError(str(why), why.at) from why
    if asked.characters > _MOST_CHARACTERS:
        raise RequestError(
            f"questions: All instructions hold at most {_MOST_CHARACTERS} characters.", "questions"
        )
    rules = replace(book.rules(profile, asked.known), beside=asked.own)
    await services.accept(state.key, [shown.exchange], param, asked.characters)
    # A probability can't say that a text was not judged, so this surface never fails open.
    with turn.metered() as meter:
        [judged] = await while_connected(
            request, [services.screener.screen(shown.exchange, rules, may_open=False)]
        )
    verdict = judged.verdict
    by_policy = {j.policy: j for j in (*verdict.judgements, *verdict.beside)}
    result = ExchangeResult.of(verdict, judged.seconds, judged.failure)
    return _Found(
        [None if id is None else by_policy[id] for id in asked.ids],
        ProfileVerdict(**dict(result), profile=profile.name, policy_book=book.version),
        meter.tokens,
    )
