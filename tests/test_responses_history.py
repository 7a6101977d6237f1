"""What a request refers to is judged with it, where it went through here; else it is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeScorer
from redis_server import redis_server
from responding import ROUTE, message, responding, response, streamed
from test_keys import entry, written

from shieldgate.history import History
from shieldgate.redis.client import RedisClient
from shieldgate.redis.history import RedisHistory
from shieldgate.types import Exchange

SECRET = b"what the replicas share, all of them"
CANARY = "canary-77d1"


def said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def exchanges(scorer: FakeScorer) -> list[Exchange]:
    return [exchange for exchange, _ in scorer.calls]


async def test_a_response_is_gone_on_with_as_if_all_were_sent(scorer: FakeScorer) -> None:
    async with responding(scorer, response(message("a kind answer"), id="resp_1")) as front:
        await front.answer("first", instructions="Be brief.")
        scorer.calls.clear()
        front.script.body = response(message("more", id="msg_2"), id="resp_2")
        await front.answer("second", previous_response_id="resp_1")
        known = exchanges(scorer)
        scorer.calls.clear()
        await front.answer([said("first"), message("a kind answer"), said("second")])
        assert known == exchanges(scorer)
        assert Exchange("first\nsecond", "more") in known
        assert Exchange("first", "a kind answer") in known
        # Upstream gets what the caller sent.
        assert front.script.requests[1]["body"] == {
            "model": "m",
            "input": "second",
            "previous_response_id": "resp_1",
        }


@pytest.mark.parametrize("stream", [False, True])
async def test_an_attack_that_is_spread_over_responses_is_seen(stream: bool) -> None:
    scorer = FakeScorer({("so\ncrude", "test/threat"): 3.0})
    async with responding(scorer, streamed(message("well"), id="resp_1")) as front:
        if stream:
            await front.stream("so")
        else:
            front.script.body = response(message("well"), id="resp_1")
            await front.answer("so")
        answer = await front.ask("crude", previous_response_id="resp_1", stream=stream)
        assert (await front.ask("crude", stream=stream)).status_code == 200
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_filter"


async def test_an_answer_and_a_chain_of_them_are_remembered(scorer: FakeScorer) -> None:
    async with responding(scorer) as front:
        for turn in range(1, 4):
            front.script.body = response(message(f"answer {turn}"), id=f"resp_{turn}")
            before = {"previous_response_id": f"resp_{turn - 1}"} if turn > 1 else {}
            await front.answer(f"turn {turn}", **before)
        assert exchanges(scorer)[-1].prompt == "turn 1\nturn 2\nturn 3"


async def test_an_item_may_stand_for_one_that_was_answered(scorer: FakeScorer) -> None:
    async with responding(scorer, response(message("a kind answer"))) as front:
        await front.answer("first")
        for reference in ({"type": "item_reference", "id": "msg_12"}, {"id": "msg_12"}):
            scorer.calls.clear()
            await front.answer([said("first"), reference, said("second")])
            assert Exchange("first", "a kind answer") in exchanges(scorer)
        unknown = await front.ask([{"type": "item_reference", "id": "msg_99"}])
        # In its place, what stands beside it would not be judged.
        beside = await front.ask([{"type": "item_reference", "id": "msg_12", "content": "well"}])
    for refused in (unknown, beside):
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input[0]")


async def test_what_was_made_shorter_is_known_by_its_seal(scorer: FakeScorer) -> None:
    seal = "gAAAAABqx7Zk9vP2mQ8rT4wY6sK1nB3dF5hJ0lC7xV9zE2uR4tW6yI8oA1sD3fG5"
    kept = {"type": "compaction", "id": "cmp_1", "encrypted_content": seal}
    async with responding(scorer, response(message("kind"), kept)) as front:
        assert (await front.ask([kept])).status_code == 400
        await front.answer()
        assert (await front.ask([kept])).status_code == 200
        other = {**kept, "encrypted_content": seal[::-1]}
        assert (await front.ask([other])).status_code == 400


@pytest.mark.parametrize(
    ("refers", "param"),
    [
        ({"previous_response_id": "resp_99"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": [{"type": "item_reference", "id": "msg_99"}]}, "input[0]"),
        ({"input": [{"id": "msg_99"}]}, "input[0]"),
        ({"input": [{"type": "item_reference"}]}, "input[0]"),
        ({"input": [{"type": "compaction", "encrypted_content": "abc"}]}, "input[0]"),
    ],
)
async def test_what_nobody_here_has_seen_is_refused_or_passed_unscreened(
    scorer: FakeScorer, refers: dict[str, Any], param: str
) -> None:
    async with responding(scorer) as front:
        answer = await front.ask(**refers)
        assert front.script.requests == []
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "did not pass here" in answer.json()["error"]["message"]
    async with responding(scorer, profile={"unscreenable": "pass"}) as front:
        answer = await front.ask(**refers)
        # And nobody has seen it the next time either.
        later = await front.ask(previous_response_id="resp_78")
    assert answer.status_code == later.status_code == 200
    assert answer.headers["x-shieldgate-unscreened"] == "1"
    assert later.headers["x-shieldgate-unscreened"] == "1"


async def test_a_blocked_answer_is_not_gone_on_with(scorer: FakeScorer) -> None:
    async with responding(scorer, response(message("so crude"), id="resp_1")) as front:
        await front.answer()
        front.script.body = streamed(message("so crude"), id="resp_2")
        await front.stream()
        for id in ("resp_1", "resp_2"):
            answer = await front.ask(previous_response_id=id)
            # Nobody has it, so that nobody is asked whether it is harmful.
            assert answer.json()["error"]["param"] == "previous_response_id"
        assert (await front.ask([{"id": "msg_12"}])).status_code == 400


async def test_what_is_not_stored_is_not_remembered(scorer: FakeScorer) -> None:
    async with responding(scorer) as front:
        await front.answer(store=False)
        assert (await front.ask(previous_response_id="resp_78")).status_code == 400


async def test_the_profile_may_take_no_references(scorer: FakeScorer) -> None:
    async with responding(scorer, profile={"references": "refuse"}) as front:
        await front.answer()
        assert (await front.ask(previous_response_id="resp_78")).status_code == 400


async def test_each_key_has_a_history_of_its_own(scorer: FakeScorer, tmp_path: Path) -> None:
    keys = written(tmp_path, entry("one", "sg-one"), entry("two", "sg-two"))
    async with responding(scorer, keys=keys) as front:

        async def ask(key: str, **more: Any) -> int:
            head = {"authorization": f"Bearer {key}"}
            body = {"model": "m", "input": "bread", **more}
            reply = await front.gateway.client.post(ROUTE, json=body, headers=head)
            return reply.status_code

        assert await ask("sg-one") == 200
        assert await ask("sg-two", previous_response_id="resp_78") == 400
        assert await ask("sg-one", previous_response_id="resp_78") == 200


# The store


def history(**how: Any) -> History:
    bounds = {"secret": SECRET, "max_bytes": 1300, "max_entry_bytes": 500, "keep_seconds": 60.0}
    return History(**{**bounds, **how})


async def test_memory_is_bounded_and_what_was_used_last_stays() -> None:
    kept = history()
    for name in "abc":
        await kept.keep("key", {name: ["x" * 300]})
        assert await kept.find("key", ["a"])
    assert await kept.find("key", ["a", "b", "c"]) == {"a": ["x" * 300], "c": ["x" * 300]}


async def test_what_is_longer_than_a_request_may_be_is_not_kept() -> None:
    kept = history()
    await kept.keep("key", {"a": ["x" * 500], "b": ["kind"]})
    assert await kept.find("key", ["a", "b"]) == {"b": ["kind"]}


async def test_what_is_kept_expires() -> None:
    kept = history(keep_seconds=0.05)
    await kept.keep("key", {"a": ["kind"]})
    assert await kept.find("key", ["a"])
    await asyncio.sleep(0.06)
    assert await kept.find("key", ["a"]) == {}


async def test_owners_and_ids_do_not_run_into_each_other() -> None:
    kept = history()
    await kept.keep("ab", {"c": ["kind"]})
    assert await kept.find("a", ["bc"]) == {}


@asynccontextmanager
async def shared(url: str, secret: bytes = SECRET) -> AsyncIterator[tuple[RedisClient, History]]:
    async with RedisClient(url, seconds=5) as client:
        kept = RedisHistory(client, secret=secret)
        yield client, history(secret=secret, max_bytes=0, shared=kept)


async def test_replicas_share_it_through_redis_which_learns_no_text(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with shared(server.url) as (_, one), shared(server.url) as (client, other):
            await one.keep("key", {"resp_1": [CANARY]})
            assert await other.find("key", ["resp_1", "resp_2"]) == {"resp_1": [CANARY]}
            assert await other.find("another", ["resp_1"]) == {}
            [name] = await client.ask("redis_read", lambda redis: redis.keys("*"))
            value = await client.ask("redis_read", lambda redis: redis.get(name))
            seconds = await client.ask("redis_read", lambda redis: redis.ttl(name))
        assert CANARY.encode() not in value
        assert b"resp_1" not in name
        assert 0 < seconds <= 60


async def test_what_no_replica_has_written_is_not_known(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with shared(server.url) as (client, kept), shared(server.url, b"x" * 32) as (_, o):
            await kept.keep("key", {"a": ["kind"]})
            await kept.keep("key", {"b": ["crude"]})
            assert await o.find("key", ["a", "b"]) == {}
            names = await client.ask("redis_read", lambda redis: redis.keys("*"))
            first, second = [
                await client.ask("redis_read", lambda redis, name=name: redis.get(name))
                for name in names
            ]
            for value in (second, first[:-1], b"", b"kind", first[:12]):
                await client.ask("redis_write", lambda redis, v=value: redis.set(names[0], v))
                assert len(await kept.find("key", ["a", "b"])) == 1


async def test_a_redis_that_is_gone_is_no_error(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        url = server.url
    async with shared(url) as (_, kept):
        await kept.keep("key", {"a": ["kind"]})
        assert await kept.find("key", ["a"]) == {}
