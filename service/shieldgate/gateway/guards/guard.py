"""What the guards of other gateways ask for: an exchange judged by the rules of its caller.

Each of them words the question and the verdict its own way, in a file of its own.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from fastapi import Request

from shieldgate.dialects import Dialect
from shieldgate.dialects.interface import Answer, JsonObject
from shieldgate.dialects.plan import Plan
from shieldgate.errors import ScorerUnavailable, TooLong, Unscreenable, UnsupportedLanguage
from shieldgate.gateway.call import MOST_JUDGED, overload_as_unavailable, refuses_unscreenable
from shieldgate.gateway.concurrency import while_connected
from shieldgate.gateway.errors import RequestError
from shieldgate.gateway.services import Services
from shieldgate.gateway.state import state_of
from shieldgate.policy import Profile, Rules, fail
from shieldgate.strands import whole_and_parts
from shieldgate.types import DIRECTIONS, Action, Direction, Exchange, Judged, Judgement, Verdict


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reply answers: a prompt, and how the answer begins where it was given a beginning."""

    prompt: str
    prefill: str = ""

    @classmethod
    def of(cls, plan: Plan) -> "Asked":
        """Take what a plan says of its answers."""
        return cls(plan.context(0), plan.prefill)


@dataclass(frozen=True, slots=True)
class Found:
    """The verdicts on all that one question holds."""

    judged: Sequence[Judged]
    rules: Rules

    @property
    def stops(self) -> bool:
        """Tell whether the text must not pass."""
        return any(judged.verdict.action.stops for judged in self.judged)

    @property
    def unscreenable(self) -> str | None:
        """Say what can't be screened, where that stops the text."""
        stopped = (j.failure for j in self.judged if j.verdict.action is Action.FAILED_CLOSED)
        return next((str(failure) for failure in stopped), None)

    @property
    def worst(self) -> dict[str, Judgement]:
        """Give of each policy the judgement with the highest grade."""
        found: dict[str, Judgement] = {}
        for judgement in (j for judged in self.judged for j in judged.verdict.judgements):
            if (known := found.get(judgement.policy)) is None or grade(judgement) > grade(known):
                found[judgement.policy] = judgement
        return found

    @property
    def blocking(self) -> dict[str, Judgement]:
        """Give the judgements that stop the text."""
        if not any(judged.verdict.action is Action.BLOCKED for judged in self.judged):
            return {}
        monitored = self.rules.profile.monitored
        return {id: j for id, j in self.worst.items() if j.violated and id not in monitored}

    def apart(self, count: int) -> "list[Found]":
        """Part it by its `count` exchanges; where none was judged, the same holds of each."""
        if len(self.judged) != count:
            return [self] * count
        return [replace(self, judged=[judged]) for judged in self.judged]

    def reason(self, what: str) -> str:
        """Say to people why `what` is stopped."""
        why = self.unscreenable or f"It violates: {', '.join(self.blocking)}."
        return f"The {what} was blocked. {why}"


def grade(judgement: Judgement) -> float:
    """Place a probability in 0..1 so that 0.5 and more is a violation, whatever the threshold.

    Linear below and above the threshold. For those who compare a score with a limit of their own.
    """
    probability, threshold = judgement.probability, judgement.threshold
    if judgement.violated:
        return 0.5 + (probability - threshold) / (1 - threshold or 1) / 2
    return probability / threshold / 2


@dataclass(frozen=True, slots=True)
class Guard:
    """Judges for one request of another gateway, and puts the verdicts on record.

    `may_open` says whether the reply can express that a text passed unjudged. `seconds` is how
    long the other gateway waits; later than that the guard has failed.
    """

    request: Request
    services: Services
    rules: Mapping[Direction, Rules]
    plans: Sequence[Profile]
    may_open: bool
    seconds: float | None

    @classmethod
    def of(
        cls,
        request: Request,
        services: Services,
        *,
        profile: str | None = None,
        policies: Sequence[str] = (),
        may_open: bool = True,
        seconds: float | None = None,
    ) -> "Guard":
        """Find the rules of a caller; what is named adds to them and takes nothing away.

        Raises UnknownName.
        """
        state, book = state_of(request.scope), services.policies.current
        named = book.profile(profile) if profile else None
        rules = {}
        for direction in DIRECTIONS:
            base = services.profile(state.key, book, direction)
            both = services.with_added(base, named, book, direction)
            rules[direction] = book.rules(both, policies)
        state.profile = rules["prompt"].profile.name
        return cls(request, services, rules, [base, named] if named else [base], may_open, seconds)

    def plan(self, dialect: Dialect, body: JsonObject) -> Plan:
        """Say what is judged of a request to a model."""
        return reduce(Plan.joined, (dialect.plan(body, profile) for profile in self.plans))

    async def prompts(self, plan: Plan) -> Found:
        """Judge what a model will read; raise ScoringError where the guard fails closed."""
        exchanges = [subject.exchange for subject in plan.prompts]
        return await self.screen(exchanges, "prompt", [*plan.unscreenable, *plan.unseen])

    async def answers(
        self, answers: Sequence[Answer], asked: Sequence[Asked], *, growing: bool = False
    ) -> Found:
        """Judge what a model wrote, with each prompt that it may answer; raise as `prompts`."""
        exchanges: dict[Exchange, None] = {}
        for each in asked:
            for answer in answers:
                text, parts = whole_and_parts(answer.texts, each.prefill)
                if text.strip():
                    exchanges[Exchange(each.prompt, text, growing=growing, parts=parts)] = None
        unread = [f"choices[{a.choice}]" for a in answers if a.unscreenable]
        return await self.screen(list(exchanges), "response", unread)

    async def screen(
        self, exchanges: Sequence[Exchange], direction: Direction, unread: Sequence[str] = ()
    ) -> Found:
        """Judge exchanges; the fields `unread` hold what can't be screened. Raise ScoringError."""
        rules = self.rules[direction]
        judged: list[Judged] = []
        if unread:
            why = f"{unread[0]} can't be screened, only text can be."
            judged.append(self._unjudged(rules, direction, why, refuses_unscreenable))
        if not any(j.verdict.action.stops for j in judged):
            try:
                await self._accept(exchanges)
            except RequestError as refused:
                # An error would let it pass where the gateway passes what it can't have judged.
                judged = [self._unjudged(rules, direction, str(refused), _enforces)]
                exchanges = ()
            judged += await self._judge(exchanges, rules, direction)
        state = state_of(self.request.scope)
        state.name_outcome(judged)
        state.unscreened = len(unread)
        return Found(judged, rules)

    async def _judge(
        self, exchanges: Sequence[Exchange], rules: Rules, direction: Direction
    ) -> list[Judged]:
        screener = self.services.screener
        judging = screener.screen_all(exchanges, rules, may_open=self.may_open)
        try:
            with overload_as_unavailable():
                async with asyncio.timeout(self.seconds):
                    [judged] = await while_connected(self.request, [judging])
            return judged
        except TooLong as refused:
            return [self._unjudged(rules, direction, str(refused), _enforces)]
        except UnsupportedLanguage as refused:  # which is on record
            return [Judged(Verdict(direction, Action.FAILED_CLOSED, ()), refused)]
        except TimeoutError:
            late = ScorerUnavailable(f"There was no verdict within {self.seconds:g} s.")
            failed = Judged(fail(rules.profile, direction), late)
            screener.record(None, failed, rules)
            if failed.verdict.action.stops:
                raise late from None
            return [failed]

    async def _accept(self, exchanges: Sequence[Exchange]) -> None:
        if sum(1 + len(exchange.parts) for exchange in exchanges) > MOST_JUDGED:
            raise RequestError(f"There are more than {MOST_JUDGED} texts to judge.", "texts")
        await self.services.accept(state_of(self.request.scope).key, exchanges, "texts")

    def _unjudged(
        self, rules: Rules, direction: Direction, why: str, stops: Callable[[Profile], bool]
    ) -> Judged:
        action = Action.FAILED_CLOSED if stops(rules.profile) else Action.FAILED_OPEN
        judged = Judged(Verdict(direction, action, ()), Unscreenable(why))
        self.services.screener.record(None, judged, rules)
        return judged


def _enforces(profile: Profile) -> bool:
    return profile.mode == "enforce"
