"""Rate limits (GCRA) and concurrency limits (leases), in Redis for all replicas, else here."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING
from uuid import uuid4

from shieldgate.errors import LimitReached

if TYPE_CHECKING:
    from shieldgate.redis.client import RedisClient
    from shieldgate.redis.urls import Client

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
local rate, cost, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if most > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
    if redis.call('ZCARD', KEYS[2]) >= most then return -1 end
end
if rate > 0 then
    local full = tonumber(redis.call('GET', KEYS[1]) or now)
    full = math.min(math.max(full, now), now + minute) + math.min(cost, rate) * minute / rate
    if full > now + minute + 1 then return math.ceil(full - now - minute) end
    redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
end
if most > 0 then
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[5] * 1000000), ARGV[4])
    redis.call('EXPIRE', KEYS[2], ARGV[5])
end
return 0
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
    concurrent: int | None = None


class RateLimiter:
    """Counts requests, texts and what runs at the same time, for each caller.

    A caller may use a minute's worth at once; it comes back evenly. Where Redis fails, or there
    is none, each process counts what it serves itself. `redis` is where replicas count together,
    `clock` gives seconds.
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
            await self._acquire(
                name, "requests", allowed.requests_per_minute or 0, 1, most=most, lease=lease
            )
            yield
        finally:
            self._release(name, lease)

    async def charge(self, allowed: RateLimit, texts: int) -> None:
        """Count texts that are to be judged; raise LimitReached.

        More than a minute's worth at once counts as that, as it could never be served otherwise.
        """
        await self._acquire(allowed.name, "texts", allowed.texts_per_minute or 0, texts)

    async def run(self) -> None:
        """Renew what is held in Redis until cancelled."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            for name, leases in self._leases.items():
                self._tell(_RENEW, name, _LEASE_SECONDS, *leases)

    async def _acquire(
        self, name: str, what: str, rate: int, cost: int, *, most: int = 0, lease: str = ""
    ) -> None:
        """Take `cost` from a bucket of `rate` a minute, and one of `most` leases; 0 is no limit."""
        if not rate and not most:
            return
        if self._redis and most:
            self._leases.setdefault(name, set()).add(lease)
        wait = await self._acquire_in_redis(name, what, rate, cost, most, lease)
        if wait is None:
            wait = self._acquire_here(f"{what} {name}", rate, cost) if rate else 0.0
        if wait < 0:
            raise _too_many(most)
        if wait > 0:
            raise LimitReached(f"This key may send {rate} {what} a minute.", retry_after=wait)

    async def _acquire_in_redis(self, name: str, what: str, *arguments: int | str) -> float | None:
        """Do so in Redis; gives the seconds to wait, -1 without a free lease, None on failure."""
        if self._redis is None:
            return None

        async def acquire(client: "Client") -> int:
            keys = _bucket(name, what), _leases_key(name)
            found: int = await client.eval(_ACQUIRE, 2, *keys, *arguments, _LEASE_SECONDS)
            return found

        microseconds = await self._redis.ask("redis_write", acquire)
        return None if microseconds is None else microseconds / 1e6

    def _acquire_here(self, bucket: str, rate: int, cost: int) -> float:
        """Take from a bucket of this process; gives the seconds to wait, 0 where it was taken."""
        now = self._clock()
        full = max(self._full.get(bucket, now), now) + min(cost, rate) * _MINUTE / rate
        wait = full - now - _MINUTE
        if wait > 1e-6:
            return wait
        self._full[bucket] = full
        return 0.0

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


def _bucket(name: str, what: str) -> str:
    # What stands in braces decides the node of a cluster, and a script's keys must be on one.
    return f"shieldgate:limit:{{{name}}}:{what}"


def _leases_key(name: str) -> str:
    return _bucket(name, "places")


def _too_many(most: int) -> LimitReached:
    return LimitReached(f"This key may have {most} requests at the same time.", retry_after=1)
