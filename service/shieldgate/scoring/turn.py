"""On whose behalf a text is judged, until when, and what it took: what goes along with a call."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from uuid import uuid4

# Who asks, as far as turns are concerned; all who have no name share one.
caller: ContextVar[str] = ContextVar("caller", default="")

# Who asks only for what is left when nobody else does; no name that a caller may have.
BACKGROUND = "\0background"


@dataclass(slots=True, weakref_slot=True)
class Deadline:
    """What all texts of a request have in common.

    `until` is its end by the event loop's clock, `seconds` the time it had at the beginning.
    `tokens` counts what scoring the texts takes that have come so far; only who scores them knows.
    """

    id: str
    until: float
    seconds: float
    tokens: int = 0

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Begin one that ends in `seconds`."""
        return cls(uuid4().hex, asyncio.get_running_loop().time() + seconds, seconds)

    @property
    def left(self) -> float:
        """Give the seconds until then, negative once it is over."""
        return self.until - asyncio.get_running_loop().time()


deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """Give all that is scored in here, by tasks begun in here too, one deadline.

    One within another is the other.
    """
    given = deadline.get() or Deadline.after(seconds)
    token = deadline.set(given)
    try:
        yield given
    finally:
        deadline.reset(token)


@dataclass(slots=True)
class Meter:
    """What was computed: tokens, and their part of the passes' seconds; not what was known."""

    tokens: int = 0
    seconds: float = 0.0


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Count what is computed in here, by tasks begun in here too."""
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def count(tokens: int, seconds: float) -> None:
    """Count what was computed, where somebody wants to know."""
    if meter := _meter.get():
        meter.tokens += tokens
        meter.seconds += seconds
