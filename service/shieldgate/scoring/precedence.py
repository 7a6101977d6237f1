"""Requests go first: what is only an opinion is computed while none of them is being scored."""

import asyncio
from collections.abc import Iterable, Sequence

from shieldgate.policy import Policy
from shieldgate.scoring import turn
from shieldgate.scoring.interfaces import Identity, OpenScorer
from shieldgate.types import Exchange, Score


class Precedence:
    """Tells when the scorers that it was put `before` have nothing to do for a caller."""

    def __init__(self) -> None:
        self._under_way = 0
        self._opened = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def before(self, scorer: OpenScorer) -> OpenScorer:
        """Have a scorer go first."""
        self._opened.set()
        return _First(scorer, self)

    async def opened(self) -> None:
        """Wait until there is a scorer that goes first."""
        await self._opened.wait()

    async def idle(self) -> None:
        """Wait until it scores for no caller."""
        await self._idle.wait()

    def began(self) -> None:
        """Count a text in."""
        self._under_way += 1
        self._idle.clear()

    def ended(self) -> None:
        """Count a text out."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()


class _First:
    """An OpenScorer that tells when it works for a caller."""

    def __init__(self, scorer: OpenScorer, precedence: Precedence) -> None:
        self._scorer = scorer
        self._precedence = precedence

    @property
    def identity(self) -> Identity:
        return self._scorer.identity

    @property
    def available(self) -> bool:
        return self._scorer.available

    async def check(self, policies: Iterable[Policy]) -> None:
        await self._scorer.check(policies)

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        if turn.caller.get() == turn.BACKGROUND:
            return await self._scorer.score(exchange, policies)
        self._precedence.began()
        try:
            return await self._scorer.score(exchange, policies)
        finally:
            self._precedence.ended()
