"""Rate limits (GCRA) and concurrency limits (leases), in Redis for all replicas, else here."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING
from uuid import uuid4

from shieldgate.errors import ExceedsLimit, LimitReached

if TYPE_CHECKING:
    from shieldgate.redis.client import RedisClient
    from shieldgate.redis.urls import Client

LIMITED = ("requests", "texts", "characters")
_MINUTE = 60.0
_LEASE_SECONDS = 60
_RENEW_SECONDS = 20

# A token bucket that holds a minute's worth and fills evenly, stored as the time at which it will
# be full again (GCRA, the generic cell rate algorithm of ATM). And a semaphore: a sorted set of
# leases, each with the time until which it holds unless it is renewed, so that those of a process
# that died expire. Redis' clock counts, and if it jumps back, nobody waits longer
# than a minute.
_ACQUIRE = """
local time = redis.call('TIME')
local now, minute = time[1] * 1000000 + time[2], 60000000
local most, ahead, full = tonumber(ARGV[1]), {}, false
if most > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
    if redis.call('ZCARD', KEYS[1]) >= most then return {-1} end
end
for i = 2, #KEYS do
    local known = tonumber(redis.call('GET', KEYS[i]) or now)
    ahead[i] = math.min(math.max(known - now, 0), minute)
    full = full or ahead[i] + ARGV[2 * i + 1] * minute / ARGV[2 * i] > minute + 1
end
local found = {full and 0 or 1}
for i = 2, #KEYS do
    if not full then
        ahead[i] = ahead[i] + ARGV[2 * i + 1] * minute / ARGV[2 * i]
        local till = string.format('%.0f', now + ahead[i])
        redis.call('SET', KEYS[i], till, 'PX', math.ceil(ahead[i] / 1000))
    end
    found[i] = math.ceil(ahead[i])
end
if most > 0 and not full then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[3] * 1000000), ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return found
"""
_RENEW = """
local time = redis.call('TIME')
local till = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[1] * 1000000)
for place = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', till, ARGV[place]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
"""
_RELEASE = "redis.call('ZREM', KEYS[1], ARGV[1])"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a caller may use; None does not limit. `name` tells callers apart."""

    name: str
    requests_per_minute: int | None = None
    texts_per_minute: int | None = None
    characters_per_minute: int | None = None
    concurrent: int | None = None

    @property
    def a_minute(self) -> dict[str, int]:
        """Give what is limited by the minute."""
        rates = {what: getattr(self, f"{what}_per_minute") for what in LIMITED}
        return {what: rate for what, rate in rates.items() if rate}


@dataclass(frozen=True, slots=True)
class _Use:
    """What is taken of a bucket: `cost` of `rate` a minute."""

    what: str
    rate: int
    cost: int

    @property
    def seconds(self) -> float:
        return self.cost * _MINUTE / self.rate


@dataclass(frozen=True, slots=True)
class Standing:
    """How a caller stands with `limit` a minute of something: in `seconds` all of it is there."""

    what: str
    limit: int
    remaining: int
    seconds: float


class RateLimiter:
    """Counts requests, texts, characters and what runs at the same time, for each caller.

    A caller may use a minute's worth at once; it comes back evenly. Where Redis fails, is late, or
    there is none, each process goes on counting from what Redis last told it. `redis` is where
    replicas count together, `clock` gives seconds.
    """

    def __init__(
        self, redis: "RedisClient | None" = None, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._full: dict[str, float] = {}
        self._running: Counter[str] = Counter()
        self._leases: dict[str, set[str]] = {}

    @asynccontextmanager
    async def admit(self, allowed: RateLimit) -> AsyncIterator[None]:
        """Hold a caller's place while a request is served; raise LimitReached."""
        name, most = allowed.name, allowed.concurrent or 0
        if most and self._running[name] >= most:
            raise _too_many(most)
        self._running[name] += 1
        lease = uuid4().hex
        try:
            await self._acquire(name, _uses(allowed, requests=1), most=most, lease=lease)
            yield
        finally:
            self._release(name, lease)

    async def charge(self, allowed: RateLimit, texts: int, characters: int) -> None:
        """Count what is to be judged; raise LimitReached, and ExceedsLimit for too much at once."""
        await self._acquire(allowed.name, _uses(allowed, texts=texts, characters=characters))

    def standing(self, allowed: RateLimit) -> list[Standing]:
        """Tell how a caller stands with each of its limits, as far as this process knows."""
        now, found = self._clock(), []
        for what, rate in allowed.a_minute.items():
            ahead = max(self._full.get(_bucket(allowed.name, what), now) - now, 0.0)
            remaining = int((_MINUTE - ahead) * rate / _MINUTE + 1e-6)
            found.append(Standing(what, rate, max(remaining, 0), ahead))
        return found

    async def run(self) -> None:
        """Renew what is held in Redis until cancelled."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            for name, leases in self._leases.items():
                self._tell(_RENEW, name, _LEASE_SECONDS, *leases)

    async def _acquire(
        self, name: str, uses: Sequence[_Use], *, most: int = 0, lease: str = ""
    ) -> None:
        """Take all of `uses` and one of `most` leases, or nothing; 0 is no limit."""
        for use in uses:
            if use.cost > use.rate:
                raise ExceedsLimit(
                    f"This key may send {use.rate} {use.what} a minute, and this request alone "
                    f"holds {use.cost}. Send less at once."
                )
        if not uses and not most:
            return
        if self._redis and most:
            self._leases.setdefault(name, set()).add(lease)
        waits = await self._acquire_in_redis(name, uses, most, lease)
        if waits is None:
            waits = self._acquire_here(name, uses)
        wait = max(waits, default=0.0)
        if wait > 0:
            use = uses[waits.index(wait)]
            raise LimitReached(
                f"This key may send {use.rate} {use.what} a minute.", retry_after=wait
            )

    async def _acquire_in_redis(
        self, name: str, uses: Sequence[_Use], most: int, lease: str
    ) -> list[float] | None:
        """Do so in Redis; gives the seconds to wait for each use, None on failure."""
        if self._redis is None:
            return None
        keys = [_leases_key(name), *(_bucket(name, use.what) for use in uses)]
        numbers = [number for use in uses for number in (use.rate, use.cost)]

        async def acquire(client: "Client") -> tuple[int, list[float]]:
            found: list[int] = await client.eval(
                _ACQUIRE, len(keys), *keys, most, lease, _LEASE_SECONDS, *numbers
            )
            ahead = [microseconds / 1e6 for microseconds in found[1:]]
            # Here, because this runs for an answer that comes too late, too.
            self._learn(name, uses, ahead)
            return found[0], ahead

        answer = await self._redis.ask("redis_write", acquire)
        if answer is None:
            return None
        state, ahead = answer
        if state < 0:
            raise _too_many(most)
        return [] if state else _waits(uses, ahead)

    def _acquire_here(self, name: str, uses: Sequence[_Use]) -> list[float]:
        """Do so in the buckets of this process."""
        now = self._clock()
        ahead = [max(self._full.get(_bucket(name, use.what), now) - now, 0) for use in uses]
        waits = _waits(uses, ahead)
        if not any(waits):
            self._learn(name, uses, [a + use.seconds for a, use in zip(ahead, uses, strict=True)])
        return waits

    def _learn(self, name: str, uses: Sequence[_Use], ahead: Sequence[float]) -> None:
        """Note in how many seconds buckets will be full again; of two answers, the later time."""
        for use, seconds in zip(uses, ahead, strict=False):
            bucket = _bucket(name, use.what)
            self._full[bucket] = max(self._full.get(bucket, 0.0), self._clock() + seconds)

    def _release(self, name: str, lease: str) -> None:
        self._running[name] -= 1
        if not self._running[name]:
            del self._running[name]
        leases = self._leases.get(name, set())
        if lease in leases:
            leases.remove(lease)
            self._tell(_RELEASE, name, lease)
        if not leases:
            self._leases.pop(name, None)

    def _tell(self, script: str, name: str, *arguments: int | str) -> None:
        if self._redis:
            self._redis.tell(lambda client: client.eval(script, 1, _leases_key(name), *arguments))


def _uses(allowed: RateLimit, **costs: int) -> list[_Use]:
    rates = allowed.a_minute
    return [_Use(what, rates[what], cost) for what, cost in costs.items() if what in rates and cost]


def _waits(uses: Sequence[_Use], ahead: Sequence[float]) -> list[float]:
    """Tell for each use how long it has to wait, in seconds; a microsecond is no wait."""
    waits = (a + use.seconds - _MINUTE for a, use in zip(ahead, uses, strict=True))
    return [wait if wait > 1e-6 else 0.0 for wait in waits]


def _bucket(name: str, what: str) -> str:
    # What stands in braces decides the node of a cluster, and a script's keys must be on one.
    return f"shieldgate:limit:{{{name}}}:{what}"


def _leases_key(name: str) -> str:
    return _bucket(name, "places")


def _too_many(most: int) -> LimitReached:
    return LimitReached(f"This key may have {most} requests at the same time.", retry_after=1)
