"""The scores of the last day, as histograms that forget."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from time import monotonic

from shieldgate.drift import bin_of
from shieldgate.types import Direction, Verdict

_SLICE_SECONDS = 3600.0
_SLICES = 24

Histograms = defaultdict[tuple[str, Direction], Counter[int]]


class ScoreWindow:
    """Counts margins by policy and direction, in the bins of `drift`, and forgets the oldest hour.

    It holds at most 25 hours, each with a count for each bin in use. `clock` is in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._slices: deque[tuple[int, Histograms]] = deque()

    def add(self, verdict: Verdict) -> None:
        """Count the scores that a final verdict rests on."""
        hour = self._forget()
        if not self._slices or self._slices[-1][0] != hour:
            self._slices.append((hour, defaultdict(Counter)))
        histograms = self._slices[-1][1]
        for judgement in verdict.judgements:
            histograms[judgement.policy, verdict.direction][bin_of(judgement.score.margin)] += 1

    def counts(self) -> Histograms:
        """Add up what was counted in the last day, by policy and direction."""
        self._forget()
        found: Histograms = defaultdict(Counter)
        for _, histograms in self._slices:
            for at, counted in histograms.items():
                found[at].update(counted)
        return found

    def _forget(self) -> int:
        hour = int(self._clock() / _SLICE_SECONDS)
        while self._slices and self._slices[0][0] < hour - _SLICES:
            self._slices.popleft()
        return hour
