"""Callers share forward passes, and none of them is ever left waiting."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

import pytest

from shieldgate.errors import Overloaded, ScorerUnavailable
from shieldgate.policy import Policy
from shieldgate.scoring import Batched, Identity, Prepared
from shieldgate.types import Exchange, Score

POLICY = Policy("a/b", "B", {"prompt": "G", "response": "G"}, {"prompt": 0.5, "response": 0.5})
TIMEOUT = 10

# What hangs here may never return to the event loop, and a task would swallow what a signal raises.
pytestmark = pytest.mark.timeout(2 * TIMEOUT, method="thread")


@dataclass(frozen=True)
class Piece:
    text: str
    policies: int

    @property
    def tokens(self) -> int:
        return len(self.text)


@dataclass
class LengthEngine:
    """Scores a text by its length, word by word as windows; forward passes can be held."""

    identity: Identity = field(default_factory=lambda: Identity("length", "0", "f", "t", "w"))
    batches: list[list[str]] = field(default_factory=list)
    running: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.released.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        self.running.clear()
        self.released.clear()
        try:
            yield
        finally:
            self.released.set()

    async def wait_until_running(self) -> None:
        assert await asyncio.to_thread(self.running.wait, TIMEOUT)

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        return 0

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        if exchange.prompt == "untokenisable":
            raise ValueError
        return Prepared(tuple(Piece(w, len(policies)) for w in exchange.prompt.split()))

    def forward(self, work: Sequence[Piece]) -> list[list[float]]:
        self.batches.append([piece.text for piece in work])
        self.running.set()
        assert self.released.wait(TIMEOUT)
        if any(piece.text == "poison" for piece in work):
            raise RuntimeError("the device is on fire")
        if any(piece.text == "short" for piece in work):
            return []
        return [[float(len(piece.text))] * piece.policies for piece in work]


@pytest.fixture
def engine() -> LengthEngine:
    return LengthEngine()


def batched(engine: LengthEngine, tokens: int = 100, waiting: int = 100) -> Batched:
    return Batched(engine, max_batch_tokens=tokens, max_waiting=waiting)


async def start(scorer: Batched, text: str) -> asyncio.Task[list[Score]]:
    """Start a call, and return once its work is queued or done."""
    before = len(scorer._queue)
    task = asyncio.create_task(scorer.score(Exchange(text), [POLICY]))
    async with asyncio.timeout(TIMEOUT):
        while len(scorer._queue) == before and not task.done():
            await asyncio.sleep(0)
    return task


async def test_each_caller_gets_its_own_scores(engine: LengthEngine) -> None:
    async with batched(engine) as scorer:
        texts = ["x" * n for n in range(1, 40)]
        calls = [scorer.score(Exchange(t), [POLICY] * (1 + len(t) % 3)) for t in texts]
        found = await asyncio.gather(*calls)
    assert [[s.margin for s in scores] for scores in found] == [
        [float(len(t))] * (1 + len(t) % 3) for t in texts
    ]


async def test_the_windows_of_a_text_are_combined_by_the_maximum(engine: LengthEngine) -> None:
    async with batched(engine) as scorer:
        assert await scorer.score(Exchange("aa bbbb c"), [POLICY]) == [Score(4.0, windows=3)]


async def test_callers_who_wait_share_a_forward_pass_within_the_token_budget(
    engine: LengthEngine,
) -> None:
    async with batched(engine, tokens=10) as scorer:
        with engine.held():
            first = await start_running(engine, scorer, "first")
            rest = [await start(scorer, t) for t in ("aaaa", "bbbb", "cc", "dddd", "e" * 50, "f")]
        await asyncio.gather(first, *rest)
    assert engine.batches == [
        ["first"],
        ["aaaa", "bbbb", "cc"],
        ["dddd"],
        ["e" * 50],  # over the budget on its own, and still served
        ["f"],
    ]


async def start_running(
    engine: LengthEngine, scorer: Batched, text: str
) -> asyncio.Task[list[Score]]:
    task = asyncio.create_task(scorer.score(Exchange(text), [POLICY]))
    await engine.wait_until_running()
    return task


async def test_a_caller_who_left_is_skipped_and_the_loop_goes_on(engine: LengthEngine) -> None:
    async with batched(engine) as scorer:
        with engine.held():
            running = await start_running(engine, scorer, "running")
            leaving = await start(scorer, "leaving")
            staying = await start(scorer, "staying")
            leaving.cancel()
            running.cancel()  # its result arrives at a cancelled future
            await asyncio.gather(leaving, running, return_exceptions=True)
        assert (await staying)[0].margin == 7
        assert engine.batches == [["running"], ["staying"]]
        assert (await scorer.score(Exchange("later"), [POLICY]))[0].margin == 5


@pytest.mark.parametrize("trouble", ["poison", "short"])
async def test_a_failure_reaches_every_waiter_and_the_loop_survives(
    engine: LengthEngine, trouble: str
) -> None:
    async with batched(engine) as scorer:
        with engine.held():
            first = await start_running(engine, scorer, "first")
            doomed = [await start(scorer, t) for t in ("aa", trouble, "bb")]
        await first
        for task in doomed:
            with pytest.raises(ScorerUnavailable):
                await task
        assert (await scorer.score(Exchange("later"), [POLICY]))[0].margin == 5


async def test_a_failing_tokenisation_reaches_its_caller_alone(engine: LengthEngine) -> None:
    async with batched(engine) as scorer:
        with pytest.raises(ScorerUnavailable):
            await scorer.score(Exchange("untokenisable"), [POLICY])
        assert (await scorer.score(Exchange("fine"), [POLICY]))[0].margin == 4


async def test_a_full_house_refuses_at_once_and_says_when_to_return(engine: LengthEngine) -> None:
    async with batched(engine, waiting=2) as scorer:
        with engine.held():
            first = await start_running(engine, scorer, "first")
            second = await start(scorer, "second")
            with pytest.raises(Overloaded) as refusal:
                await scorer.score(Exchange("third"), [POLICY])
            assert refusal.value.retry_after >= 1
        await asyncio.gather(first, second)
        assert (await scorer.score(Exchange("third"), [POLICY]))[0].margin == 5


async def test_who_would_come_too_late_is_refused_at_once(engine: LengthEngine) -> None:
    scorer = Batched(engine, max_batch_tokens=4, max_waiting=100, max_seconds=10)
    async with scorer:
        await scorer.score(Exchange("warm"), [POLICY])
        scorer.pace.per_token = 1.0
        with engine.held():
            first = await start_running(engine, scorer, "1234")
            second = await start(scorer, "5678")  # done after 8 seconds, as far as is known
            with pytest.raises(Overloaded) as refusal:
                await scorer.score(Exchange("abc"), [POLICY])
            assert 7 < refusal.value.retry_after <= 8
            third = await start(scorer, "ab")
            second.cancel()  # who has left is no longer in anybody's way
            await asyncio.gather(second, return_exceptions=True)
            fourth = await start(scorer, "abc")
        await asyncio.gather(first, third, fourth)


async def test_a_first_in_line_is_never_refused_so_that_the_estimate_can_mend(
    engine: LengthEngine,
) -> None:
    async with Batched(engine, max_batch_tokens=9, max_waiting=9, max_seconds=1) as scorer:
        scorer.pace.per_token = 1e6
        await scorer.score(Exchange("long"), [POLICY])
        assert scorer.pace.per_token == pytest.approx(0.8e6)  # one quick pass proves little
        for _ in range(150):
            await scorer.score(Exchange("long enough"), [POLICY])
        assert scorer.pace.per_token < 1


async def test_closing_fails_what_is_queued_and_finishes(engine: LengthEngine) -> None:
    scorer = batched(engine)
    async with scorer:
        with engine.held():
            running = await start_running(engine, scorer, "running")
            queued = await start(scorer, "queued")
            closing = asyncio.create_task(scorer.__aexit__(None, None, None))
            with pytest.raises(ScorerUnavailable):
                await queued
        await closing
        with pytest.raises(ScorerUnavailable):
            await running
    with pytest.raises(ScorerUnavailable, match="closed"):
        await scorer.score(Exchange("late"), [POLICY])
    assert not [t for t in threading.enumerate() if t.name.startswith(("forward", "tokenise"))]


async def test_closing_is_told_to_callers_whose_texts_wait_to_be_tokenised() -> None:
    engine, begun, go_on = LengthEngine(), threading.Semaphore(0), threading.Event()
    prepare = engine.prepare

    def slow(exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        begun.release()
        go_on.wait(10)
        return prepare(exchange, policies)

    engine.prepare = slow
    scorer = batched(engine)
    async with scorer:
        asking = [asyncio.create_task(scorer.score(Exchange(str(n)), [POLICY])) for n in range(6)]
        await asyncio.to_thread(begun.acquire)
        closing = asyncio.create_task(scorer.__aexit__(None, None, None))
        await asyncio.sleep(0)
        go_on.set()
        await closing
        told = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(t) for t in told] == [ScorerUnavailable] * 6
    with pytest.raises(ScorerUnavailable, match="closed"):
        await scorer.check([POLICY])


async def test_the_event_loop_is_free_while_a_forward_pass_runs(engine: LengthEngine) -> None:
    async with batched(engine) as scorer:
        with engine.held():
            task = await start_running(engine, scorer, "long")
            turned = asyncio.Event()
            asyncio.get_running_loop().call_soon(turned.set)
            await asyncio.wait_for(turned.wait(), TIMEOUT)
            assert not task.done()
        await task


async def test_the_observer_sees_queue_forward_passes_and_phases(engine: LengthEngine) -> None:
    seen: list[tuple[object, ...]] = []
    spent: dict[str, float] = {}

    class Observer:
        def tokenised(self, tokens: int) -> None:
            seen.append(("tokenised", tokens))

        def phase(self, phase: str, seconds: float) -> None:
            spent[phase] = seconds

        def queued(self, pieces: int) -> None:
            seen.append(("queued", pieces))

        def forward(self, seconds: float, tokens: int, pieces: int) -> None:
            assert seconds > 0
            seen.append(("forward", tokens, pieces))

    async with Batched(engine, max_batch_tokens=9, max_waiting=9, observer=Observer()) as scorer:
        await scorer.score(Exchange("aa bbb"), [POLICY])
        assert seen == [("queued", 2), ("queued", 0), ("forward", 5, 2), ("tokenised", 5)]
        with engine.held():
            first = await start_running(engine, scorer, "first")
            began = monotonic()
            second = await start(scorer, "second")
            queued = monotonic()
            spent.clear()
            least = monotonic() - queued
        await asyncio.gather(first, second)
        most = monotonic() - began
    assert list(spent) == ["tokenise", "queue", "forward"]
    assert least < spent["queue"]
    assert sum(spent.values()) <= most
