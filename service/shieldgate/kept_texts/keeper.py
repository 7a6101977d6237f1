"""Chooses decisions whose texts are kept, and keeps them beside the requests."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Protocol, Self

import structlog

from shieldgate.errors import StoreFailed
from shieldgate.kept_texts.kept import KeptText
from shieldgate.kept_texts.labels import LabelStore
from shieldgate.kept_texts.rule import KeepRule
from shieldgate.kept_texts.seal import Seal
from shieldgate.kept_texts.store import SealedText, TextStore
from shieldgate.telemetry import Decision, TextStorage

_MOST_WAITING = 1000
_MOST_CHARACTERS = 16 * 2**20
_AT_ONCE = 100
_UPKEEP_SECONDS = 60.0
_CLOSING_SECONDS = 5.0

_RANDOM = random.SystemRandom()

log = structlog.get_logger(__name__)


class Observer(Protocol):
    """Counts what became of texts that were chosen."""

    def kept_texts(self, storage: TextStorage, texts: int) -> None:
        """Count texts: kept, dropped because too many waited, or refused by the database."""


class Keeper:
    """Takes decisions, and keeps the texts of some of them for `keep_seconds`; a context manager.

    Deletes what has expired, with labels that are older than `keep_labels_seconds`.

    Nobody waits for it: what is chosen waits here, bounded, for a thread that seals and stores it.
    What finds no room is dropped and counted, and so is what the database refuses.
    """

    def __init__(
        self,
        store: TextStore,
        seal: Seal,
        rule: KeepRule,
        *,
        keep_seconds: float,
        keep_labels_seconds: float,
        max_bytes: int,
        observer: Observer,
        draw: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._store = store
        self._seal = seal
        self._rule = rule
        self._labels = LabelStore(store.database)
        self._keep_seconds = keep_seconds
        self._keep_labels_seconds = keep_labels_seconds
        self._max_bytes = max_bytes
        self._observer = observer
        self._draw = draw
        self._waiting: deque[KeptText] = deque()
        self._characters = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._failing = False
        self._thread = ThreadPoolExecutor(1, "kept-texts")
        self._writing: asyncio.Task[None] | None = None

    def offer(self, decision: Decision) -> None:
        """Take a final decision, with the request id and the caller that are bound to the request.

        What was not judged has nothing to be near to, and is not kept.
        """
        exchange, judgements = decision.exchange, decision.verdict.judgements
        if exchange is None or not judgements:
            return
        chance, why = self._rule.choose(judgements, self._draw())
        if not why:
            return
        size = exchange.characters
        if len(self._waiting) >= _MOST_WAITING or self._characters + size > _MOST_CHARACTERS:
            self._observer.kept_texts("dropped", 1)
            return
        bound = structlog.contextvars.get_contextvars()
        self._characters += size
        self._waiting.append(
            KeptText(
                id=decision.id,
                caller=bound.get("caller", ""),
                at=time.time(),
                request_id=bound.get("request_id", ""),
                prompt=exchange.prompt,
                response=exchange.response,
                action=decision.verdict.action.value,
                judgements=judgements,
                profile=decision.profile,
                policy_book=decision.book,
                scorer=decision.scorer,
                why=why,
                chance=chance,
            )
        )
        self._arrived.set()

    async def __aenter__(self) -> Self:
        """Begin to write, after what has expired meanwhile is deleted."""
        self._writing = asyncio.create_task(self._write(), name="kept texts")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what waits, for a few seconds at most."""
        self._closing = True
        self._arrived.set()
        if self._writing:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING_SECONDS):
                    await self._writing
            if left := len(self._waiting):
                self._observer.kept_texts("dropped", left)
        self._thread.submit(self._store.close)
        self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        await self._in_thread(self._keep_up)
        due = time.monotonic() + _UPKEEP_SECONDS
        while not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(due - time.monotonic()):
                    await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
                self._characters -= sum(len(t.prompt) + len(t.response or "") for t in taken)
                stored = await self._in_thread(partial(self._add, taken))
                self._observer.kept_texts("kept" if stored else "failed", len(taken))
            if time.monotonic() >= due:
                await self._in_thread(self._keep_up)
                due = time.monotonic() + _UPKEEP_SECONDS

    def _add(self, texts: Sequence[KeptText]) -> None:
        self._store.add(
            [
                SealedText(t.id, t.caller, t.at, t.at + self._keep_seconds, t.sealed(self._seal))
                for t in texts
            ]
        )

    def _keep_up(self) -> None:
        now = time.time()
        self._labels.expire(now, self._keep_labels_seconds)
        self._store.expire(now, self._keep_seconds)
        self._store.shrink(self._max_bytes)

    async def _in_thread(self, work: Callable[[], None]) -> bool:
        """Do what blocks; tell whether it was done, and the log when that changes."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except Exception as failure:  # whatever it is, the next texts are to be tried
            if not self._failing:
                known = isinstance(failure, StoreFailed)
                why = str(failure) if known else type(failure).__name__
                log.warning("texts can't be kept", why=why, exc_info=not known)
            self._failing = True
            return False
        if self._failing:
            log.info("texts are kept again")
        self._failing = False
        return True
