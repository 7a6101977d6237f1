"""`import shieldgate`: what notebooks and scripts use, without a server."""

import ast
import asyncio
import gc
import inspect
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from anyio.from_thread import start_blocking_portal
from fakes import FakeScorer, FixedPolicies, small_book
from serving import gateway
from test_keys import entry, written
from typer.testing import CliRunner

import shieldgate
from shieldgate.cli import app
from shieldgate.moderation import judge
from shieldgate.policy import Calibration
from shieldgate.scoring import factory
from shieldgate.scoring.local import PackedEngine
from shieldgate.scoring.local.packing import Packed
from shieldgate.types import Action, Score

pytestmark = pytest.mark.usefixtures("restored_logging")

GUIDE = Path(__file__).parents[1] / "docs/library.md"
TEXTS = [f"the quick brown fox {n} " + "jumps over a lazy dog " * (n % 5) for n in range(24)]


@pytest.fixture(scope="module")
def scorer(hot_checkpoint: Path) -> Iterator[shieldgate.ScorerHandle]:
    with shieldgate.open_scorer(str(hot_checkpoint), device="cpu") as opened:
        yield opened


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pieces each forward pass held."""
    held: list[int] = []
    forward = PackedEngine.forward

    def counted(engine: PackedEngine, work: Sequence[Any]) -> list[list[float]]:
        held.append(len(work))
        return forward(engine, work)

    monkeypatch.setattr(PackedEngine, "forward", counted)
    return held


def margins(verdict: shieldgate.Verdict) -> list[float]:
    return [judgement.score.margin for judgement in verdict.judgements]


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_importing_it_and_naming_the_version_imports_nothing_else():
    found = run(
        "import shieldgate, sys; shieldgate.__version__; dir(shieldgate)\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'aiohttp'} & set(sys.modules)))"
    )
    assert found.stdout == "[]\n", found.stderr


def test_opening_a_scorer_imports_no_torch_before_it_is_used():
    found = run("import shieldgate, sys; shieldgate.open_scorer(); print('torch' in sys.modules)")
    assert found.stdout == "False\n", found.stderr


def test_every_name_is_there_and_no_other():
    for name in shieldgate.__all__:
        assert getattr(shieldgate, name) is not None
    assert set(shieldgate._ROOM_OF) | {"__version__"} == set(shieldgate.__all__)
    with pytest.raises(AttributeError, match="no attribute 'open_judge'"):
        shieldgate.open_judge  # noqa: B018


async def test_a_verdict_is_that_of_the_gateways_own_way(scorer: shieldgate.ScorerHandle):
    from shieldgate.scoring import Batched

    engine = scorer._background.open().scorer.engine
    async with Batched(engine, max_batch_tokens=1, max_waiting=1) as plain:
        book = scorer.book
        rules = book.rules(book.profile("strict"), ["shieldgemma/profanity"])
        exchange = shieldgate.Exchange("the quick", "brown fox")
        expected = await judge(plain, exchange, rules)
    found = scorer.judge(
        "the quick", "brown fox", profile="strict", policies=["shieldgemma/profanity"]
    )
    assert margins(found) == pytest.approx(margins(expected), abs=1e-4)
    assert (found.direction, found.action) == (expected.direction, expected.action)
    assert [j.policy for j in found.judgements] == [j.policy for j in expected.judgements]
    assert scorer.identity == plain.identity


async def test_calls_work_where_a_loop_is_running_awaited_or_not(scorer: shieldgate.ScorerHandle):
    here = scorer.judge(TEXTS[0])
    assert margins(await scorer.judge_async(TEXTS[0])) == margins(here)
    [again] = await scorer.judge_all_async([TEXTS[0]])
    assert margins(again) == margins(here)


def test_texts_of_one_call_share_passes_and_keep_their_order(
    scorer: shieldgate.ScorerHandle, passes: list[int]
):
    together = scorer.judge_all([*TEXTS, shieldgate.Exchange("the quick", "brown fox")])
    assert sum(passes) == len(TEXTS) + 1
    assert max(passes) > 1
    assert len(passes) < len(TEXTS)
    assert together[-1].direction == "response"
    for text, verdict in zip(TEXTS[:4], together, strict=False):
        assert margins(verdict) == pytest.approx(margins(scorer.judge(text)), abs=1e-4)


async def test_callers_who_wait_together_share_passes(
    scorer: shieldgate.ScorerHandle, passes: list[int]
):
    await asyncio.gather(*(scorer.judge_async(text) for text in TEXTS))
    assert sum(passes) == len(TEXTS)
    assert len(passes) < len(TEXTS)


async def test_who_stops_waiting_leaves_the_scorer_usable(scorer: shieldgate.ScorerHandle):
    waiting = asyncio.create_task(scorer.judge_all_async(TEXTS))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert scorer.judge(TEXTS[0]).judgements


def test_a_long_list_is_worked_off_in_order_by_a_few_tasks(monkeypatch: pytest.MonkeyPatch):
    class Counting(FakeScorer):
        most = 0

        async def score(self, exchange: shieldgate.Exchange, policies: Any) -> list[Score]:
            self.most = max(self.most, len(asyncio.all_tasks()))
            for _ in range(int(exchange.prompt) % 3):  # so that they end in another order
                await asyncio.sleep(0)
            return [Score(float(exchange.prompt)) for _ in policies]

    fake = Counting()
    monkeypatch.setitem(factory.REMOTE, "fake+", lambda *_, **__: fake.opened())
    with shieldgate.open_scorer("fake+", policies=small_book()) as opened:
        verdicts = opened.judge_all(str(n) for n in range(1000))
        assert opened.judge_all([]) == []
    assert [margins(verdict) for verdict in verdicts] == [[float(n)] for n in range(1000)]
    assert fake.most < 100


SEVERAL = "several are meant; put the str into a list"


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (lambda s: s.judge_all("a str"), SEVERAL),
        (lambda s: s.judge_all(b"bytes"), "several are meant"),
        (lambda s: s.judge_all(shieldgate.Exchange("a")), "several are meant"),
        (lambda s: asyncio.run(s.judge_all_async("a str")), SEVERAL),
        (lambda s: s.judge_all(["a", float("nan")]), r"texts\[1\] is a float"),
        (lambda s: s.judge("a", policies="shieldgemma/hate"), SEVERAL),
        (lambda s: s.judge("a", policies=[7]), r"policies\[0\] is a int"),
        (lambda s: s.judge(None), "must be a str, not NoneType"),
        (lambda s: s.judge(b"a"), "must be a str, not bytes"),
        (lambda s: s.judge("a", 0), "must be a str, not int"),
        (lambda s: asyncio.run(s.judge_async(["a"])), "must be a str, not list"),
        (lambda s: s.evaluate([{"prompt": "a"}], policies="shieldgemma/hate"), SEVERAL),
        (lambda s: s.evaluate({"prompt": ["a", "b"]}), r"data\[0\] is a str, no Mapping"),
        (lambda s: shieldgate.EvaluationOptions(columns="prompt=text"), "'columns' takes a list"),
        (lambda s: shieldgate.EvaluationOptions(policies="a/b"), "'policies' takes a list"),
        (lambda s: shieldgate.EvaluationOptions(labels={"hate": "a/b"}), "'hate' takes a list"),
    ],
)
def test_a_likely_misuse_is_refused_before_anything_is_loaded(
    misuse: Callable[[shieldgate.ScorerHandle], object], said: str
):
    unopened = shieldgate.open_scorer("nowhere/at/all")
    with pytest.raises(TypeError, match=said):
        misuse(unopened)
    assert unopened._background._state is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("a/b", "x", None, 5), "threshold of 'a/b' must be a number above 0 and at most 1"),
        (("a/b", "x", None, 0), "threshold of 'a/b' must be a number above 0"),
        (("a/b", "x", None, "0.5"), "threshold of 'a/b' must be a number"),
        (("a/b", "x", None, float("nan")), "threshold of 'a/b' must be a number"),
        (("a/b", "", None, 0.5), "guideline of 'a/b' must be text, and not empty"),
        (("a/b", None, None, 0.5), "guideline of 'a/b' must be text"),
        (("a/b", "x", " ", 0.5), "guideline of 'a/b' must be text"),
        (("b", "x", None, 0.5), "id 'b' is not one such as 'acme/spam'"),
        (("a/b/c", "x", None, 0.5), "id 'a/b/c' is not one"),
        (("A/b", "x", None, 0.5), "id 'A/b' is not one"),
        ((None, "x", None, 0.5), "id None is not one"),
        (("harassment/threatening", "x", None, 0.5), "is an OpenAI category"),
    ],
)
def test_a_policy_that_no_file_could_hold_is_refused(given: tuple[Any, ...], said: str):
    id, guideline, response, threshold = given
    with pytest.raises(shieldgate.ConfigurationError, match=said) as refused:
        shieldgate.define_policy(id, guideline, response=response, threshold=threshold)
    assert "\n" not in str(refused.value)


def test_a_scorers_name_may_be_a_path(hot_checkpoint: Path):
    with shieldgate.open_scorer(hot_checkpoint) as opened:
        assert opened.identity.name.startswith(hot_checkpoint.name)


def test_a_program_and_its_forked_child_end_quietly_and_the_child_is_told_to_open_its_own(
    hot_checkpoint: Path,
):
    found = run(
        "import os, shieldgate, warnings\n"
        "warnings.simplefilter('ignore')\n"  # later Pythons warn of a fork beside threads
        f"scorer = shieldgate.open_scorer({str(hot_checkpoint)!r})\n"
        "scorer.judge('fox')\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        "    print(scorer.judge('fox').direction)\n"
        "else:\n"
        "    for use in (lambda: scorer.judge('fox'), lambda: scorer.book, scorer.__enter__):\n"
        "        try:\n"
        "            use()\n"
        "        except shieldgate.ConfigurationError as told:\n"
        "            print(str(told)[:30], flush=True)\n"
        "    scorer.close()\n"
    )
    assert found.stdout == "This scorer was opened before \n" * 3 + "prompt\n", found.stderr
    assert (found.returncode, found.stderr) == (0, "")


def test_policies_of_ones_own_are_judged_beside_the_profiles_or_alone(
    scorer: shieldgate.ScorerHandle,
):
    foxes = shieldgate.define_policy(
        "acme/foxes", '"No Foxes": none in prompts.', response='"No Foxes": none.', threshold=1e-9
    )
    assert foxes.guidelines["response"] == '"No Foxes": none.'
    beside = scorer.judge("a fox", policies=[foxes, "shieldgemma/profanity"])
    alone = scorer.judge("a fox", policies=[foxes], profile=None)
    assert beside.judgements[-2].policy == "acme/foxes"
    assert len(beside.judgements) > 2
    assert [j.policy for j in alone.judgements] == ["acme/foxes"]
    assert alone.action is Action.BLOCKED
    assert "acme/foxes" not in scorer.book.policies


def test_a_book_is_given_as_it_is_or_by_its_path(hot_checkpoint: Path, tmp_path: Path):
    file = tmp_path / "my.yaml"
    file.write_text(
        "family: acme\npolicies:\n  tea:\n    title: Tea\n    guideline:\n"
        "      prompt: '\"No Tea\": none.'\n      response: '\"No Tea\": none.'\n"
        "profiles:\n  default:\n    policies: [acme/tea]\n"
    )
    for policies in (file, str(file), shieldgate.load_book(file)):
        with shieldgate.open_scorer(str(hot_checkpoint), policies=policies) as opened:
            assert [j.policy for j in opened.judge("tea").judgements] == ["acme/tea"]


def test_names_that_are_not_there_are_refused_and_no_text_is_quoted(
    scorer: shieldgate.ScorerHandle,
):
    with pytest.raises(shieldgate.UnknownName, match="no policy named 'acme/x'"):
        scorer.judge("zebra", policies=["acme/x"])
    with pytest.raises(shieldgate.UnknownName, match="no profile named 'lax'"):
        scorer.judge("zebra", profile="lax")
    with pytest.raises(shieldgate.UnknownName, match="nothing to judge"):
        scorer.judge("zebra", profile=None)


def test_what_can_not_be_opened_is_said_and_may_be_tried_again(tmp_path: Path):
    with pytest.raises(shieldgate.ConfigurationError, match="device"):
        shieldgate.open_scorer(device="tpu")
    with pytest.raises(shieldgate.ConfigurationError, match="can't be read"):
        shieldgate.open_scorer(policies=tmp_path / "nowhere.yaml")
    nowhere = shieldgate.open_scorer("nowhere/at/all")
    for _ in range(2):
        with pytest.raises(shieldgate.ConfigurationError, match="there is no such folder"):
            nowhere.judge("zebra")
    nowhere.close()


def test_a_closed_scorer_leaves_no_thread_and_is_opened_again_by_its_next_use(
    hot_checkpoint: Path,
):
    before = set(threading.enumerate())
    opened = shieldgate.open_scorer(str(hot_checkpoint))
    opened.judge("fox")
    opened.close()
    assert set(threading.enumerate()) <= before
    assert opened.judge("fox").judgements
    opened.close()
    opened.close()


def test_a_forgotten_scorer_is_freed(hot_checkpoint: Path):
    before = set(threading.enumerate())
    forgotten = shieldgate.open_scorer(str(hot_checkpoint))
    forgotten.judge("fox")
    del forgotten
    gc.collect()
    assert set(threading.enumerate()) <= before


async def test_async_with_frees_what_it_loaded(hot_checkpoint: Path):
    async with shieldgate.open_scorer(str(hot_checkpoint)) as opened:
        assert (await opened.judge_async("fox")).judgements
    assert opened._background._state is None


def test_passes_of_two_threads_never_overlap(
    scorer: shieldgate.ScorerHandle, monkeypatch: pytest.MonkeyPatch
):
    engine = scorer._background.open().scorer.engine
    inside = threading.Semaphore(1)
    overlaps: list[bool] = []
    both = threading.Barrier(2)

    def margins(engine: PackedEngine, layout: Packed) -> torch.Tensor:
        alone = inside.acquire(blocking=False)
        overlaps.append(not alone)
        threading.Event().wait(0.05)
        inside.release()
        return torch.empty(0)

    def ask() -> None:
        both.wait()
        engine.forward([])

    monkeypatch.setattr(PackedEngine, "margins", margins)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False, False]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for n, text in enumerate(TEXTS):
            file.write(json.dumps({"prompt": text, "labels": {"hate": n % 2}}) + "\n")
    return path


def test_an_evaluation_is_that_of_the_command(
    scorer: shieldgate.ScorerHandle, data: Path, tmp_path: Path, hot_checkpoint: Path
):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    report = scorer.evaluate(data, policies=["shieldgemma/hate"], out=ours)
    policy = ("--policy", "shieldgemma/hate", "--out", str(theirs))
    command = ["evaluate", str(data), "--model", str(hot_checkpoint), "--device", "cpu", *policy]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert (ours / "scores.jsonl").read_bytes() == (theirs / "scores.jsonl").read_bytes()
    report.write(ours)
    found = json.loads((ours / "report.json").read_text())
    assert found == json.loads(json.dumps(report.to_dict()))
    assert found["slices"] == json.loads((theirs / "report.json").read_text())["slices"]
    assert "quick" not in (ours / "report.html").read_text()


def test_rows_in_memory_and_policies_of_ones_own_are_evaluated_leaving_no_file(
    scorer: shieldgate.ScorerHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    foxes = shieldgate.define_policy("acme/foxes", '"No Foxes": none.')
    rows = [{"text": text, "fox": n % 2} for n, text in enumerate(TEXTS)]
    options = shieldgate.EvaluationOptions(columns=["prompt=text", "label:foxes=fox"], limit=10)
    report = scorer.evaluate(rows, policies=[foxes], options=options)
    [figures] = [part for part in report.whole if part.policy == "acme/foxes"]
    assert (figures.rows, figures.harmful) == (10, 5)
    assert not any(tmp_path.rglob("*"))


STEPS = shieldgate.EvaluationOptions(policies=["shieldgemma/hate"], max_batch_tokens=1)


def test_ctrl_c_stops_the_work_and_the_same_call_goes_on(
    scorer: shieldgate.ScorerHandle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward = PackedEngine.forward
    passes: list[int] = []

    def interrupted(engine: PackedEngine, work: Any) -> Any:
        passes.append(len(work))
        if len(passes) == 3:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            threading.Event().wait(1)
        return forward(engine, work)

    scorer.evaluate(data, options=STEPS, out=tmp_path / "whole")
    monkeypatch.setattr(PackedEngine, "forward", interrupted)
    # What a shell starts in the background ignores Ctrl-C, and so would this.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            scorer.evaluate(data, options=STEPS, out=tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(passes) == 3
    scorer.evaluate(data, options=STEPS, out=tmp_path / "out")
    scores = [(tmp_path / run / "scores.jsonl").read_bytes() for run in ("whole", "out")]
    assert scores[0] == scores[1]


async def test_who_cancels_an_evaluation_may_go_on_at_once(
    scorer: shieldgate.ScorerHandle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward = PackedEngine.forward
    entered, left = threading.Event(), threading.Event()

    def slow(engine: PackedEngine, work: Any) -> Any:
        if not entered.is_set():
            entered.set()
            threading.Event().wait(0.2)
        found = forward(engine, work)
        left.set()
        return found

    monkeypatch.setattr(PackedEngine, "forward", slow)
    first = asyncio.create_task(scorer.evaluate_async(data, options=STEPS, out=tmp_path))
    await asyncio.to_thread(entered.wait)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert left.is_set()
    report = await scorer.evaluate_async(data, options=STEPS, out=tmp_path)
    assert report.whole[0].rows == len(TEXTS)


def test_data_that_can_not_be_evaluated_is_said(scorer: shieldgate.ScorerHandle):
    with pytest.raises(shieldgate.ConfigurationError, match="rows: it holds no rows"):
        scorer.evaluate([])
    with pytest.raises(shieldgate.ConfigurationError, match="no policy named 'acme/x'"):
        scorer.evaluate([{"prompt": "fox", "labels": {"hate": 1}}], policies=["acme/x"])


async def test_a_gateway_is_a_scorer_like_the_others():
    fake = FakeScorer({("fox", "test/threat"): 3.0})
    async with gateway(fake) as served, shieldgate.open_scorer(served.url) as opened:
        assert opened.identity == fake.identity
        verdicts = await opened.judge_all_async(["a fox", "a dog"])
        assert [verdict.violated for verdict in verdicts] == [("test/threat",), ()]
        rows = [{"prompt": f"{'fox' if n % 2 else 'dog'} {n}", "harmful": n % 2} for n in range(9)]
        report = await opened.evaluate_async(rows, policies=["test/threat", "test/spam"])
        assert report.whole[0].figures["average_precision"].value == 1.0
        own = replace(small_book().policies["test/threat"], guidelines={})
        with pytest.raises(shieldgate.ConfigurationError, match="by its own policies"):
            await opened.judge_async("a fox", policies=[own])
        fake.fails_on = "a cat"
        opened._background.open().scorer._sleep = _at_once
        with pytest.raises(shieldgate.ScoringError, match="failed 8 times"):
            await opened.judge_async("a cat")
    with pytest.raises(shieldgate.ConfigurationError, match="give no others"):
        shieldgate.open_scorer(served.url, policies="my.yaml")


def gateways_book() -> shieldgate.PolicyBook:
    """One whose verdicts need its profiles' thresholds and a calibration."""
    threat = {("test/threat", "prompt"): 0.99}
    book = small_book(thresholds=threat, max_thresholds=threat)
    fitted = Calibration(threshold=0.3, temperature=5.0, bias=-1.0)
    spam = replace(
        book.policies["test/spam"],
        calibrations={(FakeScorer.identity.name, "prompt"): fitted},
    )
    return replace(book, policies={**book.policies, spam.id: spam})


@pytest.mark.parametrize("response", [None, "a fox"])
@pytest.mark.parametrize("profile", ["default", "strict", "monitor", "open"])
async def test_a_verdict_asked_of_a_gateway_is_the_gateways(profile: str, response: str | None):
    fake = FakeScorer({("fox", "test/threat"): 3.0, ("fox", "test/spam"): 1.0})
    policies = FixedPolicies(gateways_book())
    async with (
        gateway(fake, policies=policies) as served,
        shieldgate.open_scorer(served.url) as opened,
    ):
        asked = {"prompt": "a fox", "response": response, "policies": ["test/spam"]}
        reply = (await served.client.post("/v1/screen", json=asked | {"profile": profile})).json()
        [result] = reply["results"]
        found = await opened.judge_async("a fox", response, profile=profile, policies=["test/spam"])
        assert (found.action, found.direction) == (result["action"], result["direction"])
        assert list(found.violated) == result["violated"]
        assert {
            j.policy: (j.probability, j.threshold, j.violated, j.calibrated)
            for j in found.judgements
        } == {
            policy: (r["probability"], r["threshold"], r["violated"], r["calibrated"])
            for policy, r in result["policies"].items()
        }


async def test_a_gateways_book_has_its_profiles_and_none_means_the_policies_alone():
    fake = FakeScorer({("fox", "test/spam"): 1.0})
    book = gateways_book()
    async with (
        gateway(fake, policies=FixedPolicies(book)) as served,
        shieldgate.open_scorer(served.url) as opened,
    ):
        assert opened.book.profiles == book.profiles
        assert opened.book.version == book.version
        alone = await opened.judge_async("a fox", profile=None, policies=["test/spam"])
        [judgement] = alone.judgements
        assert (judgement.policy, judgement.threshold) == ("test/spam", 0.3)
        assert alone.action is Action.BLOCKED
        with pytest.raises(shieldgate.UnknownName, match="no profile named 'lax'"):
            await opened.judge_async("a fox", profile="lax")
        fake.calls.clear()
        await opened.judge_async("a f\u200box")
        assert len(fake.calls) == 2  # as it came and written plainly, by the gateway alone


async def test_a_gateway_that_passes_texts_unjudged_gives_no_verdict():
    fake = FakeScorer(fails_on="a cat")
    async with gateway(fake) as served, shieldgate.open_scorer(served.url) as opened:
        for policies in ([], ["test/spam"]):
            with pytest.raises(shieldgate.ScoringError, match="could not judge a text"):
                await opened.judge_async("a cat", profile="open", policies=policies)


async def test_a_gateway_that_wants_a_key_is_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    secret = "sg-canary-9a41"
    async with gateway(FakeScorer(), keys=written(tmp_path, entry("me", secret))) as served:
        async with shieldgate.open_scorer(served.url, key=secret) as opened:
            assert (await opened.judge_async("a fox")).action is Action.ALLOWED
        for key in (None, "sg-wrong", "sg-wr\nong"):
            with pytest.raises(shieldgate.ConfigurationError, match=r"401|can't be sent") as told:
                await shieldgate.open_scorer(served.url, key=key).judge_async("a fox")
            assert "sg-wr" not in str(told.value)
        monkeypatch.setenv("SHIELDGATE_GATEWAY_KEY", f"{secret}\n")
        async with shieldgate.open_scorer(served.url) as opened:
            assert (await opened.judge_async("a fox")).action is Action.ALLOWED
    with pytest.raises(shieldgate.ConfigurationError, match="A key is for a gateway"):
        shieldgate.open_scorer("starter", key=secret)


async def _at_once(_: float) -> None:
    return None


def test_nothing_is_printed_and_errors_show_no_text(
    hot_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def broken(engine: PackedEngine, exchange: Any, policies: Any) -> None:
        raise ValueError(exchange.prompt)

    structlog.reset_defaults()
    with shieldgate.open_scorer(str(hot_checkpoint)) as opened:
        opened.judge("fox")
        monkeypatch.setattr(PackedEngine, "prepare", broken)
        with pytest.raises(shieldgate.ScoringError) as failure:
            opened.judge("zebra")
    written = capfd.readouterr()
    assert written.out == ""
    assert "zebra" not in written.err + str(failure.value)


async def test_every_snippet_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    lines = ["text,is_hate", *(f"{text},{n % 2}" for n, text in enumerate(TEXTS))]
    (tmp_path / "labelled.csv").write_text("\n".join(lines))
    snippets = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(snippets) >= 7
    names: dict[str, Any] = {}
    with (
        # In a loop of its own: where a script waits for an answer, its own loop stands still.
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(gateway(FakeScorer())) as served,
    ):
        for snippet in snippets:
            code = compile(
                snippet.replace("http://localhost:8000", served.url),
                str(GUIDE),
                "exec",
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            )
            awaited = eval(code, names)
            if inspect.isawaitable(awaited):
                await awaited
        names["scorer"].close()
        names["remote"].close()
    said = capsys.readouterr().out
    assert "blocked ('shieldgemma/harassment',)" in said
    assert "There is no policy named 'acme/spelling'. Known:" in said
    assert names["answer"].direction == "response"
    assert (Path("runs/mine") / "report.html").is_file()
