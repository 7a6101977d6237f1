"""Stands in for a scorer while it is being loaded."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress

import structlog

from shieldgate.errors import ScorerUnavailable
from shieldgate.policy import Policy
from shieldgate.scoring import Identity, Scorer
from shieldgate.types import Exchange, Score

_REOPEN_SECONDS = 1.0
_LOOK_SECONDS = 0.25

log = structlog.get_logger(__name__)


class LoadingScorer:
    """A scorer that is there once it is loaded and checked; until then ScorerUnavailable.

    `open_scorer` gives a context manager that loads a scorer, checks it, and closes it again.
    When `gone` returns, the scorer has ended and is opened anew; one in this process never ends.
    Who awaits its `arrival` waits for at most as many seconds as there is `patience`. While it is
    not `available`, it can't score, and comes back by itself.
    """

    def __init__(
        self,
        open_scorer: Callable[[], AbstractAsyncContextManager[Scorer]],
        gone: Callable[[], Awaitable[object]] | None = None,
        available: Callable[[], bool] = lambda: True,
        patience: float = 0,
    ) -> None:
        self._open = open_scorer
        self._gone = gone or asyncio.Event().wait
        self._available = available
        self._patience = patience
        self._arrived = asyncio.Event()
        self._scorer: Scorer | None = None

    async def hold(self, ready: Callable[[bool], None]) -> None:
        """Open the scorer and keep it until cancelled; raise what opening it raises.

        `ready` is told whenever texts can be scored, and when they no longer can.
        """
        while True:
            try:
                async with self._open() as scorer:
                    self._scorer = scorer
                    self._arrived.set()
                    try:
                        await self._until_gone(ready)
                    finally:
                        self._scorer = None
                        self._arrived.clear()
                        ready(False)
            except ScorerUnavailable as unavailable:
                log.warning("the scorer is not there, and is opened again", why=str(unavailable))
                await asyncio.sleep(_REOPEN_SECONDS)

    async def _until_gone(self, ready: Callable[[bool], None]) -> None:
        told = None
        gone = asyncio.ensure_future(self._gone())
        try:
            while not gone.done():
                if self.ready != told:
                    ready(told := self.ready)
                await asyncio.wait((gone,), timeout=_LOOK_SECONDS)
            await gone
        finally:
            gone.cancel()

    async def arrival(self) -> None:
        """Wait for the scorer to be loaded, if it isn't, and no longer than there is patience."""
        if self._patience and not self.loaded:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await self._arrived.wait()

    @property
    def loaded(self) -> bool:
        """Tell whether the scorer was opened, and so has an identity."""
        return self._scorer is not None

    @property
    def ready(self) -> bool:
        """Tell whether texts can be scored."""
        return self.loaded and self._available()

    @property
    def identity(self) -> Identity:
        """Say what the scores depend on; raise ScorerUnavailable."""
        return self._loaded().identity

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange; raise ScoringError."""
        return await self._loaded().score(exchange, policies)

    def _loaded(self) -> Scorer:
        if self._scorer is None:
            raise ScorerUnavailable("The scorer is not loaded yet.")
        return self._scorer
