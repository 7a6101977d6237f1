"""A run scores every row as the engine does alone, and goes on where it was stopped."""

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from fakes import FakeScorer, small_book
from serving import gateway

from shieldgate.errors import ConfigurationError, Overloaded, ScorerUnavailable
from shieldgate.evaluation.datasets import Row
from shieldgate.evaluation.examples import Example
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.row_scoring import (
    CHUNK,
    Concurrent,
    ReproduciblePacking,
    ScoringTask,
    sampled,
    score_rows,
)
from shieldgate.evaluation.score_file import Header, ScoredRow, ScoreFile, read_scores
from shieldgate.policy import Policy
from shieldgate.scoring import Engine, Identity, Prepared
from shieldgate.scoring.gateway_client import GatewayScorer, _Policies
from shieldgate.types import Exchange

POLICIES = list(small_book().policies.values())
TASK = ScoringTask(POLICIES, Labelling({"threat": ("test/threat",)}))
HEADER = Header(
    dataset="rows.jsonl",
    dataset_digest="d",
    scorer="fake@0",
    identity="0|float32|chat|none",
    template="chat",
    book="b",
    guidelines={"test/threat": "g"},
    policies=("test/threat", "test/spam"),
    protocol=None,
    options={"limit": None},
    version="1",
)


@dataclass(frozen=True)
class Text:
    content: str

    @property
    def tokens(self) -> int:
        return len(self.content)


class Lengths:
    """An engine that needs no model: a margin tells a text, its policy, and what it went with.

    Real passes give the same numbers only for the same company; so does this one.
    """

    identity = Identity("fake@0", "0", "float32", "chat", "none")

    def __init__(self, before_forward: Callable[[], None] = lambda: None) -> None:
        self._before_forward = before_forward

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        return 0

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        text = exchange.prompt
        return Prepared(tuple(Text(text[i : i + 50]) for i in range(0, len(text), 50)))

    def forward(self, work: Sequence[Text]) -> list[list[float]]:
        self._before_forward()
        company = sum(text.tokens for text in work)
        assert company <= 100
        return [[text.tokens + company / 1000, -text.tokens] for text in work]


def rows(count: int) -> Iterator[Row]:
    lengths = random.Random(0)
    for number in range(count):
        prompt = f"{number} " + "x" * lengths.randrange(80)
        example = Example(Exchange(prompt), labels={"threat": 1} if number % 3 else {})
        yield Row(number, f"r{number}", example, {"part": str(number % 2)})


def score(
    path: Path,
    engine: Engine | None = None,
    *,
    count: int = 2 * CHUNK + 7,
    header: Header = HEADER,
) -> None:
    with ScoreFile(path, header) as file:
        asyncio.run(
            score_rows(ReproduciblePacking(engine or Lengths(), 100), rows(count), TASK, file)
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an uninterrupted run writes."""
    path = tmp_path_factory.mktemp("whole") / "scores.jsonl"
    score(path)
    return path.read_bytes()


def test_every_row_is_written_once_with_what_is_known_of_it(tmp_path: Path, whole: bytes):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(whole)
    header, scored = read_scores(path)
    by_row = {row.row: row for row in scored}
    assert header == HEADER
    assert sorted(by_row) == list(range(2 * CHUNK + 7))
    assert whole.count(b"\n") == len(by_row) + 1
    seven = by_row[7]
    assert (seven.id, seven.direction, seven.groups) == ("r7", "prompt", {"part": "1"})
    assert seven.labels == {"test/threat": 1}
    assert seven.harmful == 1
    assert by_row[6].labels == {}
    assert by_row[6].harmful is None


def test_windows_of_a_text_are_joined_by_their_maximum(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    long = Row(0, "r0", Example(Exchange("x" * 380)), {})
    with ScoreFile(path, HEADER) as file:
        asyncio.run(score_rows(ReproduciblePacking(Lengths(), 100), [long], TASK, file))
    [row] = read_scores(path)[1]
    assert row.margins == {"test/threat": 50 + 0.1, "test/spam": -30}


def test_an_interrupted_run_continued_writes_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, whole: bytes
):
    path = tmp_path / "scores.jsonl"
    passes = iter(range(50))

    def interrupt() -> None:
        if next(passes, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(path, Lengths(interrupt))
    assert 0 < len(path.read_bytes()) < len(whole)
    score(path)
    assert path.read_bytes() == whole


def test_a_file_torn_at_any_byte_is_completed_to_the_same_bytes(tmp_path: Path, whole: bytes):
    path = tmp_path / "scores.jsonl"
    places = random.Random(1).sample(range(len(whole)), 40)
    start = whole.index(b"\n")
    for place in (0, 1, start, start + 1, start + 2, *places, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:place])
        score(path)
        assert path.read_bytes() == whole


def test_kill_9_loses_nothing_that_was_written(tmp_path: Path, whole: bytes):
    path = tmp_path / "scores.jsonl"
    script = (
        "import os, signal, sys; from pathlib import Path; import test_run\n"
        "passes = iter(range(60))\n"
        "def die():\n"
        "    if next(passes, None) is None: os.kill(os.getpid(), signal.SIGKILL)\n"
        "test_run.score(Path(sys.argv[1]), test_run.Lengths(die))\n"
    )
    here = Path(__file__).parent
    killed = subprocess.run([sys.executable, "-c", script, path], check=False, cwd=here)
    assert killed.returncode == -signal.SIGKILL
    assert whole.startswith(path.read_bytes())
    assert path.read_bytes().count(b"\n") > 60
    score(path)
    assert path.read_bytes() == whole


def test_a_finished_run_is_not_scored_again(tmp_path: Path, whole: bytes):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(whole)

    def never() -> None:
        raise AssertionError

    score(path, Lengths(never))
    assert path.read_bytes() == whole


def test_another_run_does_not_mix_and_is_told_what_changed(tmp_path: Path, whole: bytes):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(whole)
    other = Header(**{**json.loads(whole.split(b"\n")[0])["header"], "scorer": "new@1"})
    with pytest.raises(ConfigurationError, match=r"scorer: fake@0 -> new@1\n.*another --out"):
        score(path, header=other)
    assert path.read_bytes() == whole


def test_another_threshold_makes_no_other_run(tmp_path: Path, whole: bytes):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(whole)
    calibrated = {**json.loads(whole.split(b"\n")[0])["header"], "book": "calibrated"}
    score(path, header=Header(**calibrated))
    assert path.read_bytes() == whole


def test_two_runs_never_write_one_file(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    with (
        ScoreFile(path, HEADER),
        pytest.raises(ConfigurationError, match="another run is writing it"),
    ):
        score(path)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"text\n", b'{"header": {"dataset": "d"}}\n'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="no header of scores"):
        read_scores(path)


def test_a_damaged_row_is_refused_with_its_line(tmp_path: Path, whole: bytes):
    path = tmp_path / "scores.jsonl"
    header, first, rest = whole.split(b"\n", 2)
    path.write_bytes(b"\n".join((header, first[:-5], rest)))
    with pytest.raises(ConfigurationError, match=r"scores\.jsonl:2: no scored row"):
        list(read_scores(path)[1])


def test_a_sample_is_drawn_by_its_seed_without_replacement():
    drawn = [row.number for row in sampled(rows(100), 20, 100, seed=3)]
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn)
    assert drawn == [row.number for row in sampled(rows(100), 20, 100, seed=3)]
    assert drawn != [row.number for row in sampled(rows(100), 20, 100, seed=4)]


def test_packed_rows_have_the_margins_that_each_has_alone(tmp_path: Path, hot_checkpoint: Path):
    from shieldgate.scoring.local import load_engine

    engine = load_engine(str(hot_checkpoint))
    words = random.Random(2)
    some = [
        Row(n, f"r{n}", Example(Exchange("the quick fox " * words.randrange(1, 30))), {})
        for n in range(12)
    ]
    path = tmp_path / "scores.jsonl"
    with ScoreFile(path, HEADER) as file:
        asyncio.run(score_rows(ReproduciblePacking(engine, 700), some, TASK, file))
    for row in read_scores(path)[1]:
        prepared = engine.prepare(some[row.row].example.exchange, POLICIES)
        [alone] = [engine.forward([piece])[0] for piece in prepared.work]
        assert list(row.margins.values()) == pytest.approx(alone, abs=1e-4)


async def remotely(path: Path, url: str, some: Sequence[Row], waits: list[float]) -> None:
    async def wait(seconds: float) -> None:
        waits.append(seconds)

    async with GatewayScorer(url, sleep=wait) as client:
        with ScoreFile(path, HEADER) as file:
            await score_rows(Concurrent(client, 3), some, TASK, file)


SOME = [Row(n, f"r{n}", Example(Exchange(f"crude {n}" if n % 2 else "fine")), {}) for n in range(9)]


def read(path: Path) -> list[ScoredRow]:
    return list(read_scores(path)[1])


async def test_a_gateway_is_asked_for_what_is_missing_and_rows_keep_their_order(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    scorer = FakeScorer({("crude", "test/threat"): 3.0})
    async with gateway(scorer) as served:
        await remotely(path, served.url, SOME[:4], [])
        asked = len(scorer.calls)
        await remotely(path, served.url, SOME, [])
    assert len(scorer.calls) - asked == 1 + 5  # one call asks for the identity
    assert [row.row for row in read(path)] == list(range(9))
    assert [row.margins["test/threat"] for row in read(path)][:4] == [-6.0, 3.0, -6.0, 3.0]


async def test_a_gateway_that_is_busy_is_asked_again_as_late_as_it_says(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    scorer = FakeScorer(failure=Overloaded(7))
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        scorer.failure = None

    async with gateway(scorer) as served, GatewayScorer(served.url, sleep=wait) as client:
        with ScoreFile(path, HEADER) as file:
            await score_rows(Concurrent(client, 2), SOME, TASK, file)
    assert waits == [7.0]
    assert len(read(path)) == len(SOME)


async def test_a_gateway_that_keeps_failing_ends_the_run_and_what_was_scored_stays(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    waits: list[float] = []
    async with gateway(FakeScorer(fails_on="crude 5")) as served:
        with pytest.raises(ScorerUnavailable, match="failed 8 times, at last with status 503"):
            await remotely(path, served.url, SOME, waits)
    assert len(waits) == 7
    assert [row.row for row in read(path)] == [0, 1, 2, 3, 4]


async def test_a_gateway_that_fails_open_gives_no_scores(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    opens = {"on_failure": {"prompt": "open", "response": "open"}}
    async with gateway(FakeScorer(fails_on="fine"), profile=opens) as served:
        with pytest.raises(ScorerUnavailable, match="could not judge a text"):
            await remotely(path, served.url, SOME, [])


async def test_a_gateway_that_changes_its_scorer_ends_the_run(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    scorer = FakeScorer()
    async with gateway(scorer) as served, GatewayScorer(served.url) as client:
        scorer.identity = Identity("new@1", "1", "float32", "chat", "none")
        with ScoreFile(path, HEADER) as file, pytest.raises(ConfigurationError, match="new@1"):
            await score_rows(Concurrent(client, 2), SOME, TASK, file)


async def test_what_is_no_gateway_is_said(tmp_path: Path):
    async with gateway(FakeScorer()) as served:
        with pytest.raises(ConfigurationError, match="refused a request, status 404"):
            await remotely(tmp_path / "scores.jsonl", f"{served.url}/elsewhere", SOME, [])
        async with GatewayScorer(served.url) as client:
            book = await client.book()
    assert book.policies["test/threat"].guidelines == POLICIES[0].guidelines
    assert book.policies["test/threat"].thresholds == {"prompt": 0.5, "response": 0.4}


@pytest.mark.parametrize("thresholds", [None, 0.5, {"test/threat": 0.5}, {"a": {"prompt": "x"}}])
async def test_what_only_resembles_a_gateway_is_said(thresholds: object):
    profile = {"name": "default", "policies": [], "thresholds": thresholds}
    reply = {"version": "1", "policies": [], "profiles": [profile]}
    with pytest.raises(ConfigurationError, match="does not answer as a shieldgate gateway"):
        GatewayScorer("http://x")._read(_Policies, orjson.dumps(reply))


async def test_a_url_that_is_none_is_refused_at_once_and_silence_is_tried_again():
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    with pytest.raises(ConfigurationError, match="is no URL"):
        await GatewayScorer("http://localhost:http", sleep=wait).__aenter__()
    assert waits == []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ScorerUnavailable, match="failed 8 times, at last with no reply: Client"):
        await GatewayScorer(f"http://127.0.0.1:{port}", sleep=wait).__aenter__()
    assert len(waits) == 7
    assert all(0 <= wait <= 2**n for n, wait in enumerate(waits))


async def test_any_scorer_will_do_and_what_is_under_way_ends_when_a_row_fails(tmp_path: Path):
    scorer = FakeScorer({("crude", "test/threat"): 3.0})
    with ScoreFile(tmp_path / "whole.jsonl", HEADER) as file:
        await score_rows(Concurrent(scorer, 4), SOME, TASK, file)
    assert [row.row for row in read(tmp_path / "whole.jsonl")] == list(range(9))
    scorer.fails_on = "fine"
    scorer.released.clear()
    with ScoreFile(tmp_path / "part.jsonl", HEADER) as file, pytest.raises(ScorerUnavailable):
        await score_rows(Concurrent(scorer, 4), SOME, TASK, file)
    assert asyncio.all_tasks() == {asyncio.current_task()}
