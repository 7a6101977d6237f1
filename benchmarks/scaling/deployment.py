"""Gateways before scorers: the way of a request through them, and what becomes of it."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Literal, get_args

from simpy import Environment, Event, Interrupt, Resource

from benchmarks.scaling.load import Request
from benchmarks.scaling.machines import Dedicated, Meter, SharedCores, Steps, Thread
from benchmarks.scaling.scorer import Full, Limits, Scorer
from benchmarks.scaling.times import Times
from shieldgate.scoring.remote.replicas import _weight

Choice = Literal["rendezvous", "round-robin", "least-requests", "own"]
Balancing = Literal["round-robin", "least-requests"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
BALANCING: tuple[Balancing, ...] = get_args(Balancing)

# `scored`, `cached` and `shared` (found in Redis) are answers; `full` is a 429 and `late` a 503.
Outcome = Literal["scored", "cached", "shared", "full", "late"]
REFUSED: tuple[Outcome, ...] = ("full", "late")

_ATTEMPTS, _LONGEST_PAUSE = 4, 5.0  # of scoring.remote.scorer, when a server has no place


@dataclass(frozen=True)
class Plan:
    """What is deployed.

    `choice` is how a gateway finds a scorer: rendezvous hashing, as with several URLs, or by the
    balancer that one URL leads to; or each has its `own`, in its process or on its machine, in
    which callers take turns. `balancer` is what the balancer before the gateways does for a
    request, in seconds.
    """

    gateways: int = 2
    scorers: int = 2
    choice: Choice = "rendezvous"
    balancing: Balancing = "round-robin"
    balancer: float = 0.0
    redis: bool = False
    limits: Limits = field(default_factory=Limits)


class Redis:
    """What all gateways share, in a server of one thread."""

    def __init__(self, env: Environment, times: Times, thread: Thread, patience: float) -> None:
        self._env = env
        self._times = times
        self._thread = thread
        self._patience = patience
        self._known: set[int] = set()

    def find(self, text: int) -> Steps:
        """Look a text up; what takes too long is not known."""
        answered = self._env.process(self._command(self._times.redis_find))
        yield answered | self._env.timeout(self._patience)
        return answered.triggered and text in self._known

    def keep(self, text: int) -> None:
        """Store a text's scores, for which nobody waits."""
        self._known.add(text)
        self._env.process(self._command(self._times.redis_keep))

    def _command(self, seconds: float) -> Steps:
        yield from self._thread.run(seconds)
        yield self._env.timeout(self._times.redis_way)


class Gateway:
    """One process: an event loop, a cache of its own, and places at each scorer."""

    def __init__(
        self,
        env: Environment,
        times: Times,
        plan: Plan,
        *,
        loop: Thread,
        places: Meter,
        choose: Callable[[int], int],
        scorers: Sequence[Scorer],
        redis: Redis | None,
    ) -> None:
        self.loop = loop
        self.requests = 0
        self._env = env
        self._times = times
        self._plan = plan
        self._choose = choose
        self._scorers = scorers
        urls = len(scorers) if plan.choice == "rendezvous" else 1
        self._places = [Resource(env, plan.limits.model_texts) for _ in range(urls)]
        self._places_meter = places
        self._redis = redis
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._flights: dict[tuple[str, int], Event] = {}
        self._calls = 0
        self._asking = max(0.0, times.scored - times.cached) / 2  # before, and once more after it

    def answer(self, request: Request) -> Steps:
        """Judge a text, and give the outcome."""
        self.requests += 1
        yield from self.loop.run(self._times.cached / 2)
        outcome = yield from self._find(request)
        if outcome in REFUSED:
            yield from self.loop.run(max(0.0, self._times.refused - self._times.cached / 2))
        else:
            yield from self.loop.run(self._times.cached / 2)
        self.requests -= 1
        return outcome

    def _find(self, request: Request) -> Steps:
        """Look in the cache, in what is under way for the same caller, and ask a scorer."""
        if request.text in self._cache:
            self._cache.move_to_end(request.text)
            return "cached"
        key = request.caller, request.text
        if flight := self._flights.get(key):
            return (yield flight)
        flight = self._flights[key] = self._env.event()
        outcome = yield from self._fetch(request)
        del self._flights[key]
        flight.succeed(outcome)
        if outcome not in REFUSED and self._plan.limits.cache_texts:
            self._cache[request.text] = None
            if len(self._cache) > self._plan.limits.cache_texts:
                self._cache.popitem(last=False)
        return outcome

    def _fetch(self, request: Request) -> Steps:
        until = self._env.now + self._plan.limits.guard_seconds
        if self._redis:
            yield from self.loop.run(self._times.redis_client)
            if (yield from self._redis.find(request.text)):
                return "shared"
        asking = self._env.process(self._ask(request, until))
        yield asking | self._env.timeout(max(0.0, until - self._env.now))
        if asking.is_alive:
            asking.interrupt()
            yield asking
        if asking.value == "scored":
            yield from self.loop.run(self._asking)
            if self._redis:
                self._redis.keep(request.text)
        return asking.value

    def _ask(self, request: Request, until: float) -> Steps:
        tokens = self._times.prompt_tokens + request.tokens
        try:
            if self._plan.choice == "own":
                yield from self.loop.run(self._asking)
                scorer = self._scorers[self._choose(request.text)]
                yield from scorer.score(request.caller, tokens, until)
            else:
                yield from self._elsewhere(request.text, tokens)
        except Full:
            return "full"
        except Interrupt:
            return "late"
        return "scored"

    def _elsewhere(self, text: int, tokens: int) -> Steps:
        """Ask over HTTP, where all gateways are one caller that names no deadline; raise Full."""
        if self._calls >= self._plan.limits.max_waiting:
            raise Full(1.0)
        self._calls += 1
        hashed = self._choose(text) if self._plan.choice == "rendezvous" else None
        try:
            yield from self.loop.run(self._asking)
            places = self._places[hashed or 0]
            self._places_meter.waiting(self._env.now, len(places.queue))
            with places.request() as place:
                yield place
                began = self._env.now
                try:
                    yield from self._send(text, hashed, tokens)
                finally:
                    share = 1 / (len(self._places) * self._plan.limits.model_texts)
                    self._places_meter.add(began, self._env.now, share)
        finally:
            self._calls -= 1

    def _send(self, text: int, hashed: int | None, tokens: int) -> Steps:
        """Send a request, and again where there was no place; raise Full."""
        yield self._env.timeout(self._times.way)
        for attempt in range(1, _ATTEMPTS + 1):
            number = self._choose(text) if hashed is None else hashed
            try:
                yield from self._scorers[number].score("", tokens, math.inf)
            except Full as full:
                if attempt == _ATTEMPTS:
                    raise
                yield self._env.timeout(min(full.ahead, _LONGEST_PAUSE))
            else:
                return


class Deployment:
    """All of a plan, on machines of their own or on one that they share."""

    def __init__(self, env: Environment, times: Times, plan: Plan, day: float, parts: int) -> None:
        self._env = env
        self._times = times
        self._plan = plan
        self.meters: dict[str, list[Meter]] = {}
        shared = SharedCores(env, times.speeds) if times.speeds else None
        processors = shared or Dedicated(env)

        def meter(kind: str) -> Meter:
            made = Meter(day, parts)
            self.meters.setdefault(kind, []).append(made)
            return made

        def thread(kind: str) -> Thread:
            return Thread(env, processors, meter(kind))

        self.client, self.balancer = thread("client"), thread("balancer")
        limits = plan.limits
        scorers = [
            Scorer(
                env,
                times,
                limits,
                processors=processors,
                loop=thread("scorer's loop"),
                meter=meter("scorer"),
            )
            for _ in range(plan.scorers)
        ]
        served = Redis(env, times, thread("Redis"), limits.redis_seconds)
        choose = _chooser(plan.choice, scorers)
        self.gateways = [
            Gateway(
                env,
                times,
                plan,
                loop=thread("gateway"),
                places=meter("places"),
                choose=partial(choose, number),
                scorers=scorers,
                redis=served if plan.redis else None,
            )
            for number in range(plan.gateways)
        ]
        self._turns = cycle(self.gateways)

    def answer(self, request: Request) -> Steps:
        """Take a request from its caller to a gateway and back; gives the outcome."""
        yield from self.client.run(self._times.client / 2)
        yield from self.balancer.run(self._plan.balancer)
        if self._plan.balancing == "least-requests":
            gateway = min(self.gateways, key=lambda one: one.requests)
        else:
            gateway = next(self._turns)
        outcome = yield from gateway.answer(request)
        yield from self.client.run(self._times.client / 2)
        return outcome


def _chooser(choice: Choice, scorers: Sequence[Scorer]) -> Callable[[int, int], int]:
    """Make what finds a scorer's number by that of the gateway and of the text."""
    numbers, turns = range(len(scorers)), cycle(range(len(scorers)))
    names = [f"http://scorer-{number}" for number in numbers]
    choosers: dict[Choice, Callable[[int, int], int]] = {
        "rendezvous": lambda _, text: max(numbers, key=lambda n: _weight(names[n], b"%d" % text)),
        "round-robin": lambda _, __: next(turns),
        "least-requests": lambda _, __: min(numbers, key=lambda n: len(scorers[n].calls)),
        "own": lambda gateway, _: gateway % len(scorers),
    }
    return choosers[choice]
