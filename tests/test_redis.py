"""Replicas share scores through a real Redis, and answer all the same when it fails."""

import asyncio
import contextlib
import itertools
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError
from redis_server import RedisServer, redis_server
from structlog.testing import capture_logs

from shieldgate.access import rate_limits
from shieldgate.access.rate_limits import RateLimit, RateLimiter
from shieldgate.errors import ConfigurationError
from shieldgate.policy import Policy
from shieldgate.redis.client import RedisClient
from shieldgate.redis.score_cache import RedisScoreCache
from shieldgate.redis.urls import Client
from shieldgate.scoring import Cached, Identity
from shieldgate.types import Exchange, Score

SECRET = b"0123456789abcdef"
CANARY = "canary-52fe"
POLICIES = [
    Policy(
        f"a/{name}",
        name,
        {"prompt": f"No {name}.", "response": f"No {name}."},
        {"prompt": 0.5, "response": 0.5},
    )
    for name in ("a", "b", "c")
]


def margin(text: str, policy: Policy) -> float:
    """What the right score is, so that a wrong one shows."""
    return float(sum(map(ord, text)) + ord(policy.title) / 1000)


class Scorer:
    """Counts how many scores it was asked for."""

    identity = Identity("counting", "0", "f32", "t", "w")

    def __init__(self) -> None:
        self.asked = 0

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        self.asked += len(policies)
        return [Score(margin(exchange.prompt, p), windows=3, prompt_omitted=7) for p in policies]


@dataclass
class Replica:
    """A process, as far as scores go; its memory is kept empty, so that all comes from Redis."""

    shared: RedisClient
    scorer: Scorer
    cache: Cached
    states: list[tuple[str, str]] = field(default_factory=list)

    def breaker(self, breaker: str, state: str) -> None:
        self.states.append((breaker, state))

    async def ask(self, text: str) -> None:
        """Ask for a text's scores, which are the right ones whatever happens."""
        found = await self.cache.score(Exchange(text), POLICIES)
        assert found == [Score(margin(text, p), windows=3, prompt_omitted=7) for p in POLICIES]

    async def asks_scorer(self, text: str) -> bool:
        before = self.scorer.asked
        await self.ask(text)
        assert self.scorer.asked in (before, before + len(POLICIES))
        return self.scorer.asked > before

    async def settled(self) -> None:
        """Wait for what is written in the background."""
        while running := set(self.shared._running):
            await asyncio.wait(running)

    async def until(self, breaker: str, state: str) -> None:
        """Ask on, new texts, until a breaker is in a state."""
        for number in range(50):
            if self.shared._breakers[breaker].state == state:
                return
            await asyncio.sleep(self.shared._breakers[breaker].retry_after())
            await self.ask(f"{state} {number}")
            await self.settled()
        raise AssertionError(f"{breaker} never became {state}: {self.states}")


@asynccontextmanager
async def replica(
    url: str, *, seconds: float = 5, secret: bytes = SECRET
) -> AsyncIterator[Replica]:
    states: list[tuple[str, str]] = []

    class Observer:
        def breaker(self, breaker: str, state: str) -> None:
            states.append((breaker, state))

    scorer = Scorer()
    async with RedisClient(url, seconds=seconds, observer=Observer()) as shared:
        scores = RedisScoreCache(shared, secret=secret, keep_seconds=600)
        cache = Cached(scorer, secret=SECRET, max_entries=0, second=scores)
        one = Replica(shared, scorer, cache, states)
        await one.settled()
        yield one


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as running:
        yield running


async def test_what_one_replica_scored_no_other_scores_again(server: RedisServer) -> None:
    async with replica(server.url) as first, replica(server.url) as second:
        assert await first.asks_scorer("bread")
        await first.settled()
        assert not await second.asks_scorer("bread")
        assert await second.asks_scorer("butter")


async def test_redis_holds_neither_texts_nor_what_outlives_its_time(server: RedisServer) -> None:
    async with replica(server.url) as one:
        await one.ask(CANARY)
    with server.client() as redis:
        keys = redis.keys()
        assert len(keys) == len(POLICIES)
        for key in keys:
            assert re.fullmatch(rb"shieldgate:score:v\d:[0-9a-f]{64}", key)
            assert 0 < redis.ttl(key) <= 600
            assert CANARY.encode() not in key + redis.get(key)


async def test_what_no_replica_of_ours_wrote_for_this_key_is_a_miss(server: RedisServer) -> None:
    async with replica(server.url) as one, replica(server.url, secret=SECRET[::-1]) as other:
        await one.ask("bread")
        await one.settled()
        assert await other.asks_scorer("bread")
        await one.ask("butter")
        await asyncio.gather(one.settled(), other.settled())
        await one.ask("bread")  # scored again, because the other has overwritten it
        await one.settled()
        with server.client() as redis:
            values = {key: redis.get(key) for key in redis.scan_iter()}
            for forged in (b"", b"0" * 32, b"\0" * 16 + next(iter(values.values()))[16:]):
                for key in values:
                    redis.set(key, forged)
                assert await one.asks_scorer("bread")
                await one.settled()
            for key, value in zip(values, list(values.values())[::-1], strict=True):
                redis.set(key, value)
        assert await one.asks_scorer("bread")


async def test_without_redis_texts_are_scored_and_with_it_again_they_are_shared(
    tmp_path: Path, server: RedisServer
) -> None:
    async with replica(server.url) as one:
        await one.ask("bread")
        server.kill()
        with capture_logs() as lines:
            for number in range(50):
                assert await one.asks_scorer(f"text {number}")
            await one.settled()
        assert one.shared._breakers["redis_read"].state == "open"
        said = [line["use"] for line in lines if line["event"] == "redis is left alone"]
        assert sorted(said) == ["redis_read", "redis_write"]
        server.start()
        with capture_logs() as lines:
            await one.until("redis_read", "closed")
            await one.until("redis_write", "closed")
        assert {line["event"] for line in lines} == {"redis answers again"}
        await one.ask("butter")
        await one.settled()
        async with replica(server.url) as other:
            assert not await other.asks_scorer("butter")


async def test_a_redis_that_is_not_there_at_the_start_is_said_and_found_later(
    tmp_path: Path,
) -> None:
    server = RedisServer(tmp_path)
    with capture_logs() as lines:
        async with replica(server.url) as one:
            assert lines[0]["event"] == "redis does not answer"
            assert lines[0]["why"] == "ConnectionError"
            await one.until("redis_read", "open")
            server.start()
            try:
                await one.until("redis_read", "closed")
            finally:
                server.kill()


async def test_a_redis_that_hangs_costs_its_budget_a_few_times_and_mixes_nothing_up(
    server: RedisServer,
) -> None:
    async with replica(server.url) as one:
        texts = [f"text {number}" for number in range(20)]
        for text in texts:
            await one.ask(text)
        await one.settled()
        before = asyncio.all_tasks()
        server.pause()
        one.shared._seconds = 0.1
        for text in texts:
            await one.ask(text)
        # Five times for reading; the answers that were waited for in vain may still come.
        skipped = [await one.shared.ask("redis_read", never) for _ in range(1000)]
        assert skipped == [None] * 1000
        assert one.shared._breakers["redis_read"].state == "open"
        server.resume()
        one.shared._seconds = 5
        await one.until("redis_read", "closed")
        # Late answers to the calls above must not pass for answers to these.
        for text in reversed(texts):
            assert not await one.asks_scorer(text)
        await one.until("redis_write", "closed")
        await one.settled()
        assert asyncio.all_tasks() == before


async def never(client: Client) -> None:
    raise AssertionError("Redis is asked although it is left alone.")


async def test_callers_who_leave_take_no_others_answer(server: RedisServer) -> None:
    async with replica(server.url) as one:
        texts = [f"text {number}" for number in range(60)]
        for text in texts:
            await one.ask(text)
        await one.settled()
        for yields in range(12):
            asking = [asyncio.create_task(one.ask(text)) for text in texts]
            for _ in range(yields):
                await asyncio.sleep(0)
            for task in asking[::2]:
                task.cancel()
            results = await asyncio.gather(*asking, return_exceptions=True)
            assert results[1::2] == [None] * 30


async def test_a_full_redis_is_still_read_and_written_again_when_there_is_room(
    server: RedisServer,
) -> None:
    async with replica(server.url) as one:
        await one.ask("bread")
        await one.settled()
        with server.client() as redis, capture_logs() as lines:
            redis.config_set("maxmemory-policy", "noeviction")
            redis.config_set("maxmemory", "2mb")
            with contextlib.suppress(OutOfMemoryError):
                for number in itertools.count():
                    redis.set(f"other:{number}", b"x" * 100_000)
            redis.config_set("maxmemory", "1mb")  # the last gap
            await one.until("redis_write", "open")
            assert not await one.asks_scorer("bread")
            assert one.shared._breakers["redis_read"].state == "closed"
            [line] = [line for line in lines if line["log_level"] == "warning"]
            assert (line["use"], line["why"]) == ("redis_write", "OutOfMemoryError")
            redis.config_set("maxmemory", "0")
            await one.until("redis_write", "closed")


async def test_a_flapping_redis_never_shows(server: RedisServer) -> None:
    async with replica(server.url) as one:
        before = asyncio.all_tasks()
        stop = asyncio.Event()

        async def ask_on(name: str) -> None:
            number = 0
            while not stop.is_set():
                await one.ask(f"{name} {number % 5}")
                number += 1

        asking = [asyncio.create_task(ask_on(name)) for name in "abcd"]
        for _ in range(5):
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        stop.set()
        await asyncio.gather(*asking)
        await one.until("redis_read", "closed")
        await one.settled()
        assert asyncio.all_tasks() == before


async def test_a_password_is_used_and_a_wrong_one_is_said_but_not_shown(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path, f"--requirepass {CANARY}") as server, capture_logs() as lines:
        right = server.url.replace("//", f"//:{CANARY}@")
        async with replica(right) as one:
            await one.ask("bread")
            await one.settled()
            assert not await one.asks_scorer("bread")
        async with replica(right.replace(CANARY, f"{CANARY}2")) as other:
            await other.until("redis_read", "open")
    assert [line["event"] for line in lines[:2]] == ["redis answers", "redis does not answer"]
    assert lines[1]["why"] == "AuthenticationError"
    assert CANARY not in str(lines)


async def test_an_account_needs_no_more_than_the_documented_rights(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        document = (Path(__file__).parents[1] / "docs" / "redis.md").read_text()
        rights = re.findall(r"[+~][a-z:*]+", document.partition("An account needs")[2])
        assert "+zremrangebyscore" in rights
        with server.client() as redis:
            redis.execute_command("ACL", "SETUSER", "gate", "on", ">pw", *rights)
        async with replica(server.url.replace("//", "//gate:pw@")) as one:
            await one.ask("bread")
            await one.settled()
            assert not await one.asks_scorer("bread")
            limiter = RateLimiter(one.shared)
            async with limiter.admit(RateLimit("web", requests_per_minute=1, concurrent=1)):
                limiter._tell(rate_limits._RENEW, "web", 60, "lease")
            await one.settled()
            assert one.shared._breakers["redis_write"]._failures == 0


@contextmanager
def certificate(folder: Path) -> Iterator[tuple[Path, ssl.SSLContext]]:
    key, signed = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split()
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", signed]
    subprocess.run([*command, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed, key)
    yield signed, context


@asynccontextmanager
async def tls(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Terminate TLS before a server, as not every redis-server is built with it."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_tls_is_spoken_and_certificates_are_verified(
    tmp_path: Path, server: RedisServer
) -> None:
    with certificate(tmp_path) as (signed, context), capture_logs() as lines:
        async with tls(server.port, context) as port:
            async with replica(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={signed}") as one:
                await one.ask("bread")
                await one.settled()
                assert not await one.asks_scorer("bread")
            async with replica(f"rediss://127.0.0.1:{port}/0") as distrustful:
                assert await distrustful.asks_scorer("bread")
    events = [line["event"] for line in lines]
    assert events == ["redis answers", "redis does not answer"]


async def test_a_cluster_is_asked_node_by_node(tmp_path: Path) -> None:
    def node(name: str) -> Any:
        (tmp_path / name).mkdir()
        return redis_server(tmp_path / name, "--cluster-enabled yes", "--cluster-node-timeout 2000")

    with node("one") as first, node("two") as second:
        slots = {first: range(8192), second: range(8192, 16_384)}
        for server, own in slots.items():
            with server.client() as redis:
                redis.execute_command("CLUSTER", "ADDSLOTS", *own)
        with first.client() as redis:
            redis.execute_command("CLUSTER", "MEET", "127.0.0.1", second.port)
        for server in slots:
            with server.client() as redis:
                while not _whole(redis.execute_command("CLUSTER INFO")):
                    await asyncio.sleep(0.05)
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{first.port}"
        async with replica(url) as one:
            await one.until("redis_read", "closed")
            for number in range(10):
                await one.ask(f"text {number}")
            await one.settled()
            for number in range(10):
                assert not await one.asks_scorer(f"text {number}")
        assert first.keys()
        assert second.keys()


def _whole(info: Any) -> bool:
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "2"


async def test_sentinels_say_where_the_master_is(tmp_path: Path, server: RedisServer) -> None:
    with server.client() as redis:
        redis.config_set("requirepass", "pw")
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor scores 127.0.0.1 {server.port} 1\nsentinel auth-pass scores pw\n"
    )
    with redis_server(tmp_path, str(configuration), "--sentinel") as sentinel:
        url = f"redis+sentinel://:pw@127.0.0.1:1,127.0.0.1:{sentinel.port}/scores/2"
        async with replica(url) as one:
            await one.ask("bread")
            await one.settled()
            assert not await one.asks_scorer("bread")
        with server.client(db=2, password="pw") as redis:
            assert redis.dbsize() == len(POLICIES)


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{CANARY}@localhost",
        f"redis+ring://:{CANARY}@localhost",
        f"redis://:{CANARY}@localhost:port",
        f"redis://:{CANARY}@localhost?no_such_option=1",
        f"redis+cluster://:{CANARY}@",
        f"redis+cluster://:{CANARY}@localhost/3",
        f"redis+sentinel://:{CANARY}@localhost",
    ],
)
def test_a_bad_url_is_refused_with_the_forms_there_are_and_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis\\+sentinel") as refused:
        RedisClient(url, seconds=0.1)
    assert CANARY not in str(refused.value)
    assert refused.value.__suppress_context__
