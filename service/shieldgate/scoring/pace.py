"""How fast tokens are computed, as forward passes tell."""

from collections.abc import Callable
from time import perf_counter

# A pass of fewer tokens says more of what a pass costs than of what a token does.
_TELLING_TOKENS = 1024


class Pace:
    """Estimates the seconds that a token takes, smoothed over passes; 0 before there was one.

    Passes that are under way at the same time compute one after the other: what came before the
    turn of one isn't its own time. `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self.per_token = 0.0
        self.per_token_of_many = 0.0
        self._computed = 0  # tokens of the passes under way
        self._started = 0.0  # when the first of them began, or the one before it ended

    @property
    def where_many(self) -> float:
        """Estimate the seconds of a token where there are many; 0 before that is known."""
        return min(self.per_token, self.per_token_of_many)

    def begin(self, tokens: int) -> float:
        """Count a pass in; give when it began, by the clock."""
        began = self._clock()
        self._started = self._started if self._computed else began
        self._computed += tokens
        return began

    def spent(self, began: float) -> float:
        """Tell how many seconds a pass that began then has had for itself."""
        return self._clock() - max(began, self._started)

    def end(self, tokens: int, *, telling: bool) -> float:
        """Count a pass out, and learn from it if it is `telling`; give its own seconds."""
        now = self._clock()
        seconds = now - self._started
        if telling:
            self.learn(seconds / tokens, tokens)
        self._computed -= tokens
        self._started = now
        return seconds

    def learn(self, per_token: float, tokens: int) -> None:
        """Take the pace of one pass into the estimates."""
        self.per_token = _smoothed(self.per_token, per_token)
        if tokens >= _TELLING_TOKENS:
            self.per_token_of_many = _smoothed(self.per_token_of_many, per_token)

    def left(self) -> float:
        """Estimate the seconds until the passes under way are done."""
        if not self._computed:
            return 0.0
        # Who takes longer than expected is expected to be done.
        expected = self._computed * self.per_token
        return max(0.0, expected - (self._clock() - self._started))


def _smoothed(before: float, recent: float) -> float:
    return 0.8 * (before or recent) + 0.2 * recent
