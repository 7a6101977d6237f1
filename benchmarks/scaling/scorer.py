"""A scorer process of the model: it batches as `shieldgate.scoring.Batched` does."""

import math
from collections import Counter
from dataclasses import dataclass

from simpy import Environment, Event

from benchmarks.scaling.machines import Meter, Processors, Steps, Thread
from benchmarks.scaling.times import Times
from shieldgate.scoring.fair_queue import FairQueue
from shieldgate.scoring.pace import Pace


@dataclass(frozen=True)
class Limits:
    """The settings of `serve` that bound waiting, and what they are by default.

    `cache_texts` counts texts where `--cache-entries` counts scores, one for each policy.
    """

    max_waiting: int = 256
    max_batch_tokens: int = 16_384
    pass_seconds: float = 0.25  # of the runs in docs/simulation.md; `serve` has 0.1 now
    guard_seconds: float = 30.0
    model_texts: int = 32
    cache_texts: int = 25_000
    redis_seconds: float = 0.05


class Full(Exception):
    """There is no place; `ahead` is for how many seconds at least."""

    def __init__(self, ahead: float) -> None:
        self.ahead = max(1.0, ahead)


@dataclass(eq=False)
class Piece:
    """A text that waits for its forward pass."""

    caller: str
    size: int
    done: Event
    began: bool = False


class Scorer:
    """One process: an event loop, and a thread that runs forward passes.

    The queue and the pace are the service's own; what surrounds them follows `Batched`: places
    and who loses one, the size of a pass, and the refusal of what could not be done in time.
    """

    def __init__(
        self,
        env: Environment,
        times: Times,
        limits: Limits,
        *,
        processors: Processors,
        loop: Thread,
        meter: Meter,
    ) -> None:
        self.loop = loop
        self.meter = meter
        self.calls: dict[Piece, None] = {}
        self._env = env
        self._times = times
        self._limits = limits
        self._processors = processors
        self._queue: FairQueue[Piece] = FairQueue()
        self._arrived = env.event()
        self._pace = Pace(lambda: float(env.now))
        env.process(self._run())

    def score(self, caller: str, tokens: int, until: float) -> Steps:
        """Wait for a text's scores; raise Full."""
        yield from self.loop.run(self._times.scorer)
        piece = Piece(caller, tokens, self._env.event())
        self._take_place(piece)
        try:
            ahead = self._ahead(caller, tokens)
            mine = tokens * self._pace.per_token
            if ahead and ahead + mine > until - self._env.now:
                raise Full(ahead)
            self._queue.put(piece)
            self.meter.waiting(self._env.now, len(self._queue))
            if not self._arrived.triggered:
                self._arrived.succeed()
            yield piece.done
        finally:
            self.calls.pop(piece, None)
            if not piece.began:
                self._queue.drop([piece])

    def _take_place(self, piece: Piece) -> None:
        if len(self.calls) >= self._limits.max_waiting:
            held = Counter(one.caller for one in self.calls)
            most = max(held, key=held.__getitem__)
            full = Full(self._ahead(piece.caller))
            if held[most] <= held[piece.caller] + 1:
                raise full
            last = next(one for one in reversed(self.calls) if one.caller == most)
            del self.calls[last]
            if not last.done.triggered:
                last.done.fail(full)
                last.done.defused = True  # who waits may have left
        self.calls[piece] = None

    def _ahead(self, caller: str, tokens: int = 0) -> float:
        return self._queue.ahead(caller, tokens) * self._pace.per_token + self._pace.left()

    def _run(self) -> Steps:
        while True:
            if not self._queue:
                self._arrived = self._env.event()
                yield self._arrived
            batch = [p for p in self._queue.take(self._budget()) if not p.done.triggered]
            if not batch:
                continue
            sizes = [piece.size for piece in batch]
            tokens = sum(sizes)
            for piece in batch:
                piece.began = True
            began = self._pace.begin(tokens)
            yield self._processors.work(self._times.forward(sizes))
            self._pace.end(tokens, telling=True)
            self.meter.add(began, self._env.now)
            for piece in batch:
                if not piece.done.triggered:
                    piece.done.succeed()

    def _budget(self) -> float:
        rate = self._pace.per_token
        return min(
            self._limits.max_batch_tokens, self._limits.pass_seconds / rate if rate else math.inf
        )
