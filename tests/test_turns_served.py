"""Turns and deadlines as callers of a real server meet them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import httpx
import pytest
from fakes import FakeScorer
from serving import Gateway, gateway
from test_batched import LengthEngine
from test_keys import entry, written
from upstream import Script, serving, streamed, whole

from shieldgate.errors import TooLong
from shieldgate.policy import Passages, Policy
from shieldgate.scoring import Batched, Cached, Resilient, Scorer, UnixSocketScorer
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.scoring.unix_socket import listening
from shieldgate.types import Exchange, Score
from shieldgate.upstream import Upstream

SCREEN = "/v1/screen"

pytestmark = pytest.mark.timeout(30, method="thread")


@asynccontextmanager
async def served(
    engine: LengthEngine, tmp_path: Path, *, elsewhere: bool, keys: Path | None = None
) -> AsyncIterator[tuple[Gateway, Batched]]:
    """A gateway before an engine, which may be behind a socket, in what a server composes."""
    async with AsyncExitStack() as stack:
        batched = await stack.enter_async_context(
            Batched(engine, max_batch_tokens=40, max_waiting=100, max_seconds=30)
        )

        @asynccontextmanager
        async def opened() -> AsyncIterator[Scorer]:
            async with AsyncExitStack() as opening:
                inner: Scorer = batched
                if elsewhere:
                    await opening.enter_async_context(listening(batched, tmp_path / "scorer"))
                    remote = UnixSocketScorer(tmp_path / "scorer")
                    inner = await opening.enter_async_context(remote)
                guarded = Resilient(inner, seconds=30)
                yield Cached(guarded, secret=b"0" * 16, max_entries=10)

        running = await stack.enter_async_context(
            gateway(FakeScorer(), LoadingScorer(opened), keys=keys)
        )
        while (await running.client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0)
        yield running, batched


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "over the socket"])
@pytest.mark.parametrize("by", ["key", "connection"])
async def test_callers_take_turns(tmp_path: Path, elsewhere: bool, by: str) -> None:
    engine, keys = LengthEngine(), None
    if by == "key":
        lines = "".join(entry(name, f"sg-{name}") for name in ("flood", "small"))
        keys = written(tmp_path, lines)
    async with (
        served(engine, tmp_path, elsewhere=elsewhere, keys=keys) as (running, batched),
        httpx.AsyncClient(base_url=running.url, timeout=20) as flood,
        httpx.AsyncClient(base_url=running.url, timeout=20) as small,
    ):

        def ask(client: httpx.AsyncClient, name: str, text: str) -> asyncio.Task[httpx.Response]:
            head = {"authorization": f"Bearer sg-{name}"}
            return asyncio.create_task(client.post(SCREEN, json={"prompt": text}, headers=head))

        with engine.held():
            calls = [ask(flood, "flood", "running")]
            await engine.wait_until_running()
            calls += [ask(flood, "flood", f"longlong{n:02} " * 40) for n in range(3)]
            while len(batched._queue) < 120:
                await asyncio.sleep(0.01)
            calls.append(ask(small, "small", "tiny"))
            while len(batched._queue) < 121:
                await asyncio.sleep(0.01)
        assert [(await call).status_code for call in calls] == [200] * 5
    assert engine.batches[1][0] == "tiny"
    shares = len(engine.batches[1]) - 1
    assert shares == (2 if by == "key" else 3), "a key has one share, however many connections"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "over the socket"])
async def test_decisions_tell_what_was_computed_for_them(tmp_path: Path, elsewhere: bool) -> None:
    asked = [{"type": "predicate", "name": "test/threat", "instructions": ""}]
    body = {"model": "m", "input": "aa bbbb c", "questions": asked}
    async with served(LengthEngine(), tmp_path, elsewhere=elsewhere) as (running, _):
        first, again = [
            (await running.client.post("/v1/decisions", json=body)).json()["usage"]
            for _ in range(2)
        ]
        other = await running.client.post(
            "/v1/systemone", json={"state": "aa b", "questions": {"threat": {"type": "noul"}}}
        )
    assert (first["input_tokens"], first["output_tokens"], first["total_tokens"]) == (7, 0, 7)
    assert again["input_tokens"] == 0, "what is known is not computed"
    assert other.json()["usage"] == {"input_tokens": 3, "output_tokens": 0}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "over the socket"])
async def test_what_can_never_be_judged_in_time_is_a_413_that_says_why(
    tmp_path: Path, elsewhere: bool
) -> None:
    engine = LengthEngine()
    async with served(engine, tmp_path, elsewhere=elsewhere) as (running, batched):
        batched.pace.per_token = batched.pace.per_token_of_many = 1.0
        text = "word " * 20
        for path, body in ((SCREEN, {"prompt": text}), ("/v1/moderations", {"input": text})):
            reply = await running.client.post(path, json=body)
            assert reply.status_code == 413
            error = reply.json()["error"]
            assert error["code"] == "text_too_long"
            assert "80 tokens, which is about 80 seconds" in error["message"]
            assert "at most 30 are spent" in error["message"]
        several = [{"prompt": f"{n}".rjust(9, "x")} for n in range(8)]
        reply = await running.client.post(SCREEN, json={"exchanges": several})
        assert reply.status_code == 413
        assert "The texts of this request take" in reply.json()["error"]["message"]
        assert (await running.client.post(SCREEN, json={"prompt": "x"})).status_code == 200


class Slow(FakeScorer):
    """Takes a while for each text."""

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        await asyncio.sleep(0.2)
        return await super().score(exchange, policies)


PASSAGES = {"passages": Passages(scorers=("*",))}


@asynccontextmanager
async def slow(seconds: float, **how: object) -> AsyncIterator[Gateway]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Scorer]:
        yield Resilient(Slow(), seconds=seconds)

    async with gateway(FakeScorer(), LoadingScorer(opened), guard_seconds=seconds, **how) as one:
        yield one


async def test_all_that_a_text_is_read_as_has_one_deadline() -> None:
    text = "".join(
        f"This sentence is number {n}. " for n in range(60)
    )  # a few passages are judged at a time
    async with slow(5, profile=PASSAGES) as running:
        began = monotonic()
        assert (await running.client.post(SCREEN, json={"prompt": text})).status_code == 200
        needed = monotonic() - began
    assert needed > 0.6
    async with slow(0.3, profile=PASSAGES) as running:
        began = monotonic()
        assert (await running.client.post(SCREEN, json={"prompt": text})).status_code == 503
        assert monotonic() - began < 0.55


async def test_a_check_of_a_streamed_answer_has_one_deadline_however_often_it_is_read() -> None:
    answer = streamed("".join(f"This sentence is number {n}. " for n in range(60)), piece=4000)
    async with (
        serving(Script(answer)) as url,
        slow(0.3, profile=PASSAGES, upstream=Upstream(url)) as running,
    ):
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        reply = await running.client.post("/v1/chat/completions", json=body)
        assert "moderation_unavailable" in reply.text


async def test_all_texts_of_a_request_have_one_deadline() -> None:
    """Where the guard fails open, too; a chat's texts are judged a few at a time."""
    profile = {"on_failure": {"prompt": "open", "response": "open"}}
    body = {"model": "m", "messages": [{"role": "system", "content": f"{n}"} for n in range(60)]}
    async with (
        serving(Script(whole("kind"))) as url,
        slow(0.5, profile=profile, upstream=Upstream(url)) as running,
    ):
        began = monotonic()
        reply = await running.client.post("/v1/chat/completions", json=body)
        assert monotonic() - began < 0.5 + 0.2 + 0.3, "its texts, its answer, and all else"
        assert reply.status_code == 200
        assert "failed_open" in (await running.client.get("/metrics")).text


async def test_an_answer_that_is_too_long_to_be_judged_is_not_its_readers_fault() -> None:
    scorer = FakeScorer(failure=TooLong("The text takes 80 tokens."))
    async with gateway(scorer) as running:
        body = {"prompt": "x", "response": "y"}
        reply = await running.client.post(SCREEN, json=body)
        assert reply.status_code == 503
        assert "80 tokens" in reply.json()["error"]["message"]


async def test_a_text_too_long_to_be_judged_passes_no_profile_that_fails_open() -> None:
    scorer = FakeScorer(failure=TooLong("The text takes 80 tokens."))
    opens = {"on_failure": {"prompt": "open", "response": "open"}}
    async with gateway(scorer, profile=opens) as running:
        assert (await running.client.post(SCREEN, json={"prompt": "x"})).status_code == 413
