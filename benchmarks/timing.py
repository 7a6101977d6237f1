"""Timing that a busy machine disturbs as little as possible."""

import math
import time
from collections.abc import Callable, Mapping

ROUNDS = 3


def fastest(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time each run once a round, in turn, and give each one's fastest time by `clock` in seconds.

    There are at least ROUNDS rounds, and more until `seconds` have passed. What slows a round
    down then slows all of them; the fastest round is the one that was disturbed least.
    """
    best = dict.fromkeys(runs, math.inf)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < ROUNDS or time.perf_counter() < end:
        for name, run in runs.items():
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
        rounds += 1
    return best
