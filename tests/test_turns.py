"""However much one caller sends, the others are served in turn, and what is hopeless is refused."""

import asyncio
import contextlib
import math
import threading
from collections.abc import Sequence

import pytest
from fakes import FakeScorer, small_book
from hypothesis import given
from hypothesis import strategies as st
from test_batched import LengthEngine

from shieldgate.errors import Overloaded, ScorerUnavailable, TooLong
from shieldgate.moderation import AT_ONCE, judge, score_all
from shieldgate.policy import Policy
from shieldgate.scoring import Batched, Cached, Prepared, turn
from shieldgate.scoring.factory import open_prompts
from shieldgate.scoring.fair_threads import FairThreads
from shieldgate.types import Exchange, Score

POLICY = small_book().policies["test/threat"]

pytestmark = pytest.mark.timeout(20, method="thread")


def asking(
    scorer: Batched | Cached, text: str, caller: str = "", deadline: turn.Deadline | None = None
) -> asyncio.Task[list[Score]]:
    async def ask() -> list[Score]:
        turn.caller.set(caller)
        turn.deadline.set(deadline)
        return await scorer.score(Exchange(text), [POLICY])

    return asyncio.create_task(ask())


async def queued(scorer: Batched, text: str, caller: str = "") -> asyncio.Task[list[Score]]:
    """Ask, and return once the work is queued."""
    before = len(scorer._queue)
    task = asking(scorer, text, caller)
    while len(scorer._queue) == before and not task.done():
        await asyncio.sleep(0)
    return task


async def running(engine: LengthEngine, scorer: Batched) -> asyncio.Task[list[Score]]:
    task = asking(scorer, "running", "first")
    await engine.wait_until_running()
    return task


async def test_who_sends_little_is_in_the_next_pass_however_much_another_sent() -> None:
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=20, max_waiting=100) as scorer:
        with engine.held():
            calls = [
                await running(engine, scorer),
                *[await queued(scorer, "longlonglo " * 30, "flood") for _ in range(3)],
                await queued(scorer, "small", "one"),
                await queued(scorer, "tiny", "other"),
            ]
        await asyncio.gather(*calls)
    assert sorted(engine.batches[1]) == ["longlonglo", "small", "tiny"]
    assert len(engine.batches) == 2 + 89 // 2 + 1, "and what is left fills its passes"


async def test_a_pass_takes_no_longer_than_it_may_as_far_as_is_known() -> None:
    engine = LengthEngine()
    limits = {"max_batch_tokens": 1000, "max_waiting": 100, "max_pass_seconds": 0.5}
    async with Batched(engine, **limits) as scorer:
        with engine.held():
            calls = [await running(engine, scorer)]
            calls += [await queued(scorer, text) for text in ("aaaa", "bbbb", "cc", "d" * 30, "e")]
            scorer.pace.per_token = 0.05
            scorer.pace.learn = lambda *_: None  # type: ignore[method-assign]
        await asyncio.gather(*calls)
    assert engine.batches[1:] == [["aaaa", "bbbb", "cc"], ["d" * 30], ["e"]]


async def test_a_full_house_takes_a_place_from_who_has_most() -> None:
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=1, max_waiting=3) as scorer:
        with engine.held():
            first = await running(engine, scorer)
            flood = [await queued(scorer, f"flood{n}", "flood") for n in range(2)]
            small = await queued(scorer, "small", "small")
            with pytest.raises(Overloaded):
                await flood[1]
            for caller in ("flood", "small", "new"):  # none has two more than the other
                with pytest.raises(Overloaded):
                    await asking(scorer, "more", caller)
        await asyncio.gather(first, flood[0], small)
        assert not scorer._calls


async def test_a_place_is_taken_from_a_text_that_waits_to_be_tokenised_too() -> None:
    engine, go_on = LengthEngine(), threading.Event()
    prepare = engine.prepare

    def slow(exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        go_on.wait(10)
        return prepare(exchange, policies)

    engine.prepare = slow  # type: ignore[method-assign]
    async with Batched(engine, max_batch_tokens=10, max_waiting=4) as scorer:
        flood = [asking(scorer, "flood", "flood") for _ in range(4)]
        await asyncio.sleep(0)
        small = asking(scorer, "small", "small")
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await flood[3]
        go_on.set()
        await asyncio.gather(*flood[:3], small)


async def test_what_takes_longer_than_any_text_may_is_refused_at_once() -> None:
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=2000, max_waiting=9, max_seconds=10) as scorer:
        long = "x" * 600 + " " + "y" * 600
        scorer.pace.per_token = 1.0
        await scorer.score(Exchange(long), [POLICY])  # no pass has told yet what many tokens take
        scorer.pace.per_token, scorer.pace.per_token_of_many = 2.0, 0.01
        with pytest.raises(TooLong, match=r"1,200 tokens, .* 12 seconds .* at most 10 are spent"):
            await scorer.score(Exchange(long), [POLICY])
        await scorer.score(Exchange("z" * 1200), [POLICY])  # one piece renews the estimate
        engine.prepare = lambda *_: pytest.fail("it was tokenised")  # type: ignore[method-assign]
        engine.least_tokens = lambda exchange, most: len(exchange.prompt) // 2  # type: ignore[method-assign]
        scorer.pace.per_token = scorer.pace.per_token_of_many = 0.01
        with pytest.raises(TooLong, match=r"more than 5,500 tokens"):
            await scorer.score(Exchange("x" * 11_000), [POLICY])
        assert not scorer._calls


async def test_the_texts_of_a_request_have_one_limit_together() -> None:
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=2000, max_waiting=9, max_seconds=10) as scorer:
        await scorer.score(Exchange("x" * 1024), [POLICY])
        scorer.pace.per_token = scorer.pace.per_token_of_many = 1.0
        with engine.held():
            with turn.within(10) as request:
                first = asking(scorer, "12345678", deadline=request)
                await engine.wait_until_running()
                with pytest.raises(TooLong, match="texts of this request take 11 tokens"):
                    await asking(scorer, "123", deadline=request)
            with turn.within(10) as another:
                second = asking(scorer, "1", deadline=another)
            await asyncio.sleep(0)
        await asyncio.gather(first, second)


async def test_who_could_not_be_done_by_its_deadline_is_refused_at_once() -> None:
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=4, max_waiting=9, max_seconds=100) as scorer:
        with engine.held():
            calls = [await running(engine, scorer), await queued(scorer, "1234", "other")]
            scorer.pace.per_token = 1.0
            soon, later = turn.Deadline.after(5), turn.Deadline.after(50)
            with pytest.raises(Overloaded):
                await asking(scorer, "12", deadline=soon)
            calls.append(asking(scorer, "12", deadline=later))
            await asyncio.sleep(0.05)
        await asyncio.gather(*calls)


async def test_who_is_long_and_late_is_not_even_tokenised() -> None:
    engine = LengthEngine()
    engine.least_tokens = lambda exchange, most: len(exchange.prompt)  # type: ignore[method-assign]
    async with Batched(engine, max_batch_tokens=4, max_waiting=9, max_seconds=1e5) as scorer:
        with engine.held():
            first = await running(engine, scorer)
            scorer.pace.per_token = scorer.pace.per_token_of_many = 1.0
            second = await queued(scorer, "x" * 9000)
            prepare, engine.prepare = engine.prepare, lambda *_: pytest.fail("tokenised")  # type: ignore[method-assign]
            with pytest.raises(Overloaded):
                await asking(scorer, "x" * 95_000)
            engine.prepare = prepare  # type: ignore[method-assign]
        await asyncio.gather(first, second)


async def test_who_leaves_takes_along_what_is_queued() -> None:
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=10, max_waiting=9) as scorer:
        with engine.held():
            first = await running(engine, scorer)
            leaving = await queued(scorer, "a " * 500, "flood")
            assert len(scorer._queue) == 500
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
            assert not scorer._queue
        await first
    assert engine.batches == [["running"]]


async def test_a_short_text_is_tokenised_while_long_ones_wait() -> None:
    threads, go_on = FairThreads("test"), threading.Event()
    long = [threads.submit(f"flood-{n}", 1000, go_on.wait, long=True) for n in range(4)]
    short = [threads.submit("small", 10, lambda n=n: n) for n in range(9)]
    assert await asyncio.gather(*(job.done for job in short)) == list(range(9))
    assert not any(job.done.done() for job in long)
    threads.withdraw(long[3])
    go_on.set()
    assert await asyncio.gather(*(job.done for job in long[:3])) == [True] * 3
    await asyncio.to_thread(threads.close)


async def test_long_texts_are_tokenised_in_turn_and_get_a_thread_among_short_ones() -> None:
    threads, order = FairThreads("test"), list[str]()
    held = threading.Event()
    first = [threads.submit("", 10, held.wait) for _ in range(2)]
    jobs = [
        threads.submit("flood", 1000, lambda n=n: order.append(f"f{n}"), long=True)
        for n in range(3)
    ]
    jobs.append(threads.submit("other", 500, lambda: order.append("other"), long=True))
    jobs += [threads.submit("short", 10, lambda: None) for _ in range(50)]
    held.set()
    await asyncio.gather(*(job.done for job in (*first, *jobs)))
    assert order == ["other", "f0", "f1", "f2"]
    nothing = [threads.submit("", 0, lambda n=n: n) for n in range(5)]
    assert await asyncio.gather(*(job.done for job in nothing)) == list(range(5))
    failing = threads.submit("", 10, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await failing.done
    await asyncio.to_thread(threads.close)


async def test_texts_are_read_in_turn_however_long_that_takes() -> None:
    book, scorer, done = small_book(), FakeScorer(), list[str]()
    rules, threads = book.rules(book.profiles["default"]), FairThreads("read")

    async def judged(caller: str, text: str) -> None:
        turn.caller.set(caller)
        await judge(scorer, Exchange(text), rules, threads)
        done.append(caller)

    glued = "iwillbakealoafofbreadandshareit " * 250
    flood = [asyncio.create_task(judged("flood", f"{n} {glued}")) for n in range(20)]
    await asyncio.sleep(0)
    await asyncio.create_task(judged("one", "We bake a loaf of bread and share it. " * 9))
    assert len(done) <= 4
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    with turn.within(-1), pytest.raises(ScorerUnavailable, match="in time"):
        await judge(scorer, Exchange(glued), rules, threads)
    threads.close()


async def test_a_text_of_many_pieces_has_no_more_tasks_than_are_scored_at_a_time() -> None:
    running: list[int] = []

    class Counting(FakeScorer):
        async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
            running.append(len(asyncio.all_tasks()))
            return await super().score(exchange, policies)

    ways = [Exchange(f"piece {n}") for n in range(1000)]
    scores = await score_all(Counting(), ways, [POLICY])
    assert list(scores) == ways
    assert len(running) == len(ways)
    assert max(running) <= 1 + AT_ONCE


async def test_who_sends_texts_of_no_characters_has_turns_as_others_at_tokenising() -> None:
    """It is the guidelines that take time then; were they for free, nobody else had a turn."""
    engine, go_on, order = LengthEngine(), threading.Event(), list[str]()
    prepare = engine.prepare

    def recorded(exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        go_on.wait(10)
        order.append(exchange.prompt)
        return prepare(Exchange("word"), policies)

    engine.prepare = recorded  # type: ignore[method-assign]
    async with Batched(engine, max_batch_tokens=1000, max_waiting=1000) as scorer:
        flood = [asking(scorer, "", "flood") for _ in range(200)]
        await asyncio.sleep(0)
        small = asking(scorer, "a text of forty-five characters in this place", "small")
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(*flood, small)
    assert order.index("a text of forty-five characters in this place") < 10


async def test_nobody_joins_the_call_of_another_caller_or_one_that_may_last_too_long() -> None:
    scorer = FakeScorer()
    scorer.released.clear()
    cache = Cached(scorer, secret=b"0" * 16, max_entries=9)
    soon, later = turn.Deadline.after(5), turn.Deadline.after(10)
    calls = [
        asking(cache, "same", "one", later),
        asking(cache, "same", "one", later),  # joins
        asking(cache, "same", "one", soon),  # must not wait for that one
        asking(cache, "same", "other", later),
        asking(cache, "same", "one"),  # has all the time
    ]
    await asyncio.sleep(0.01)
    assert len(scorer.calls) == 3
    scorer.released.set()
    assert await asyncio.gather(*calls) == [[Score(-6.0)]] * 5


async def test_one_deadline_within_another_is_the_other() -> None:
    with turn.within(5) as outer:
        async with asyncio.TaskGroup() as group:

            async def inner() -> turn.Deadline:
                with turn.within(50) as given:
                    return given

            task = group.create_task(inner())
    assert task.result() is outer
    assert turn.deadline.get() is None


async def test_closing_fails_texts_that_wait_to_be_tokenised() -> None:
    threads, go_on = FairThreads("test"), threading.Event()
    jobs = [threads.submit("", 1, go_on.wait) for _ in range(3)]
    threads.fail_waiting()
    with pytest.raises(ScorerUnavailable):
        await jobs[2].done
    go_on.set()
    await asyncio.gather(*(job.done for job in jobs[:2]))
    await asyncio.to_thread(threads.close)


SOME = st.text(st.sampled_from("abc e.\n\t▁é中文кил🥖\ud83d\u0301"), max_size=300) | st.text()


@given(SOME, st.integers(1, 50))
def test_no_text_has_fewer_tokens_than_its_characters_tell(text: str, times: int) -> None:
    encoder = PROMPTS._encoder
    long = text * times
    assert encoder.least_tokens(long, math.inf) <= len(encoder.spans(long))


def test_chinese_for_example_is_seen_to_be_long_at_once() -> None:
    text = "".join(map(chr, range(0x4E00, 0x9FA6)))
    least, real = PROMPTS._encoder.least_tokens(text, math.inf), len(PROMPTS._encoder.spans(text))
    assert 0.9 * real < least <= real
    assert 9000 < PROMPTS._encoder.least_tokens(text, 9000) < real


PROMPTS = open_prompts("starter", template="chat")
