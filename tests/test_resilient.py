"""No judgement takes longer than it may, and a scorer that keeps failing heals by itself."""

import asyncio
from dataclasses import dataclass, field

import pytest
from fakes import FakeScorer, small_book
from test_batched import LengthEngine

from shieldgate.errors import ConfigurationError, Overloaded, ScorerUnavailable
from shieldgate.scoring import Batched, Cached, Resilient, turn
from shieldgate.types import Exchange, Score

POLICIES = tuple(small_book().policies.values())
TEXT = Exchange("bread")


@dataclass
class Observer:
    """Remembers what it saw."""

    reasons: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def guard_failed(self, reason: str) -> None:
        self.reasons.append(reason)

    def breaker(self, breaker: str, state: str) -> None:
        self.states.append(state)


@pytest.fixture
def observer() -> Observer:
    return Observer()


def guarded(scorer: FakeScorer, observer: Observer, seconds: float = 10) -> Resilient:
    return Resilient(scorer, seconds=seconds, observer=observer)


async def refused(scorer: Resilient) -> ScorerUnavailable:
    with pytest.raises(ScorerUnavailable) as refusal:
        await scorer.score(TEXT, POLICIES)
    return refusal.value


def until_probing(scorer: Resilient) -> None:
    """Let the breaker's pause pass without waiting for it."""
    assert scorer._breaker.state == "open"
    scorer._breaker._until = 0.0


async def test_scores_and_other_errors_pass(scorer: FakeScorer, observer: Observer) -> None:
    guard = guarded(scorer, observer)
    assert await guard.score(TEXT, POLICIES) == [Score(-6.0)] * 2
    for error in (ConfigurationError("no"), RuntimeError("a defect")):
        scorer.failure = error
        for _ in range(6):
            with pytest.raises(type(error)):
                await guard.score(TEXT, POLICIES)
    assert (observer.reasons, observer.states) == ([], [])


async def test_past_its_deadline_a_judgement_fails_and_its_place_is_given_back(
    scorer: FakeScorer, observer: Observer
) -> None:
    scorer.released.clear()
    guard = guarded(scorer, observer, seconds=0.02)
    assert "within 0.02 seconds" in str(await refused(guard))
    assert scorer.left.is_set()
    assert observer.reasons == ["timeout"]


async def test_repeated_failures_open_the_breaker_and_a_probe_heals_it(
    scorer: FakeScorer, observer: Observer
) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    guard = guarded(scorer, observer)
    for _ in range(5):
        await refused(guard)
    asked = len(scorer.calls)
    failure = await refused(guard)
    assert "keeps failing" in str(failure)
    assert failure.retry_after
    assert 0 < failure.retry_after <= 1
    assert len(scorer.calls) == asked, "an open breaker asks nobody"

    until_probing(guard)
    await refused(guard)
    assert len(scorer.calls) == asked + 1
    scorer.failure = None
    until_probing(guard)
    assert await guard.score(TEXT, POLICIES)
    assert observer.states == ["open", "half_open", "open", "half_open", "closed"]
    assert observer.reasons == ["failure"] * 5 + ["breaker", "failure"]


async def test_a_full_queue_and_callers_who_leave_say_nothing_of_the_scorer(
    scorer: FakeScorer, observer: Observer
) -> None:
    guard = guarded(scorer, observer)
    scorer.failure = Overloaded(3)
    for _ in range(6):
        with pytest.raises(Overloaded):
            await guard.score(TEXT, POLICIES)
    scorer.released.clear()
    for _ in range(6):
        scorer.entered.clear()
        asking = asyncio.create_task(guard.score(TEXT, POLICIES))
        await scorer.entered.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert observer.states == []
    assert observer.reasons == ["overloaded"] * 6


async def test_only_one_caller_probes(scorer: FakeScorer, observer: Observer) -> None:
    guard = guarded(scorer, observer)
    scorer.failure = ScorerUnavailable("The scorer failed.")
    for _ in range(5):
        await refused(guard)
    scorer.failure = None
    scorer.released.clear()
    scorer.entered.clear()
    until_probing(guard)
    probing = asyncio.create_task(guard.score(TEXT, POLICIES))
    await scorer.entered.wait()
    assert "keeps failing" in str(await refused(guard))
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)
    scorer.released.set()
    assert await guard.score(TEXT, POLICIES), "a probe whose caller left is made up for"


async def test_in_its_composition_a_stuck_pass_fails_its_callers_and_then_heals(
    observer: Observer,
) -> None:
    """Who joined the same flight fails with it; then all work."""
    engine = LengthEngine()
    async with Batched(engine, max_batch_tokens=100, max_waiting=100) as batched:
        guard = Resilient(batched, seconds=0.5, observer=observer)
        scorer = Cached(guard, secret=b"0" * 16, max_entries=10)
        with engine.held():
            calls = (scorer.score(TEXT, POLICIES) for _ in range(3))
            failed = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(f) for f in failed] == [ScorerUnavailable] * 3
            assert observer.reasons == ["timeout"], "three callers, one flight"
        assert await scorer.score(TEXT, POLICIES) == [Score(5.0)] * 2


async def test_who_waits_in_a_busy_queue_opens_no_breaker(
    scorer: FakeScorer, observer: Observer
) -> None:
    guard = guarded(scorer, observer, seconds=0.1)
    scorer.released.clear()
    waiting = [asyncio.create_task(guard.score(TEXT, POLICIES)) for _ in range(9)]
    await scorer.entered.wait()
    answered = FakeScorer()
    guard._scorer = answered
    await guard.score(TEXT, POLICIES)  # of somebody else, meanwhile
    failed = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(f) for f in failed] == [ScorerUnavailable] * 9
    assert observer.reasons == ["timeout"] * 9
    assert observer.states == []


async def test_what_comes_late_has_the_rest_of_its_time_and_opens_no_breaker(
    scorer: FakeScorer, observer: Observer
) -> None:
    guard = guarded(scorer, observer, seconds=10)
    scorer.released.clear()
    with turn.within(0.02):
        await asyncio.gather(*(refused(guard) for _ in range(6)))
        asked = len(scorer.calls)
        await refused(guard)
        assert len(scorer.calls) == asked, "nobody is asked for what is over"
    assert observer.reasons == ["timeout"] * 7
    assert observer.states == []
