"""What work waits for: processors, threads, and a record of how busy each was."""

from collections.abc import Generator, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

from simpy import Environment, Event, Resource, Timeout

Steps = Generator[Event, Any, Any]


class Processors(Protocol):
    """Does work, and tells when it is done."""

    def work(self, seconds: float) -> Event:
        """Begin with work that takes a core so many seconds where nothing else is on it."""
        ...


class Dedicated:
    """A machine on which nothing else is."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    def work(self, seconds: float) -> Event:
        return self._env.timeout(seconds)


class SharedCores:
    """Cores that all work on them shares evenly (processor sharing, Kleinrock 1967).

    A piece of work has one core at most. `speeds` says how fast each is while 1, 2, … are busy.
    """

    def __init__(self, env: Environment, speeds: Sequence[float]) -> None:
        self._env = env
        self._speeds = speeds
        self._jobs: list[tuple[float, int, Event]] = []  # by how much each has had when it is done
        self._had = 0.0  # how much each job that was there all the time has had
        self._then = 0.0
        self._plan_number = 0
        self._order = count()

    def work(self, seconds: float) -> Event:
        self._advance()
        done = self._env.event()
        heappush(self._jobs, (self._had + seconds, next(self._order), done))
        self._plan()
        return done

    def _rate(self) -> float:
        jobs = len(self._jobs)
        busy = min(jobs, len(self._speeds))
        return self._speeds[busy - 1] * busy / jobs

    def _advance(self) -> None:
        if self._jobs:
            self._had += (self._env.now - self._then) * self._rate()
        else:
            self._had = 0.0
        self._then = self._env.now

    def _plan(self) -> None:
        """Come back when the next job is done, unless others come or go before."""
        self._plan_number += 1
        if self._jobs:
            left = max(0.0, self._jobs[0][0] - self._had) / self._rate()
            timer = Timeout(self._env, left, self._plan_number)
            timer.callbacks.append(self._due)

    def _due(self, timer: Event) -> None:
        if timer.value != self._plan_number:
            return
        self._advance()
        heappop(self._jobs)[2].succeed()
        self._plan()


class Meter:
    """How long something was busy, and what waited for it at most, in equal parts of the day."""

    def __init__(self, day: float, parts: int) -> None:
        self._width = day / parts
        self.busy = [0.0] * parts  # of each part, as a share
        self.longest = [0] * parts

    def add(self, began: float, ended: float, share: float = 1.0) -> None:
        """Count a time in which a share of it was busy; what is after the day is left out."""
        for part in range(int(began / self._width), len(self.busy)):
            start = max(began, part * self._width)
            if start >= ended:
                return
            within = min(ended, (part + 1) * self._width) - start
            self.busy[part] += share * within / self._width

    def waiting(self, now: float, number: int) -> None:
        """Take how many wait now."""
        part = int(now / self._width)
        if part < len(self.longest):
            self.longest[part] = max(self.longest[part], number)


class Thread:
    """Does one thing after the other, in the order in which they come: an event loop, or Redis."""

    def __init__(self, env: Environment, processors: Processors, meter: Meter) -> None:
        self._env = env
        self._processors = processors
        self._turn = Resource(env)
        self.meter = meter

    def run(self, seconds: float) -> Steps:
        """Wait for one's turn, and for the work."""
        if not seconds:
            return
        self.meter.waiting(self._env.now, len(self._turn.queue))
        with self._turn.request() as turn:
            yield turn
            began = self._env.now
            yield self._processors.work(seconds)
            self.meter.add(began, self._env.now)
