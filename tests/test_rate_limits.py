"""What a key may use is counted once, by all replicas together where there is a Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis_server import RedisServer, redis_server

from shieldgate.access import rate_limits
from shieldgate.access.rate_limits import RateLimit, RateLimiter
from shieldgate.errors import ExceedsLimit, LimitReached
from shieldgate.redis.client import RedisClient


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def admitted(limiter: RateLimiter, allowed: RateLimit) -> bool:
    try:
        async with limiter.admit(allowed):
            return True
    except LimitReached:
        return False


async def test_a_minutes_worth_may_come_at_once_and_comes_back_evenly() -> None:
    clock = Clock()
    limiter, allowed = RateLimiter(clock=clock), RateLimit("web", requests_per_minute=6)
    assert [await admitted(limiter, allowed) for _ in range(7)] == [True] * 6 + [False]
    with pytest.raises(LimitReached, match="6 requests a minute") as reached:
        async with limiter.admit(allowed):
            pass
    assert reached.value.retry_after == pytest.approx(10)
    clock.now += 10
    assert [await admitted(limiter, allowed) for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [await admitted(limiter, allowed) for _ in range(7)] == [True] * 6 + [False]


async def test_texts_are_counted_beside_requests_and_each_caller_by_itself() -> None:
    limiter = RateLimiter(clock=Clock())
    one, other = (RateLimit(name, texts_per_minute=10) for name in ("one", "other"))
    await limiter.charge(one, 9, 0)
    with pytest.raises(LimitReached, match="10 texts a minute") as reached:
        await limiter.charge(one, 2, 0)
    assert reached.value.retry_after == pytest.approx(6)
    await limiter.charge(one, 1, 0)
    await limiter.charge(other, 10, 0)
    assert await admitted(limiter, one)


async def takes_a_minutes_worth_at_most(limiter: RateLimiter) -> None:
    allowed = RateLimit("web", texts_per_minute=10, characters_per_minute=1000)
    for texts, characters, what in (
        (11, 1, "10 texts a minute, and this request alone holds 11"),
        (1001, 1, "10 texts a minute, and this request alone holds 1001"),
        (1, 1001, "1000 characters a minute, and this request alone holds 1001"),
    ):
        with pytest.raises(ExceedsLimit, match=what):
            await limiter.charge(allowed, texts, characters)
    await limiter.charge(allowed, 10, 1000)  # what was refused took nothing
    with pytest.raises(LimitReached) as reached:
        await limiter.charge(allowed, 1, 1)
    assert reached.value.retry_after == pytest.approx(6, abs=1)


async def test_more_than_a_minutes_worth_at_once_is_refused_and_takes_nothing() -> None:
    await takes_a_minutes_worth_at_most(RateLimiter(clock=Clock()))


async def counts_characters(limiter: RateLimiter) -> None:
    allowed = RateLimit("web", texts_per_minute=10, characters_per_minute=1000)
    await limiter.charge(allowed, 1, 900)
    with pytest.raises(LimitReached, match="1000 characters a minute") as reached:
        await limiter.charge(allowed, 8, 200)
    assert reached.value.retry_after == pytest.approx(6, abs=1)
    await limiter.charge(allowed, 9, 50)  # the refused texts weren't counted
    with pytest.raises(LimitReached, match="10 texts a minute"):
        await limiter.charge(allowed, 1, 0)


async def test_characters_are_counted_beside_texts_and_both_or_neither_is_taken() -> None:
    await counts_characters(RateLimiter(clock=Clock()))


async def test_what_holds_nothing_takes_nothing() -> None:
    limiter = RateLimiter(clock=Clock())
    allowed = RateLimit("web", texts_per_minute=1, characters_per_minute=1)
    await limiter.charge(allowed, 1, 1)
    await limiter.charge(allowed, 0, 0)


async def test_places_are_given_back_whatever_becomes_of_a_request() -> None:
    limiter, allowed = RateLimiter(), RateLimit("web", concurrent=2)
    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(limiter.admit(allowed))
        with pytest.raises(LimitReached, match="2 requests at the same time"):
            async with limiter.admit(allowed):
                pass
    with contextlib.suppress(RuntimeError):
        async with limiter.admit(allowed):
            raise RuntimeError
    for _ in range(2):
        assert await admitted(limiter, allowed)
    assert not limiter._running


@pytest.fixture
def server(tmp_path: Path):
    with redis_server(tmp_path) as running:
        yield running


@asynccontextmanager
async def replicas(server: RedisServer, count: int = 2) -> AsyncIterator[list[RateLimiter]]:
    async with AsyncExitStack() as stack:
        opened = [RedisClient(server.url, seconds=5) for _ in range(count)]
        for shared in opened:
            await stack.enter_async_context(shared)
        yield [RateLimiter(shared) for shared in opened]


async def settled(limiter: RateLimiter) -> None:
    assert limiter._redis
    while running := set(limiter._redis._running):
        await asyncio.wait(running)


async def test_replicas_count_together(server: RedisServer) -> None:
    allowed = RateLimit("web", requests_per_minute=10, texts_per_minute=10)
    async with replicas(server) as limiters:
        calls = [admitted(limiter, allowed) for limiter in limiters for _ in range(10)]
        assert sum(await asyncio.gather(*calls)) == 10
        with pytest.raises(LimitReached) as reached:
            async with limiters[0].admit(allowed):
                pass
        assert 5 < reached.value.retry_after <= 6
        await limiters[0].charge(allowed, 9, 0)
        with pytest.raises(LimitReached):
            await limiters[1].charge(allowed, 2, 0)
        with server.client() as redis:
            assert all(0 < redis.ttl(key) <= 60 for key in redis.scan_iter())


async def test_in_redis_too_more_than_a_minutes_worth_is_refused(server: RedisServer) -> None:
    async with replicas(server, 1) as (limiter,):
        await takes_a_minutes_worth_at_most(limiter)


async def test_in_redis_too_characters_are_counted(server: RedisServer) -> None:
    async with replicas(server, 1) as (limiter,):
        await counts_characters(limiter)
        await limiter.charge(RateLimit("other", texts_per_minute=1), 0, 0)
        assert limiter._redis
        assert not limiter._redis._breakers["redis_write"].retry_after()


@pytest.mark.parametrize("before", [20, 12])
async def test_a_late_answer_is_not_a_second_full_bucket(server: RedisServer, before: int) -> None:
    allowed = RateLimit("web", requests_per_minute=20)
    async with replicas(server) as limiters:
        served = [await admitted(limiters[n % 2], allowed) for n in range(before)]
        assert all(served)
        with server.client() as redis:
            redis.client_pause(60_000, all=False)
            for limiter in limiters:
                assert limiter._redis
                limiter._redis._seconds = 0.01
            burst = [admitted(limiter, allowed) for limiter in limiters for _ in range(40)]
            late = sum(await asyncio.gather(*burst))
            # Each replica has what is left of the bucket, less what came back meanwhile.
            assert late <= 2 * (20 - before + 2)
            redis.client_unpause()


async def test_what_redis_says_too_late_counts_all_the_same(server: RedisServer) -> None:
    allowed = RateLimit("web", requests_per_minute=20)
    async with replicas(server) as (one, other):
        assert all([await admitted(one, allowed) for _ in range(20)])
        assert other._redis
        with server.client() as redis:
            redis.client_pause(60_000, all=False)
            other._redis._seconds = 0.01
            assert await admitted(other, allowed)  # it knows of nothing
            redis.client_unpause()
            await settled(other)
            redis.client_pause(60_000, all=False)
            assert not await admitted(other, allowed)
            redis.client_unpause()


async def test_replicas_share_places_and_give_them_back(server: RedisServer) -> None:
    allowed = RateLimit("web", concurrent=3)
    async with replicas(server) as limiters, AsyncExitStack() as held:
        for place in range(3):
            await held.enter_async_context(limiters[place % 2].admit(allowed))
        assert not await admitted(limiters[0], allowed)
        assert not await admitted(limiters[1], allowed)
        await held.aclose()
        for limiter in limiters:
            await settled(limiter)
        assert await admitted(limiters[0], allowed)
        await settled(limiters[0])
        with server.client() as redis:
            assert redis.keys() == []


async def test_a_process_that_dies_gives_its_places_back_and_one_that_lives_keeps_them(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "_LEASE_SECONDS", 1)
    monkeypatch.setattr(rate_limits, "_RENEW_SECONDS", 0.2)
    dead, alive = RateLimit("dead", concurrent=1), RateLimit("alive", concurrent=1)
    async with replicas(server) as (one, other), one.admit(dead), one.admit(alive):
        one._leases.pop("dead")  # nobody renews it
        renewing = asyncio.create_task(one.run())
        async with asyncio.timeout(10):
            while not await admitted(other, dead):
                await asyncio.sleep(0.1)
        assert not await admitted(other, alive)
        renewing.cancel()


async def test_places_that_nobody_renews_come_back_one_by_one_and_are_not_taken_back(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "_RENEW_SECONDS", 0.05)
    allowed = RateLimit("web", concurrent=3)
    async with replicas(server) as (stuck, alive), AsyncExitStack() as held:
        redis = held.enter_context(server.client())
        for _ in range(3):
            await held.enter_async_context(stuck.admit(allowed))
        (places,) = redis.keys()
        assert 0 < redis.ttl(places) <= 60
        *lost, kept = redis.zrange(places, 0, -1)
        for lease in lost:
            assert not await admitted(alive, allowed)
            redis.zadd(places, {lease: redis.time()[0] * 1_000_000})  # it has run out
            await held.enter_async_context(alive.admit(allowed))
        assert not await admitted(alive, allowed)
        before = redis.zscore(places, kept)
        renewing = asyncio.create_task(stuck.run())
        async with asyncio.timeout(10):
            while redis.zscore(places, kept) == before:
                await asyncio.sleep(0.01)
        renewing.cancel()
        assert redis.zcard(places) == 3


async def test_without_redis_each_counts_by_itself_and_with_it_again_together(
    server: RedisServer,
) -> None:
    allowed = RateLimit("web", requests_per_minute=4)
    async with replicas(server) as limiters:
        server.kill()
        for limiter in limiters:
            assert [await admitted(limiter, allowed) for _ in range(5)] == [True] * 4 + [False]
        server.start()
        for limiter in limiters:
            assert limiter._redis
            while wait := limiter._redis._breakers["redis_write"].retry_after():
                await asyncio.sleep(wait)
        calls = [admitted(limiter, allowed) for limiter in limiters for _ in range(4)]
        assert sum([await call for call in calls]) == 4


async def test_a_full_redis_limits_nobody_less(server: RedisServer) -> None:
    async with replicas(server, 1) as (limiter,):
        with server.client() as redis:
            redis.config_set("maxmemory", "1")
        allowed = RateLimit("web", requests_per_minute=4)
        assert [await admitted(limiter, allowed) for _ in range(5)] == [True] * 4 + [False]


async def test_a_redis_clock_that_jumps_back_makes_nobody_wait_longer_than_a_minute(
    server: RedisServer,
) -> None:
    allowed = RateLimit("web", requests_per_minute=60)
    async with replicas(server, 1) as (limiter,):
        with server.client() as redis:
            seconds, _ = redis.time()
            redis.set("shieldgate:limit:{web}:requests", (seconds + 86_400) * 1_000_000)
        with pytest.raises(LimitReached) as reached:
            async with limiter.admit(allowed):
                pass
        assert reached.value.retry_after <= 1
