"""Who asks when, and for what: a day with bursts, and texts of which some come again."""

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A repeated text is one of the last so many.
_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """One text; `tokens` are its own, without the prompt around it."""

    at: float
    text: int
    tokens: int
    caller: str


@dataclass(frozen=True)
class Load:
    """A day of `seconds`, however long that is, with `rate` requests a second on average.

    The rate follows a cosine from its least at the ends to `peak` times the average in the middle.
    Bursts begin `bursts` times on average, anywhere; each lasts `burst_seconds` on average, and
    multiplies the rate by `burst_factor`, which comes on top of the average.

    Of the texts `repeats` is the share that came before lately. Their lengths are lognormal with
    `median` and `sigma`, from 1 to `longest` tokens, or drawn from `lengths`. Each is one of
    `callers`'.
    """

    rate: float
    seconds: float
    peak: float = 1.0
    bursts: float = 0.0
    burst_factor: float = 3.0
    burst_seconds: float = 5.0
    repeats: float = 0.0
    median: float = 40.0
    sigma: float = 0.8
    longest: int = 1024
    lengths: Sequence[int] = ()
    callers: int = 100

    def requests(self, seed: int) -> Iterator[Request]:
        """Draw a day: a Poisson process whose rate changes, by thinning (Lewis, Shedler 1979)."""
        draw = random.Random(seed)
        bursts = self._bursts(draw)
        most = self.rate * self.peak * (self.burst_factor if bursts else 1.0)
        lately: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        at, text = 0.0, 0
        while (at := at + draw.expovariate(most)) < self.seconds:
            inside = any(began <= at < ended for began, ended in bursts)
            now = self.at(at) * (self.burst_factor if inside else 1.0)
            if draw.random() * most >= now:
                continue
            if lately and draw.random() < self.repeats:
                which, tokens = draw.choice(lately)
            else:
                which, tokens = text, self._length(draw)
                lately.append((which, tokens))
                text += 1
            yield Request(at, which, tokens, str(draw.randrange(self.callers)))

    def at(self, second: float) -> float:
        """Give the rate at a second of the day, bursts aside."""
        wave = math.cos(2 * math.pi * second / self.seconds)
        return self.rate * (1 - (self.peak - 1) * wave)

    def _bursts(self, draw: random.Random) -> list[tuple[float, float]]:
        bursts, at = [], 0.0
        while self.bursts and (
            (at := at + draw.expovariate(self.bursts / self.seconds)) < self.seconds
        ):
            bursts.append((at, at + draw.expovariate(1 / self.burst_seconds)))
        return bursts

    def _length(self, draw: random.Random) -> int:
        if self.lengths:
            return draw.choice(self.lengths)
        drawn = draw.lognormvariate(math.log(self.median), self.sigma)
        return min(self.longest, max(1, round(drawn)))
