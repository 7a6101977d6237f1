"""Has a candidate judge what was decided, behind the requests and at nobody's cost."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from shieldgate.errors import ShieldgateError
from shieldgate.policy import Rules
from shieldgate.scoring import Identity, Scorer, turn
from shieldgate.scoring.fair_threads import FairThreads
from shieldgate.shadow.candidate import Candidate, Judged
from shieldgate.telemetry import Decision, SecondOpinion, ShadowTelemetry
from shieldgate.types import Exchange

_MOST_WAITING = 1000
_MOST_CHARACTERS = 16 * 2**20
_AT_ONCE = 4

_RANDOM = random.SystemRandom()

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    exchange: Exchange
    decision: Decision
    rules: Rules
    scorer: Identity | None
    about: Mapping[str, Any]

    @property
    def size(self) -> int:
        return self.exchange.characters + sum(map(len, self.exchange.parts))


class Shadow:
    """Takes final decisions, and has a candidate judge a `share` of them, in 0..1.

    No request waits for it or fails with it. What is to be judged waits here, bounded, until the
    scorer has nothing to do for a caller; what finds no room is dropped and counted. What is
    `beside` it runs as long as it does.
    """

    def __init__(
        self,
        candidate: Candidate,
        *,
        share: float,
        telemetry: ShadowTelemetry,
        beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
        draw: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self.candidate = candidate
        self.share = share
        self._telemetry = telemetry
        self._beside = beside
        self._draw = draw
        self._scorer: Scorer | None = None
        self._waiting: deque[_Waiting] = deque()
        self._characters = 0
        self._work = asyncio.Event()
        self._failing = False
        telemetry.ready(False)

    @property
    def scorer(self) -> str:
        """Name the candidate's scorer; empty while none is loaded."""
        return self._scorer.identity.name if self._scorer else ""

    @contextmanager
    def judging_by(self, scorer: Scorer) -> Iterator[None]:
        """Judge by a scorer, in the `turn.BACKGROUND`, as long as this is open."""
        self._scorer = scorer
        self._telemetry.ready(True)
        self._arrived()
        try:
            yield
        finally:
            self._scorer = None
            self._telemetry.ready(False)

    def offer(self, decision: Decision, rules: Rules, scorer: Identity | None) -> None:
        """Take a final decision, with the request id and the caller that are bound to the request.

        `scorer` judged it. What was not judged has nothing to be compared with.
        """
        exchange = decision.exchange
        if exchange is None or not decision.verdict.judgements or self._draw() >= self.share:
            return
        about = structlog.contextvars.get_contextvars()
        offered = _Waiting(exchange, decision, rules, scorer, about)
        full = self._characters + offered.size > _MOST_CHARACTERS
        if full or len(self._waiting) >= _MOST_WAITING:
            self._telemetry.texts("dropped")
            return
        self._waiting.append(offered)
        self._characters += offered.size
        self._arrived()

    async def run(self, threads: FairThreads) -> None:
        """Judge until cancelled; what waits then is not judged.

        Texts are read at `threads`, behind those of callers.
        """
        turn.caller.set(turn.BACKGROUND)
        judging = [self._judge_all(threads) for _ in range(_AT_ONCE)]
        async with asyncio.TaskGroup() as running:
            for work in (*judging, *(begin() for begin in self._beside)):
                running.create_task(work, name="second opinion")

    def _arrived(self) -> None:
        if self._waiting and self._scorer:
            self._work.set()

    async def _judge_all(self, threads: FairThreads) -> None:
        while True:
            await self._work.wait()
            if not self._waiting or self._scorer is None:
                self._work.clear()
                continue
            offered = self._waiting.popleft()
            self._characters -= offered.size
            try:
                await self._judge(offered, self._scorer, threads)
            except Exception as failure:  # whatever it is, the next ones are to be judged
                self._telemetry.texts("failed")
                if not self._failing:
                    known = isinstance(failure, ShieldgateError)
                    why = str(failure) if known else type(failure).__name__
                    log.warning("the candidate fails", why=why, exc_info=not known)
                self._failing = True
            # What needs no scoring waits for nothing, and a thousand of these are not to be one.
            await asyncio.sleep(0)

    async def _judge(self, offered: _Waiting, scorer: Scorer, threads: FairThreads) -> None:
        decision, name = offered.decision, scorer.identity.name
        rules = self.candidate.rules(offered.rules, decision.verdict.direction, name)
        if rules is None:
            self._telemetry.texts("skipped")
            return
        judged = Judged(offered.exchange, offered.rules, offered.scorer, decision.verdict)
        with turn.metered() as meter:
            verdict = await self.candidate.judge(judged, rules, scorer, threads)
        if self._failing:
            log.info("the candidate judges again")
        self._failing = False
        opinion = SecondOpinion(
            decision,
            verdict,
            profile=rules.profile.name,
            book=rules.book,
            scorer=name,
            share=self.share,
            tokens=meter.tokens,
            seconds=meter.seconds,
        )
        self._telemetry.opinion(opinion, offered.about)
