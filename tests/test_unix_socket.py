"""A scorer behind a socket is the scorer, and nobody waits for one that is gone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes import FakeScorer, small_book
from structlog.testing import capture_logs

from shieldgate.errors import ConfigurationError, Overloaded, ScorerUnavailable, TooLong
from shieldgate.policy import Policy
from shieldgate.scoring import Identity, UnixSocketScorer, turn, unix_socket
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.scoring.unix_socket import listening
from shieldgate.types import Exchange, Score

POLICIES = tuple(small_book().policies.values())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scorer"


@asynccontextmanager
async def over_socket(scorer: FakeScorer, path: Path) -> AsyncIterator[UnixSocketScorer]:
    async with listening(scorer, path), UnixSocketScorer(path) as remote:
        yield remote


async def test_what_is_asked_and_answered_is_what_arrives(path: Path) -> None:
    scorer = FakeScorer()
    exact = Score(0.1 + 0.2, windows=3, prompt_omitted=12)

    async def score(exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        scorer.calls.append((exchange, tuple(p.guidelines[exchange.direction] for p in policies)))  # type: ignore[attr-defined]
        return [exact, Score(-1e-300)]

    scorer.score = score  # type: ignore[method-assign,assignment]
    exchanges = [
        Exchange("bread"),
        Exchange("bread", "an answer", growing=True),
        Exchange("half a \ud83d pair, a \x00, an é and a 🥖" * 50_000, ""),
    ]
    async with over_socket(scorer, path) as remote:
        assert remote.identity == scorer.identity
        for exchange in exchanges:
            assert await remote.score(exchange, POLICIES) == [exact, Score(-1e-300)]
    asked = [tuple(p.guidelines[e.direction] for p in POLICIES) for e in exchanges]
    assert scorer.calls == list(zip(exchanges, asked, strict=True))


async def test_failures_arrive_as_they_are(path: Path) -> None:
    scorer = FakeScorer()
    async with over_socket(scorer, path) as remote:
        for failure in (
            Overloaded(7.5),
            ScorerUnavailable("The scorer failed.", retry_after=3.0),
            ScorerUnavailable("The scorer failed."),
            ConfigurationError("The template 'blog' only judges prompts."),
            TooLong("The text takes 9 tokens."),
        ):
            scorer.failure = failure
            with pytest.raises(type(failure)) as raised:
                await remote.score(Exchange("bread"), POLICIES)
            assert str(raised.value) == str(failure)
            known = getattr(raised.value, "retry_after", None)
            assert known == getattr(failure, "retry_after", None)

        scorer.failure = RuntimeError("a secret")
        with capture_logs() as lines, pytest.raises(ScorerUnavailable) as unknown:
            await remote.score(Exchange("bread"), POLICIES)
        assert "secret" not in str(unknown.value)
        assert [line["event"] for line in lines] == ["scoring failed"]
        scorer.failure = None
        assert await remote.score(Exchange("bread"), POLICIES) == [Score(-6.0)] * 2


async def test_many_ask_at_once_and_who_leaves_is_not_scored_any_further(path: Path) -> None:
    scorer = FakeScorer({("crude", "test/threat"): 3.0})
    async with over_socket(scorer, path) as remote:
        before = asyncio.all_tasks()
        asked = [Exchange(f"{'crude' if n % 2 else 'kind'} {n}") for n in range(200)]
        found = await asyncio.gather(*(remote.score(e, POLICIES) for e in asked))
        assert [scores[0].margin for scores in found] == [-6.0, 3.0] * 100

        scorer.released.clear()
        scorer.entered.clear()
        scorer.left.clear()
        leaving = asyncio.create_task(remote.score(Exchange("bread"), POLICIES))
        await scorer.entered.wait()
        leaving.cancel()
        await scorer.left.wait()
        async with asyncio.timeout(10):
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0)


async def test_a_scorer_that_ends_is_noticed_at_once_and_its_successor_is_found(
    path: Path,
) -> None:
    remote = UnixSocketScorer(path)
    ready: asyncio.Queue[bool] = asyncio.Queue()
    loading = LoadingScorer(lambda: remote, remote.gone)
    holding = asyncio.create_task(loading.hold(ready.put_nowait))
    for life in ("1", "2"):
        scorer = FakeScorer()
        scorer.identity = Identity(f"fake@{life}", life, "float32", "chat", "none")
        with pytest.raises(ScorerUnavailable):
            await loading.score(Exchange("bread"), POLICIES)
        async with listening(scorer, path):
            assert await ready.get()
            assert loading.identity.name == f"fake@{life}"
            assert await loading.score(Exchange("bread"), POLICIES)
            scorer.released.clear()
            scorer.entered.clear()
            waiting = asyncio.create_task(loading.score(Exchange("bread"), POLICIES))
            await scorer.entered.wait()
        with pytest.raises(ScorerUnavailable, match="not there"):
            await waiting
        assert not await ready.get()
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


async def test_a_scorer_that_hangs_holds_no_check_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "_CHECK_SECONDS", 0.05)

    class Hangs(FakeScorer):
        async def check(self, policies: object) -> None:
            await asyncio.Event().wait()

    async with over_socket(Hangs(), path) as scorer:
        with pytest.raises(ScorerUnavailable, match="does not answer"):
            await scorer.check(POLICIES)


async def test_on_whose_behalf_it_is_and_until_when_goes_along(path: Path) -> None:
    scorer = FakeScorer()
    seen: list[tuple[str, turn.Deadline | None]] = []

    async def score(exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        seen.append((turn.caller.get(), turn.deadline.get()))
        await scorer.released.wait()
        return [Score(0.0)]

    scorer.score = score  # type: ignore[method-assign]
    scorer.released.clear()
    async with over_socket(scorer, path) as remote, asyncio.TaskGroup() as group:
        turn.caller.set("web")
        with turn.within(20) as ours:
            for _ in range(2):
                group.create_task(remote.score(Exchange("bread"), POLICIES))
        turn.caller.set("other")
        group.create_task(remote.score(Exchange("bread"), POLICIES))
        while len(seen) < 3:
            await asyncio.sleep(0)
        scorer.released.set()
    (_, theirs), (_, same) = (one for one in seen if one[0] == "web")
    assert theirs
    assert theirs is same, "the texts of a request are counted together"
    assert (theirs.id, theirs.seconds) == (ours.id, 20)
    assert abs(theirs.until - ours.until) < 1
    assert [one for one in seen if one[0] == "other"] == [("other", None)]
    seen.clear()
    del theirs, same
    assert not unix_socket._deadlines
