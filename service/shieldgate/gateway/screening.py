"""Judges exchanges by the rules of a request, and puts the verdicts on record."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from shieldgate.errors import ScorerUnavailable, ScoringError, TooLong, UnsupportedLanguage
from shieldgate.explanations.explain import explain
from shieldgate.gateway.concurrency import together
from shieldgate.moderation import in_turn, judge
from shieldgate.policy import Rules, fail
from shieldgate.scoring import turn
from shieldgate.scoring.fair_threads import FairThreads
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.shadow.shadow import Shadow
from shieldgate.telemetry import Audit, Decision, Telemetry
from shieldgate.types import Action, Exchange, Explanation, Judged

if TYPE_CHECKING:
    # With its database an extra.
    from shieldgate.kept_texts.keeper import Keeper

T = TypeVar("T")

# Characters of a body up to which reading it takes less than handing it on.
_SHORT = 10_000

# How many exchanges of one request are judged at a time; a long history has hundreds.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Screener:
    """Judges by a scorer; counts and records what is final.

    A `keeper` keeps some of the texts, and a `shadow` has a candidate judge them, too.

    All that is judged within one `deadline` has `seconds` together; what stands in none has them
    by itself.
    """

    scorer: LoadingScorer
    telemetry: Telemetry
    audit: Audit
    seconds: float
    keeper: "Keeper | None" = None
    shadow: Shadow | None = None
    threads: FairThreads = field(default_factory=lambda: FairThreads("read"))

    @property
    def name(self) -> str:
        """Name the scorer; empty while none is loaded."""
        return self.scorer.identity.name if self.scorer.loaded else ""

    def deadline(self) -> AbstractContextManager[object]:
        """Give all that is judged in here one deadline."""
        return turn.within(self.seconds)

    async def read(self, work: Callable[[], T], characters: int) -> T:
        """Do the reading of a body in its caller's turn; a long one would hold up all others."""
        return work() if characters <= _SHORT else await in_turn(work, characters, self.threads)

    async def judge(self, exchange: Exchange, rules: Rules) -> Judged:
        """Judge one exchange, by `on_failure` where the guard fails; nothing is recorded yet.

        Raises TooLong for a prompt, because it is its sender who can mend that, and who could
        else pass what is too long to be judged.
        """
        started = perf_counter()
        with self.telemetry.traces.judging(exchange.direction) as judged:
            failure: ScoringError | None = None
            try:
                with self.deadline():
                    verdict = await judge(self.scorer, exchange, rules, self.threads)
                if verdict.action is Action.FAILED_CLOSED:
                    failure = UnsupportedLanguage(exchange.direction, verdict.unsupported_language)
            except TooLong as too_long:
                if exchange.direction == "prompt":
                    raise
                verdict = fail(rules.profile, exchange.direction)
                failure = ScorerUnavailable(str(too_long))
            except ScoringError as failed:
                verdict, failure = fail(rules.profile, exchange.direction), failed
            judged(verdict.action.value)
        return Judged(verdict, failure, perf_counter() - started)

    def record(self, exchange: Exchange | None, judged: Judged, rules: Rules) -> None:
        """Count a final verdict and put it on record."""
        policies = [policy.id for policy in rules.policies]
        self.telemetry.verdict(judged.verdict, policies)
        decision = Decision(
            exchange,
            judged.verdict,
            policies,
            profile=rules.profile.name,
            book=rules.book,
            scorer=self.name,
            failure=type(judged.failure).__name__ if judged.failure else None,
        )
        self.audit.record(decision)
        if self.keeper:
            self.keeper.offer(decision)
        if self.shadow:
            scorer = self.scorer.identity if self.scorer.loaded else None
            self.shadow.offer(decision, rules, scorer)

    async def explain(
        self, exchange: Exchange, rules: Rules, judged: Judged
    ) -> dict[str, Explanation]:
        """Say which words carried a verdict's scores, in as much time again; raise ScoringError."""
        with self.deadline():
            judgements = judged.verdict.judgements
            return await explain(self.scorer, exchange, rules, judgements, threads=self.threads)

    async def screen(self, exchange: Exchange, rules: Rules, *, may_open: bool = True) -> Judged:
        """Judge one exchange and record the verdict.

        Raises ScoringError where the guard fails and the profile wants that closed. `may_open`
        says whether the reply can express that a text passed unjudged.
        """
        judged = await self.judge(exchange, rules)
        if judged.failure is not None and not may_open:
            judged = replace(judged, verdict=replace(judged.verdict, action=Action.FAILED_CLOSED))
        self.record(exchange, judged, rules)
        if judged.failure is not None and judged.verdict.action.stops:
            raise judged.failure
        return judged

    async def screen_all(
        self, exchanges: Iterable[Exchange], rules: Rules, *, may_open: bool = True
    ) -> list[Judged]:
        """Judge exchanges as `screen` does, a few at a time; what it raises ends all of them."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def screen(exchange: Exchange) -> Judged:
            async with places:
                return await self.screen(exchange, rules, may_open=may_open)

        with self.deadline():
            async with together() as group:
                tasks = [group.create_task(screen(exchange)) for exchange in exchanges]
        return [task.result() for task in tasks]
