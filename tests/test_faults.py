"""Faults that are really injected: all get an answer, nothing passes unjudged, and all heals.

Those of Redis are in test_shared_redis.py, those of upstream in test_upstream.py, test_chat.py
and test_chat_streams.py, SIGTERM under load in test_drain.py.
"""

import asyncio
import gc
import json
import logging
import re
import resource
import shutil
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from fakes import FakeScorer
from front import Open
from full_disk import full_disk
from serving import Gateway, gateway
from structlog.testing import capture_logs
from test_batched import LengthEngine, Piece
from typer.testing import CliRunner, Result
from upstream import delta, streamed

import shieldgate
from shieldgate.cli import app
from shieldgate.errors import ShieldgateError
from shieldgate.evaluation.score_file import read_scores
from shieldgate.policy import LiveBook, shipped_policies
from shieldgate.scoring import Batched, Cached, Resilient, Scorer
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.telemetry.recent_decisions import RecentDecisions


class Engine(LengthEngine):
    """An engine that fails as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: BaseException | None = None

    def forward(self, work: list[Piece]) -> list[list[float]]:  # type: ignore[override]
        margins = super().forward(work)
        if self.failure:
            raise self.failure
        return [[-margin for margin in each] for each in margins]


@dataclass
class Rig:
    """A gateway around all that stands before an engine."""

    gateway: Gateway
    engine: Engine
    batched: Batched

    def ask(self, text: str) -> asyncio.Task[httpx.Response]:
        body = {"prompt": text}
        return asyncio.create_task(self.gateway.client.post("/v1/screen", json=body))

    async def burst(self, name: str, size: int = 4) -> list[httpx.Response]:
        return await asyncio.gather(*(self.ask(f"{name}-{n}") for n in range(size)))

    async def heals(self) -> None:
        """See the next requests answered; a breaker may want its pause first."""
        async with asyncio.timeout(30):
            while (await self.ask("healed")).status_code != 200:
                await asyncio.sleep(0.05)
        assert all(reply.status_code == 200 for reply in await self.burst("well"))
        assert not self.batched._calls
        assert not self.batched._queue


@asynccontextmanager
async def rig(*, seconds: float = 30, waiting: int = 100) -> AsyncIterator[Rig]:
    engine = Engine()
    built: list[Batched] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Scorer]:
        limits = {"max_batch_tokens": 2, "max_waiting": waiting, "max_seconds": seconds}
        async with Batched(engine, **limits) as batched:
            built.append(batched)
            guarded = Resilient(batched, seconds=seconds)
            yield Cached(guarded, secret=b"0" * 16, max_entries=10)

    async with gateway(FakeScorer(), LoadingScorer(opened)) as running:
        while (await running.client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0)
        yield Rig(running, engine, built[0])


@asynccontextmanager
async def faulty(**how: float) -> AsyncIterator[Rig]:
    """A rig in which a fault may happen: afterwards it serves as before, and nothing is left."""
    with capture_logs():
        async with rig(**how) as running:  # type: ignore[arg-type]
            await running.burst("first", 12)
            before = asyncio.all_tasks()
            yield running
            await running.heals()
            await running.burst("last", 12)
            # Connections are kept alive, and each has a task for as long as it is.
            async with asyncio.timeout(10):
                while len(asyncio.all_tasks()) > len(before):
                    await asyncio.sleep(0.01)


def assert_unjudged(replies: list[httpx.Response]) -> None:
    for reply in replies:
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "moderation_unavailable"
        assert int(reply.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("the device is on fire"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ],
    ids=["raises", "device-out-of-memory", "out-of-memory"],
)
async def test_a_scorer_that_fails(failure: Exception) -> None:
    async with faulty() as rig:
        rig.engine.failure = failure
        replies = await rig.burst("lost", 20)
        assert_unjudged(replies)
        assert not any(str(failure) and str(failure) in reply.text for reply in replies)
        assert (await rig.gateway.client.get("/healthz")).status_code == 200
        rig.engine.failure = None


async def test_a_text_that_no_memory_holds_when_it_is_tokenised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with faulty() as rig:
        with monkeypatch.context() as patch:

            def prepare(*_: object) -> None:
                raise MemoryError

            patch.setattr(rig.engine, "prepare", prepare)
            assert_unjudged(await rig.burst("large"))


async def test_a_scorer_that_is_stuck() -> None:
    async with faulty(seconds=0.3) as rig:
        with rig.engine.held():
            assert_unjudged(await rig.burst("stuck", 10))
            # The pass still runs, and who waits for it no longer holds a place.
            assert not rig.batched._calls


async def test_a_full_queue() -> None:
    async with faulty(waiting=5) as rig:
        with rig.engine.held():
            asked = [rig.ask(f"many-{n}") for n in range(12)]
            done, _ = await asyncio.wait(asked, timeout=10, return_when="FIRST_COMPLETED")
            while len(done) < 7:
                more, _ = await asyncio.wait(set(asked) - done, return_when="FIRST_COMPLETED")
                done |= more
        replies = await asyncio.gather(*asked)
        statuses = sorted(reply.status_code for reply in replies)
        assert statuses == [200] * 5 + [429] * 7
        assert all(r.headers["retry-after"] for r in replies if r.status_code == 429)


async def test_callers_who_leave_while_they_wait() -> None:
    async with faulty() as rig:
        with rig.engine.held():
            leaving = [rig.ask(f"leaving-{n}") for n in range(6)]
            async with asyncio.timeout(10):
                while len(rig.batched._calls) < len(leaving):
                    await asyncio.sleep(0.01)
            for task in leaving[:-1]:
                task.cancel()
            async with asyncio.timeout(10):
                while len(rig.batched._calls) > 1:
                    await asyncio.sleep(0.01)
        assert (await leaving[-1]).status_code == 200, "who stays is served"
        asked = {piece for batch in rig.engine.batches for piece in batch}
        assert len(asked & {f"leaving-{n}" for n in range(6)}) < 6, "who left is not computed"


LONG = 100_000
MANY = 10


async def assert_memory_returns(
    gateway: Gateway, fail: Callable[[int], Awaitable[None]], forget: Callable[[], None]
) -> None:
    """See that rounds of MANY failing requests with LONG texts leave less than one text behind.

    `forget` empties what the test itself remembers.
    """

    def held() -> int:
        forget()
        gateway.audit.recent = RecentDecisions()  # the last records are kept on purpose
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async def one(round_: int) -> int:
        kept = gateway.client
        # A connection keeps its last request for as long as it is kept alive.
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as gateway.client:
            await fail(round_)
        gateway.client = kept
        async with asyncio.timeout(60):
            while len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)
        return held()

    tasks = len(asyncio.all_tasks())
    tracemalloc.start()
    try:
        settled = min([await one(n) for n in range(2)])
        for n in range(2, 4):
            await one(n)
        async with asyncio.timeout(60):
            while held() > settled + LONG:
                await asyncio.sleep(0.05)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fault", ["raises", "stuck", "left"])
async def test_memory_returns_to_the_base_line_after_a_failing_scorer(fault: str) -> None:
    with capture_logs() as lines:
        async with rig(seconds=0.3 if fault == "stuck" else 30) as running:
            engine = running.engine
            engine.failure = RuntimeError("on fire") if fault == "raises" else None

            async def fail(round_: int) -> None:
                texts = [f"{round_}{n}".ljust(LONG, "a") for n in range(MANY)]
                with engine.held() if fault != "raises" else nullcontext():
                    asked = [running.ask(text) for text in texts]
                    if fault == "left":
                        async with asyncio.timeout(10):
                            while len(running.batched._calls) < MANY:
                                await asyncio.sleep(0.01)
                        for task in asked:
                            task.cancel()
                    replies = await asyncio.gather(*asked, return_exceptions=True)
                failed = [r for r in replies if not isinstance(r, httpx.Response)]
                assert len(failed) == (MANY if fault == "left" else 0)
                assert_unjudged([r for r in replies if isinstance(r, httpx.Response)])

            def forget() -> None:
                if engine.failure:
                    engine.failure.__traceback__ = None
                lines.clear()
                engine.batches.clear()

            await assert_memory_returns(running.gateway, fail, forget)


async def test_memory_returns_to_the_base_line_after_streams_that_break(
    front: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")  # would keep what the model raises
    cut = ConnectionError()
    # Reading long texts in other ways takes seconds while memory is traced.
    plain = {"normalise": False}
    answer = [delta("a" * LONG), delta("b" * LONG), cut]
    async with AsyncExitStack() as open_ones:
        before = await open_ones.enter_async_context(front(answer, profile=plain))
        # In place of the front's own log, which keeps all lines.
        lines = open_ones.enter_context(capture_logs())

        async def fail(round_: int) -> None:
            prompts = [f"{round_}{n}".ljust(LONG, "a") for n in range(MANY)]
            for events in await asyncio.gather(*map(before.stream, prompts)):
                assert "error" in events[-1]

        def forget() -> None:
            cut.__traceback__ = None
            lines.clear()
            before.script.requests.clear()
            before.gateway.scorer.calls.clear()

        await assert_memory_returns(before.gateway, fail, forget)


async def test_bad_policies_at_a_reload_under_load(tmp_path: Path) -> None:
    files = shutil.copytree(shipped_policies(), tmp_path / "policies")
    live = LiveBook.load(files)
    scorer = FakeScorer()
    stopping = asyncio.Event()
    with capture_logs():
        async with gateway(scorer, policies=live) as running:

            async def load() -> list[httpx.Response]:
                replies = []
                while not stopping.is_set():
                    replies.append(await running.client.post("/v1/screen", json={"prompt": "tea"}))
                return replies

            callers = [asyncio.create_task(load()) for _ in range(4)]
            old = live.current.version
            profiles = files / "profiles.yaml"
            good = profiles.read_text()
            for bad in ("profiles: [", good.replace("  default:", "  renamed:"), "\x00"):
                profiles.write_text(bad)
                await live.reload()
                assert live.last_error
                before = len(scorer.calls)
                while len(scorer.calls) < before + 4:
                    await asyncio.sleep(0)
            profiles.write_text(good.replace("mode: enforce", "mode: monitor", 1))
            await live.reload()
            new = live.current.version
            before = len(scorer.calls)
            while len(scorer.calls) < before + 8:
                await asyncio.sleep(0)
            stopping.set()
            replies = [reply for each in await asyncio.gather(*callers) for reply in each]
    assert {reply.status_code for reply in replies} == {200}
    assert {reply.json()["policy_book"] for reply in replies} == {old, new} != {old}


@contextmanager
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the clock on the wall jump a year ahead, and back, at each look."""
    real, year = time.time, 365 * 86_400
    jumps = iter(range(10**9))

    def now() -> float:
        return real() + year * (next(jumps) % 2)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", now)
        patch.setattr("shieldgate.dialects.openai_choices.time", now)
        yield


async def test_a_clock_that_jumps(front: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with front(streamed("a kind answer, " * 30)) as before:
        with jumping_clock(monkeypatch):
            for _ in range(3):
                assert (await before.stream())[-1] == "[DONE]"
                reply = await before.gateway.client.post("/v1/moderations", json={"input": "tea"})
                assert reply.status_code == 200


def test_the_clock_on_the_wall_decides_nothing() -> None:
    """Who looks at it writes down when something was, or deletes what is days old."""
    package = Path(shieldgate.__file__).parent
    looks = re.compile(r"\bimport time$|from time import .*\btime(_ns)?\b|\.now\(|\.utcnow\(", re.M)
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if looks.search(file.read_text())
    }
    assert found <= {
        "dialects/openai_choices.py",  # `created` of a completion
        "dialects/openai_responses_reply.py",  # the same of a response
        "gateway/guards/classify.py",  # the same of a classification
        "worker/schemas.py",  # the same
        "telemetry/otel.py",  # when a span began
        "telemetry/figures.py",  # when a sample was taken
        "telemetry/recent_decisions.py",  # when a decision was
        "kept_texts/keeper.py",  # when a text was kept, and which are too old
        "cli/review_run.py",  # the same
        "cli/review.py",  # the same
        "review/desk.py",  # when a label was given, and until when a text is one reviewer's
        "review/session.py",  # when a label was given
    }


@pytest.mark.usefixtures("restored_logging")
def test_a_full_disk_while_scores_or_the_report_are_written(
    hot_checkpoint: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = 40
    data.write_text(
        "".join(
            json.dumps({"id": n, "prompt": f"tea {n}", "harmful": n % 2}) + "\n"
            for n in range(rows)
        )
    )

    def evaluate(limit: int) -> Result:
        words = ["evaluate", str(data), "--model", str(hot_checkpoint), "--out", str(out)]
        words += ["--policy", "shieldgemma/hate", "--max-batch-tokens", "300"]
        with full_disk(limit):
            return CliRunner().invoke(app, words)

    def refused(limit: int) -> str:
        full = evaluate(limit)
        assert isinstance(full.exception, ShieldgateError), full.output
        return str(full.exception)

    why = refused(2000)
    assert "scores.jsonl: can't be written any further: File too large" in why
    assert "the same command goes on from there" in why
    _, kept = read_scores(out / "scores.jsonl")
    before = {row.id: row.margins for row in kept}
    assert 0 < len(before) < rows

    why = refused(8000)  # enough for all scores, not for the figures
    assert f"{out / 'report.json'}: can't be written: File too large" in why
    assert "The scores are saved: make room, and the same command writes it" in why
    assert {file.name for file in out.iterdir()} == {"scores.jsonl", "timing.json"}
    scores = (out / "scores.jsonl").read_bytes()

    mended = evaluate(resource.RLIM_INFINITY)
    assert mended.exit_code == 0, mended.output
    assert (out / "scores.jsonl").read_bytes() == scores
    assert {file.name for file in out.iterdir()} == {
        *("scores.jsonl", "timing.json", "report.json", "report.html")
    }
    _, scored = read_scores(out / "scores.jsonl")
    after = {row.id: row.margins for row in scored}
    assert len(after) == rows
    assert before.items() <= after.items(), "what was there is not computed again"
