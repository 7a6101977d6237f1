"""Records of decisions reach a real Redis stream, and no request notices when they don't."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeScorer
from redis_server import RedisServer, redis_server
from serving import AUDIT_SECRET, Gateway, gateway

from shieldgate.redis.audit_stream import RedisAuditStream
from shieldgate.redis.client import RedisClient
from shieldgate.telemetry import Audit

STREAM = "shieldgate:audit"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as running:
        yield running


@asynccontextmanager
async def recording(
    server: RedisServer, scorer: FakeScorer, lost: list[None], *, length: int = 1000
) -> AsyncIterator[tuple[RedisClient, Gateway]]:
    async with RedisClient(server.url, seconds=20) as shared:
        sink = RedisAuditStream(shared, STREAM, length=length, lost=lambda: lost.append(None))
        async with gateway(scorer, audit=sink) as served:
            yield shared, served


async def settled(shared: RedisClient) -> None:
    """Wait for what is written in the background."""
    while running := set(shared._running):
        await asyncio.wait(running)


def records(server: RedisServer) -> list[dict[str, Any]]:
    with server.client() as redis:
        return [json.loads(fields[b"record"]) for _, fields in redis.xrange(STREAM)]


async def test_each_decision_is_in_the_stream_with_its_request(
    server: RedisServer, scorer: FakeScorer
) -> None:
    lost: list[None] = []
    async with recording(server, scorer, lost) as (shared, served):
        reply = await served.client.post("/v1/moderations", json={"input": ["bread", "crude"]})
        await settled(shared)
        found = records(server)
    assert {record["request_id"] for record in found} == {reply.headers["x-request-id"]}
    assert {record["prompt_digest"]: record["action"] for record in found} == {
        Audit(AUDIT_SECRET).digest("bread"): "allowed",
        Audit(AUDIT_SECRET).digest("crude"): "blocked",
    }
    assert found[0]["policies"]["test/threat"]["threshold"] == 0.5
    assert not lost


async def test_the_stream_keeps_about_its_length(server: RedisServer) -> None:
    async with RedisClient(server.url, seconds=5) as shared:
        sink = RedisAuditStream(shared, STREAM, length=100, lost=lambda: None)
        for number in range(500):
            sink.write({"number": number})
        await settled(shared)
    found = records(server)
    assert 100 <= len(found) <= 200  # Redis drops whole nodes of 100
    assert {"number": 499} in found


async def test_no_request_waits_for_redis(server: RedisServer, scorer: FakeScorer) -> None:
    lost: list[None] = []
    async with recording(server, scorer, lost) as (shared, served):
        server.pause()
        for _ in range(8):
            reply = await served.client.post("/v1/screen", json={"prompt": "bread"})
            assert reply.status_code == 200
        assert len(shared._running) >= 8
        server.resume()
        await settled(shared)
        assert len(records(server)) == 8
    assert not lost


async def test_without_redis_requests_are_served_and_records_counted_until_it_is_back(
    server: RedisServer, scorer: FakeScorer
) -> None:
    lost: list[None] = []
    async with recording(server, scorer, lost) as (shared, served):
        server.kill()
        for _ in range(8):
            reply = await served.client.post("/v1/screen", json={"prompt": "bread"})
            assert reply.status_code == 200
        await settled(shared)
        assert len(lost) == 8
        server.start()
        async with asyncio.timeout(30):
            while not await _arrives(shared, served, lost):
                await asyncio.sleep(0.05)
        assert records(server)


async def _arrives(shared: RedisClient, served: Gateway, lost: list[None]) -> bool:
    before = len(lost)
    await served.client.post("/v1/screen", json={"prompt": "bread"})
    await settled(shared)
    return len(lost) == before
