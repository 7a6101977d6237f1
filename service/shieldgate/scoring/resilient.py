"""A judgement has a deadline, and a circuit breaker stands before a scorer that keeps failing."""

import asyncio
import math
from collections.abc import Sequence
from typing import Literal, Protocol

import structlog

from shieldgate.circuit_breaker import CircuitBreaker, State
from shieldgate.errors import Overloaded, ScorerUnavailable
from shieldgate.policy import Policy
from shieldgate.scoring import turn
from shieldgate.scoring.interfaces import Scorer
from shieldgate.types import Exchange, Score

Reason = Literal["timeout", "failure", "overloaded", "breaker"]

log = structlog.get_logger(__name__)


class ResilienceObserver(Protocol):
    """Sees when the guard fails."""

    def guard_failed(self, reason: Reason) -> None:
        """Take why an exchange got no score."""

    def breaker(self, breaker: Literal["scorer"], state: State) -> None:
        """Take the breaker's new state."""


class Resilient:
    """Bounds the time in which a scorer answers, and asks none that keeps failing; a Scorer.

    `seconds` is the longest that one exchange may take under all its policies, queueing included;
    it has less where its request's `turn.deadline` comes before. Time-outs and failures in a row
    open the circuit breaker. A wrong configuration doesn't, nor does a full queue, nor a time-out
    while others were answered, or of what had come late: a scorer that is busy works.
    """

    def __init__(
        self, scorer: Scorer, *, seconds: float, observer: ResilienceObserver | None = None
    ) -> None:
        self._scorer = scorer
        self._seconds = seconds
        self._observer = observer
        self._answered = -math.inf  # when there was a score the last time, by the loop's clock
        self._breaker = CircuitBreaker(changed=self._changed)
        self.identity = scorer.identity

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange; raise ScorerUnavailable at the deadline, else what the scorer does.

        How long to wait is said by `retry_after` of what is raised, where that is known.
        """
        if seconds := self._breaker.retry_after():
            self._failed("breaker")
            raise ScorerUnavailable(
                "The scorer keeps failing and is left alone for a moment.", retry_after=seconds
            )
        clock = asyncio.get_running_loop().time
        began, deadline = clock(), turn.deadline.get()
        until = min(began + self._seconds, deadline.until if deadline else math.inf)
        try:
            if until <= began:
                raise TimeoutError
            with self._breaker.watch(ScorerUnavailable):
                scores = await self._ask(exchange, policies, began, until)
        except TimeoutError:
            self._failed("timeout")
            raise self._late() from None
        self._answered = clock()
        return scores

    async def _ask(
        self, exchange: Exchange, policies: Sequence[Policy], began: float, until: float
    ) -> list[Score]:
        """Raise TimeoutError where it says nothing of the scorer that it did not answer."""
        try:
            async with asyncio.timeout_at(until):
                return await self._scorer.score(exchange, policies)
        except TimeoutError:
            if self._answered >= began or until < began + self._seconds / 2:
                raise
            self._failed("timeout")
            raise self._late() from None
        except ScorerUnavailable:
            self._failed("failure")
            raise
        except Overloaded:
            self._failed("overloaded")
            raise

    def _late(self) -> ScorerUnavailable:
        return ScorerUnavailable(f"The scorer did not answer within {self._seconds:g} seconds.")

    def _failed(self, reason: Reason) -> None:
        if self._observer:
            self._observer.guard_failed(reason)

    def _changed(self, state: State) -> None:
        log.warning("scorer's breaker", state=state)
        if self._observer:
            self._observer.breaker("scorer", state)
