"""A circuit breaker: what keeps failing is left alone until a probe finds that it works again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Literal

State = Literal["closed", "half_open", "open"]

# What others are told to wait while one call probes.
_PROBE_SECONDS = 1.0


class CircuitBreaker:
    """Counts failures in a row, and between them lets one call at a time try.

    closed     calls go through; `failure_threshold` failures in a row open it
    open       nothing goes through for `pause` seconds
    half_open  one call probes: a success closes it, a failure opens it for twice as long as
               before, up to `longest_pause`

    `changed` is called with each new state. Not thread-safe: for one event loop.
    """

    def __init__(
        self,
        *,
        failure_threshold: int = 5,
        pause: float = 1.0,
        longest_pause: float = 30.0,
        changed: Callable[[State], None] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._failure_threshold = failure_threshold
        self._first_pause = self._pause = pause
        self._longest_pause = longest_pause
        self._changed = changed
        self._clock = clock
        self._failures = 0
        self._until = 0.0
        self.state: State = "closed"

    def retry_after(self) -> float:
        """Give the seconds after which to call again; 0 where a call may be made now."""
        if self.state == "half_open":
            return _PROBE_SECONDS
        return max(0.0, self._until - self._clock()) if self.state == "open" else 0.0

    @contextmanager
    def watch(self, *failures: type[Exception]) -> Iterator[None]:
        """Watch a call that may be made now; of what it raises, `failures` count against it.

        Any other exception, such as that its caller left, tells nothing.
        """
        probes = self.state == "open"
        if probes:
            self._set_state("half_open")
        try:
            yield
        except failures:
            self._failed(probes)
            raise
        except BaseException:
            if probes and self.state == "half_open":
                self._set_state("open")  # with its pause behind it, so that the next call probes
            raise
        self._succeeded()

    def _failed(self, probes: bool) -> None:
        if probes:
            self._open(min(2 * self._pause, self._longest_pause))
        elif self.state == "closed":
            self._failures += 1
            if self._failures >= self._failure_threshold:
                self._open(self._first_pause)

    def _succeeded(self) -> None:
        self._failures = 0
        if self.state != "closed":
            self._set_state("closed")

    def _open(self, pause: float) -> None:
        self._pause = pause
        self._until = self._clock() + pause
        self._set_state("open")

    def _set_state(self, state: State) -> None:
        self.state = state
        if self._changed:
            self._changed(state)
