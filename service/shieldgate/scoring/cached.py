"""A cache of scores in two levels, with single flight: what is being scored is scored once."""

import asyncio
import hmac
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Literal, Protocol

from shieldgate.policy import Policy
from shieldgate.scoring import turn
from shieldgate.scoring.interfaces import Scorer
from shieldgate.types import Exchange, Score


class CacheObserver(Protocol):
    """Sees how the cache fares."""

    def looked_up(self, found: Mapping[Literal["memory", "redis", "miss"], int]) -> None:
        """Take how many scores were found where, or nowhere."""

    def phase(self, phase: Literal["cache"], seconds: float) -> None:
        """Take how long the lookup took."""


class SecondLevel(Protocol):
    """Keeps scores beyond this process. It may know nothing, and raises nothing."""

    async def find(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """Look keys up at once, and soon; give those that are known."""
        ...

    def keep(self, scores: Mapping[bytes, Score]) -> None:
        """Store scores, without making anybody wait."""


class _Flight:
    """Single flight: one call to the scorer under way, and how many callers wait for it."""

    def __init__(self, task: asyncio.Task[list[Score]]) -> None:
        self.task = task
        self.until = _deadline()
        self._waiting = 0

    def join(self) -> None:
        """Count a caller in."""
        self._waiting += 1

    def leave(self) -> None:
        """Count a caller out; the last one cancels the call."""
        self._waiting -= 1
        if not self._waiting:
            self.task.cancel()

    @property
    def lost(self) -> bool:
        """Tell whether the call was given up, so that nobody should join it."""
        return self.task.cancelled() or self.task.cancelling() > 0


class Cached:
    """Keeps the margins of the last `max_entries` (exchange, policy) in memory; a Scorer.

    Keys are HMACs under `secret`, 16 bytes or more, of all that a margin depends on: the scorer's
    identity, which names the prompt's format, the exchange, and the guideline. So they tell
    nothing about the text, and thresholds can change without staling a score. What is not in
    memory is looked up in `second`, where there is one, before it is computed. Requests of one
    `turn.caller` that ask for the same score at once share one call, unless it may last longer
    than their deadline; failures are not kept. It is itself a SecondLevel, for a cache of scores
    that are worth less.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        secret: bytes,
        max_entries: int,
        second: SecondLevel | None = None,
        observer: CacheObserver | None = None,
    ) -> None:
        self._scorer = scorer
        self._second = second
        self._secret = secret
        self._max_entries = max_entries
        self._observer = observer
        self._scores: OrderedDict[bytes, Score] = OrderedDict()
        self._flights: dict[tuple[str, bytes], tuple[_Flight, int]] = {}
        self.identity = scorer.identity

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange; only policies that are not known reach the scorer.

        A growing exchange passes by: nobody asks for the same beginning twice.
        """
        if exchange.growing:
            return await self._scorer.score(exchange, policies)
        began = perf_counter()
        keys = self._keys(exchange, policies)
        known = {key: score for key in keys if (score := self._recall(key)) is not None}
        missing = {
            key: policy
            for key, policy in zip(keys, policies, strict=True)
            if key not in known and not self._in_flight(key)
        }
        # What is under way for another caller counts as known.
        self._count("memory", len(keys) - len(missing))
        if missing:
            self._start_flight(exchange, missing, began)
        else:
            self._observe_lookup(began)
        caller = turn.caller.get()
        joined = {key: self._flights[caller, key] for key in keys if key not in known}
        flights = list(dict.fromkeys(flight for flight, _ in joined.values()))
        # All are joined before the first is awaited: whoever leaves in between is counted out.
        for flight in flights:
            flight.join()
        try:
            results = {flight: await asyncio.shield(flight.task) for flight in flights}
        finally:
            for flight in flights:
                flight.leave()
        return [
            known[key] if key in known else results[joined[key][0]][joined[key][1]] for key in keys
        ]

    async def find(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """Look keys up for another cache, whose SecondLevel this is."""
        found = {key: score for key in keys if (score := self._scores.get(key)) is not None}
        rest = [key for key in keys if key not in found]
        return found | (await self._second.find(rest) if self._second and rest else {})

    def keep(self, scores: Mapping[bytes, Score]) -> None:
        """Pass on what another cache has computed; the memory here is for who asks here."""
        if self._second:
            self._second.keep(scores)

    def _start_flight(self, exchange: Exchange, missing: dict[bytes, Policy], began: float) -> None:
        task = asyncio.create_task(self._fetch(exchange, missing, began))
        flight, caller = _Flight(task), turn.caller.get()
        for place, key in enumerate(missing):
            self._flights[caller, key] = flight, place

        def finish(task: asyncio.Task[list[Score]]) -> None:
            for key in missing:
                if self._flights.get((caller, key), (None,))[0] is flight:
                    del self._flights[caller, key]
            if not task.cancelled() and task.exception() is None:
                self._keep(zip(missing, task.result(), strict=True))

        task.add_done_callback(finish)

    async def _fetch(
        self, exchange: Exchange, missing: dict[bytes, Policy], began: float
    ) -> list[Score]:
        """Find scores in the second level, and have the others computed."""
        found = await self._second.find(list(missing)) if self._second else {}
        self._observe_lookup(began)
        self._count("redis", len(found))
        rest = {key: policy for key, policy in missing.items() if key not in found}
        if rest:
            self._count("miss", len(rest))
            scores = await self._scorer.score(exchange, list(rest.values()))
            fresh = dict(zip(rest, scores, strict=True))
            if self._second:
                self._second.keep(fresh)
            found |= fresh
        return [found[key] for key in missing]

    def _in_flight(self, key: bytes) -> bool:
        # Who joined another caller's would wait for its turn, and fail with it.
        flight, _ = self._flights.get((turn.caller.get(), key), (None, 0))
        return flight is not None and not flight.lost and flight.until <= _deadline()

    def _recall(self, key: bytes) -> Score | None:
        score = self._scores.get(key)
        if score is not None:
            self._scores.move_to_end(key)
        return score

    def _keep(self, scores: "zip[tuple[bytes, Score]]") -> None:
        self._scores.update(scores)
        while len(self._scores) > self._max_entries:
            self._scores.popitem(last=False)

    def _count(self, where: Literal["memory", "redis", "miss"], scores: int) -> None:
        if self._observer:
            self._observer.looked_up({where: scores})

    def _observe_lookup(self, began: float) -> None:
        if self._observer:
            self._observer.phase("cache", perf_counter() - began)

    def _keys(self, exchange: Exchange, policies: Sequence[Policy]) -> list[bytes]:
        common = hmac.new(self._secret, digestmod="sha256")
        for text in (self.identity.key, exchange.direction, exchange.prompt, exchange.response):
            _update(common, text or "")
        keys = []
        for policy in policies:
            key = common.copy()
            _update(key, policy.guidelines[exchange.direction])
            keys.append(key.digest())
        return keys


def _deadline() -> float:
    deadline = turn.deadline.get()
    return deadline.until if deadline else math.inf


def _update(digest: hmac.HMAC, text: str) -> None:
    """Add a text with its length: joined ones could be split in another place."""
    data = text.encode("utf-8", "surrogatepass")
    digest.update(b"%d:" % len(data))
    digest.update(data)
