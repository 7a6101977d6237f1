"""Leaves alone what keeps failing, and finds out by itself when it works again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Literal

State = Literal["closed", "half_open", "open"]

# What others are told to wait while one call finds out.
_PROBING_SECONDS = 1.0


class CircuitBreaker:
    """Counts failures in a row, and between them lets one call at a time try.

    closed     calls go through; `most_failures` failures in a row open it
    open       nothing goes through for `pause` seconds
    half_open  one call probes: a success closes it, a failure opens it for twice as long as
               before, up to `longest_pause`
    """

    def __init__(
        self,
        *,
        most_failures: int = 5,
        pause: float = 1.0,
        longest_pause: float = 30.0,
        changed: Callable[[State], None] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Start closed; `changed` is told each new state, `clock` gives seconds."""
        self._most_failures = most_failures
        self._first_pause = self._pause = pause
        self._longest_pause = longest_pause
        self._changed = changed
        self._clock = clock
        self._failures = 0
        self._until = 0.0
        self.state: State = "closed"

    def wait(self) -> float:
        """Give the seconds after which to ask again; 0 where a call may be made now."""
        if self.state == "half_open":
            return _PROBING_SECONDS
        return max(0.0, self._until - self._clock()) if self.state == "open" else 0.0

    @contextmanager
    def watch(self, *failures: type[Exception]) -> Iterator[None]:
        """Watch a call that may be made now; of what it raises, `failures` count against it.

        Any other exception, such as that its caller left, tells nothing.
        """
        probes = self.state == "open"
        if probes:
            self._enter("half_open")
        try:
            yield
        except failures:
            self._failed(probes)
            raise
        except BaseException:
            if probes and self.state == "half_open":
                self._enter("open")  # with its pause behind it, so that the next call probes
            raise
        self._works()

    def _failed(self, probes: bool) -> None:
        if probes:
            self._open(min(2 * self._pause, self._longest_pause))
        elif self.state == "closed":
            self._failures += 1
            if self._failures >= self._most_failures:
                self._open(self._first_pause)

    def _works(self) -> None:
        self._failures = 0
        if self.state != "closed":
            self._enter("closed")

    def _open(self, pause: float) -> None:
        self._pause = pause
        self._until = self._clock() + pause
        self._enter("open")

    def _enter(self, state: State) -> None:
        self.state = state
        if self._changed:
            self._changed(state)
