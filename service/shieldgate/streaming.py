"""Text of a growing answer in, *released* text out: what no judgement covers stays back.

Each judgement sees the prompt and the whole answer so far, so what straddles two of them is seen
by the second. Judgements come one at a time and don't stop the reading: one that takes long lets
the next one cover more.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from shieldgate.policy import Streaming
from shieldgate.strands import Arrivals, whole_and_parts
from shieldgate.types import Exchange, Judged, Verdict

Judge = Callable[[Exchange], Awaitable[Judged]]
P = TypeVar("P")

# How far the reading may be ahead of a judgement under way, in characters and pieces held.
READ_AHEAD = 65_536


@dataclass(frozen=True, slots=True)
class Step(Generic[P]):
    """What a guard lets happen: pieces that leave, a verdict, or both.

    `start` and `end` bound what the verdict is new for, in characters of the answer in the order
    of their arrival; it covers all up to `end`. No piece leaves after a verdict that stops.
    `held` is how long the first of the pieces was held back, in seconds.
    """

    pieces: tuple[P, ...] = ()
    judged: Judged | None = None
    start: int = 0
    end: int = 0
    held: float = 0.0

    @property
    def verdict(self) -> Verdict | None:
        """Give the verdict, where there is one."""
        return self.judged.verdict if self.judged else None


class StreamGuard(Generic[P]):
    """Guards one choice of an answer, from its first piece to its end.

    Someone feeds it and someone else runs it, at the same time. A piece is whatever carries text
    on the wire; it leaves whole.
    """

    def __init__(
        self,
        prompt: str,
        streaming: Streaming,
        judge: Judge,
        emit: Callable[[Step[P]], None],
        *,
        hold: bool,
        prefill: str = "",
    ) -> None:
        """Judge answers to `prompt` when `streaming` says so; `prefill` is judged before each.

        `hold` keeps pieces back until a verdict covers them; without it they leave as they come,
        until a verdict stops that, and only what completes the answer waits for its verdict.
        `emit` is called with every step, in order.
        """
        self._prompt = prompt
        self._prefill = prefill
        self._streaming = streaming
        self._judge = judge
        self._emit = emit
        self._hold = hold
        self._texts: dict[str, list[str]] = {}
        self._arrivals = Arrivals()
        self._held: deque[tuple[P, int, float]] = deque()
        self._held_size = 0
        self._read = 0
        self._covered = 0
        self._complete = False
        self._ended = False
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._checked = asyncio.Event()
        self.judged: Judged | None = None
        """The first verdict with a violation, until one stops the answer; else the last one."""
        self.exchange: Exchange | None = None
        """What that verdict is about."""

    @property
    def verdict(self) -> Verdict | None:
        """Give the verdict on the answer, as far as there is one."""
        return self.judged.verdict if self.judged else None

    @property
    def stopped(self) -> bool:
        """Tell whether a verdict has stopped the answer."""
        return self.verdict is not None and self.verdict.action.stops

    async def feed(
        self, piece: P, texts: Iterable[tuple[str, str]], *, complete: bool = False
    ) -> None:
        """Take a piece and its texts, each with the name of the strand that it continues.

        Strands (the content, the arguments of a tool call) may come in any mixture. Each is judged
        in one run, and where they take turns all in the order in which they come. `complete` says
        that no more text is expected, so that the judgement need not wait for the end. Waits while
        the reading is too far ahead of the judgement under way. What comes after the answer was
        stopped is dropped.
        """
        if self.stopped:
            return
        texts = list(texts)
        self._arrivals.take(texts)
        size = 0
        for strand, text in texts:
            self._texts.setdefault(strand, []).append(text)
            size += len(text)
        self._read += size
        self._complete |= complete
        # A stopped answer is given another ending, so its own may not have left.
        if self._hold or self._complete:
            self._held.append((piece, size, perf_counter()))
            self._held_size += size
        else:
            self._emit(Step((piece,)))
        self._changed.set()
        if self._held_size + len(self._held) > READ_AHEAD:
            await self._idle.wait()

    def stop(self, judged: Judged) -> None:
        """Stop the answer by a verdict that was not asked for here; what is held never leaves."""
        if not self.stopped:
            self._stop(judged, self._exchange(), self._covered, self._read)
            self._changed.set()

    async def caught_up(self) -> None:
        """Wait until no judgement is due or under way."""
        while not self.stopped and (self._due() or not self._idle.is_set()):
            self._checked.clear()
            await self._checked.wait()

    def end(self) -> None:
        """Say that the last piece has come."""
        self._ended = True
        self._changed.set()

    async def run(self) -> None:
        """Judge and release until the answer has ended or is stopped; raise what judging raises."""
        while True:
            while not (self.stopped or self._ended or self._due()):
                self._changed.clear()
                await self._changed.wait()
            if self.stopped:
                return
            if self._due():
                await self._check()
            else:
                self._emit(self._release(len(self._held)))
                return

    def _due(self) -> bool:
        if self._complete or self._ended:
            return self._read > self._covered or self.verdict is None
        if self._streaming.mode == "full":
            return False
        # Pieces that say nothing may come for ever.
        too_many = len(self._held) > READ_AHEAD
        return too_many or self._read >= self._streaming.next_check(self._covered)

    async def _check(self) -> None:
        start, end, pieces = self._covered, self._read, len(self._held)
        exchange = self._exchange()
        self._idle.clear()
        try:
            judged = await self._judge(exchange)
        finally:
            self._idle.set()
            self._checked.set()
        if self.stopped:
            return
        if judged.verdict.action.stops:
            self._stop(judged, exchange, start, end)
            return
        if not (self.verdict and self.verdict.violated):
            self.judged, self.exchange = judged, exchange
        self._covered = end
        self._emit(self._release(pieces, judged, start, end))

    def _exchange(self) -> Exchange:
        """Put together what has been read so far."""
        self._texts = {strand: ["".join(texts)] for strand, texts in self._texts.items()}
        strands = [(strand, text) for strand, [text] in self._texts.items()]
        strands.append(self._arrivals.strand())
        answer, parts = whole_and_parts(strands, self._prefill)
        growing = not (self._complete or self._ended)
        return Exchange(self._prompt, answer, growing=growing, parts=parts)

    def _stop(self, judged: Judged, exchange: Exchange, start: int, end: int) -> None:
        self.judged, self.exchange = judged, exchange
        self._checked.set()
        self._held.clear()
        self._held_size = 0
        self._emit(Step((), judged, start, end))

    def _release(
        self, count: int, judged: Judged | None = None, start: int = 0, end: int = 0
    ) -> Step[P]:
        released = [self._held.popleft() for _ in range(count)]
        self._held_size -= sum(size for _, size, _ in released)
        held = perf_counter() - released[0][2] if released else 0.0
        pieces = tuple(piece for piece, _, _ in released)
        return Step(pieces, judged, start, end, held)
