"""What is in the background is scored when no caller needs the scorer, and at no caller's cost."""

import asyncio
import threading

import pytest
from fakes import FakeScorer, small_book
from test_batched import LengthEngine
from test_fair_queue import Item, queue_of
from test_turns import asking, queued, running

from shieldgate.scoring import Batched, Cached, turn
from shieldgate.scoring.fair_threads import FairThreads
from shieldgate.scoring.precedence import Precedence
from shieldgate.types import Exchange, Score

POLICY = small_book().policies["test/threat"]

pytestmark = pytest.mark.timeout(20, method="thread")


def test_the_background_leaves_one_by_one_when_no_caller_waits() -> None:
    behind = [Item(turn.BACKGROUND, 10, n) for n in range(3)]
    queue = queue_of(behind[0], Item("one", 10), behind[1], Item("other", 10), behind[2])
    assert (len(queue), queue.of_callers) == (5, 2)
    assert [item.caller for item in queue.take(1000)] == ["one", "other"], "and fills no pass up"
    assert queue.ahead("one", 10) == 0
    assert queue.take(1000) == [behind[0]]
    queue.drop([behind[1]])
    assert queue.take(1000) == [behind[2]]
    assert not queue


async def test_a_caller_is_in_the_next_pass_however_much_is_behind() -> None:
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=100, max_waiting=1) as scorer:
        with engine.held():
            behind = [asking(scorer, "background " * 3, turn.BACKGROUND)]
            await engine.wait_until_running()
            behind.append(await queued(scorer, "more behind", turn.BACKGROUND))
            caller = await queued(scorer, "caller text", "one")  # there is a place for it
        await asyncio.gather(*behind, caller)
    assert engine.batches[0] == ["background"], "one piece, and no more"
    assert engine.batches[1] == ["caller", "text"]
    assert engine.batches[2:] == [["background"], ["background"], ["more"], ["behind"]]


async def test_what_is_behind_moves_no_estimate_and_no_figure_of_requests() -> None:
    engine, seen = LengthEngine(), list[str]()

    class Observer:
        def tokenised(self, tokens: int) -> None:
            seen.append("tokenised")

        def phase(self, phase: str, seconds: float) -> None:
            seen.append(phase)

        def queued(self, pieces: int) -> None:
            assert pieces == 0

        def forward(self, seconds: float, tokens: int, pieces: int) -> None:
            seen.append("forward")

    async with Batched(engine, max_batch_tokens=100, max_waiting=1, observer=Observer()) as scorer:
        with turn.metered() as meter:
            await asking(scorer, "text", turn.BACKGROUND)
        assert scorer.pace.per_token == 0
    assert seen == ["forward"]
    assert meter.tokens == 4
    assert meter.seconds > 0


async def test_what_is_behind_waits_as_long_as_it_takes() -> None:
    """It has no deadline, so that a busy server refuses none of it at once."""
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=100, max_waiting=9, max_seconds=10) as scorer:
        with engine.held():
            calls = [await running(engine, scorer)]
            scorer.pace.per_token = 100.0
            calls.append(await queued(scorer, "behind", turn.BACKGROUND))
        await asyncio.gather(*calls)


async def test_closing_fails_what_is_behind() -> None:
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=100, max_waiting=9) as scorer:
        with engine.held():
            first = await running(engine, scorer)
            behind = [await queued(scorer, "behind", turn.BACKGROUND) for _ in range(2)]
            closing = asyncio.create_task(scorer.__aexit__())
            found = await asyncio.gather(*behind, return_exceptions=True)
        await asyncio.gather(first, closing, return_exceptions=True)
    assert [str(failure) for failure in found] == ["The scorer failed or was closed."] * 2


async def test_tokenising_in_the_background_leaves_a_thread_to_callers() -> None:
    threads, go_on = FairThreads("test"), threading.Event()
    behind = [threads.submit(turn.BACKGROUND, 9, go_on.wait, long=True) for _ in range(3)]
    assert await threads.submit("one", 9, lambda: "done").done == "done"
    assert await threads.submit("one", 9, lambda: "long", long=True).done == "long"
    go_on.set()
    await asyncio.gather(*(job.done for job in behind))
    await asyncio.to_thread(threads.close)


async def test_another_engine_computes_while_the_first_one_has_nothing_to_do() -> None:
    precedence, first, engine = Precedence(), FakeScorer(), LengthEngine()
    before = precedence.before(first)
    limits = {"max_batch_tokens": 100, "max_waiting": 9}
    async with Batched(engine, **limits, gate=precedence.idle) as candidate:
        first.released.clear()
        caller = asyncio.create_task(before.score(Exchange("bread"), [POLICY]))
        await first.entered.wait()
        behind = await queued(candidate, "behind", turn.BACKGROUND)
        await asyncio.sleep(0.02)
        assert not engine.batches
        first.released.set()
        await asyncio.gather(caller, behind)
    assert engine.batches == [["behind"]]


async def test_what_is_in_the_background_itself_goes_before_nothing() -> None:
    precedence, first = Precedence(), FakeScorer()
    first.released.clear()
    behind = asking(precedence.before(first), "behind", turn.BACKGROUND)  # type: ignore[arg-type]
    await first.entered.wait()
    await precedence.idle()
    behind.cancel()


async def test_a_cache_of_the_candidate_finds_what_is_known_and_changes_nothing_there() -> None:
    scorer = FakeScorer()
    known = Cached(scorer, secret=b"0" * 16, max_entries=1)
    cache = Cached(scorer, secret=b"0" * 16, max_entries=9, second=known)
    await known.score(Exchange("bread"), [POLICY])
    assert await cache.score(Exchange("bread"), [POLICY]) == [Score(-6.0)]
    await cache.score(Exchange("buns"), [POLICY])
    await known.score(Exchange("bread"), [POLICY])  # is still there
    assert [exchange.prompt for exchange, _ in scorer.calls] == ["bread", "buns"]
