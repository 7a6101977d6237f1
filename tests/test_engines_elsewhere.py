"""A scorer elsewhere, with doubles of the engines: what is asked, and what is refused.

The real ones are in test_real_engines.py.
"""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from engines_elsewhere import Double, answering, free_port, margin_of
from prometheus_client import CollectorRegistry
from serving import Gateway
from structlog.testing import capture_logs
from test_packed_engine import POLICIES, words
from typer.testing import CliRunner

import shieldgate
from shieldgate.cli import app
from shieldgate.errors import ConfigurationError, ModelError, Overloaded, ScorerUnavailable
from shieldgate.given_settings import load
from shieldgate.policy import shipped_policies
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring import OpenScorer, Resilient, turn
from shieldgate.scoring.factory import open_prompts, open_scorer
from shieldgate.scoring.prompts import PromptBuilder
from shieldgate.scoring.remote import replicas
from shieldgate.scoring.tokenizer_files import load_tokenizer
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import Telemetry
from shieldgate.types import Exchange

KINDS = ("vllm", "sglang", "llama.cpp", "tensorrt_llm")
EXCHANGES = [
    Exchange("Yes"),
    Exchange(words(200, seed=2)),
    Exchange(words(30, seed=4), words(90, seed=5)),
]


@pytest.fixture(scope="session")
def tokenizer(hot_checkpoint: Path) -> Path:
    return hot_checkpoint


@pytest.fixture(scope="session")
def prompts(tokenizer: Path) -> PromptBuilder:
    """What builds the prompts of the doubles' model, whose limit is 2048 tokens."""
    template, encoder = load_tokenizer(str(tokenizer)).encoder(TEMPLATES["chat"])
    return PromptBuilder(template, encoder, 2047)


@pytest.fixture
def double(request: pytest.FixtureRequest, prompts: PromptBuilder) -> Double:
    kind = getattr(request, "param", "vllm")
    return Double(kind, prompts.answers, ("Yes", "No"))


@asynccontextmanager
async def asking(
    url: str, tokenizer: Path | None, *, max_waiting: int = 10, observer: Any = None, **flags: Any
) -> AsyncIterator[OpenScorer]:
    given = {"model": url, "tokenizer": tokenizer and str(tokenizer), **flags}
    settings = load(ScoringSettings, {k: v for k, v in given.items() if v is not None})
    async with open_scorer(
        settings, max_batch_tokens=1, max_waiting=max_waiting, observer=observer
    ) as scorer:
        yield scorer


def expected(prompts: PromptBuilder, exchange: Exchange) -> list[float]:
    found = prompts.prepare(exchange, POLICIES[:3])
    margins = [[margin_of([*w.trunk, *b]) for b in w.branches] for w in found.work]
    return [score.margin for score in found.scores(margins)]


async def margins(scorer: OpenScorer, exchange: Exchange) -> list[float]:
    return [score.margin for score in await scorer.score(exchange, POLICIES[:3])]


@pytest.mark.parametrize("double", KINDS, indirect=True)
async def test_each_kind_is_recognised_and_asked_in_its_own_way(
    double: Double, tokenizer: Path, prompts: PromptBuilder
):
    async with answering(double) as url, asking(url, tokenizer) as scorer:
        for exchange in [*EXCHANGES, Exchange(words(4000, seed=8))]:
            builder = prompts
            if double.kind == "tensorrt_llm":  # which does not tell its limit
                builder = open_prompts(str(tokenizer), template="chat")
            assert await margins(scorer, exchange) == pytest.approx(
                expected(builder, exchange), abs=1e-6
            )
    name = "openai" if double.kind == "tensorrt_llm" else double.kind
    assert scorer.identity.dtype.split()[0] == name
    assert scorer.identity.name.startswith("guard@")
    limit = 8192 if double.kind == "tensorrt_llm" else 2047
    assert scorer.identity.windows.startswith(f"{limit}/")


@pytest.mark.parametrize("double", KINDS, indirect=True)
async def test_a_label_that_is_missing_is_an_error(double: Double, tokenizer: Path):
    async with answering(double) as url, asking(url, tokenizer) as scorer:
        double.forgets = True
        with (
            capture_logs() as logs,
            pytest.raises(ScorerUnavailable, match="without the log-probability of") as raised,
        ):
            await margins(scorer, EXCHANGES[0])
        assert raised.type is ScorerUnavailable, "the name that stands in records"
        assert "without the log-probability of" in logs[0]["why"], "what records don't tell"
        double.forgets = False
        double.margin = lambda prompt: float("nan")
        with pytest.raises(ScorerUnavailable):
            await margins(scorer, EXCHANGES[0])


@pytest.mark.parametrize("double", KINDS, indirect=True)
@pytest.mark.parametrize(
    ("reads", "why"),
    [
        (lambda prompt: [2, *prompt], "adds some, such as a second <bos>"),
        (lambda prompt: prompt[:-1], "cuts prompts"),
        (lambda prompt: prompt[:64], "cuts prompts"),
    ],
    ids=["doubled bos", "cut", "cut where it is long"],
)
async def test_a_prompt_that_is_read_otherwise_is_refused_at_the_start_and_later(
    double: Double, tokenizer: Path, reads: Any, why: str
):
    async with answering(double) as url:
        async with asking(url, tokenizer) as scorer:
            double.reads = reads
            with pytest.raises(ScorerUnavailable, match=why):
                await margins(scorer, EXCHANGES[1])
        with pytest.raises(ModelError, match=why):
            async with asking(url, tokenizer):
                pass


@pytest.mark.parametrize("double", ["vllm", "sglang", "llama.cpp"], indirect=True)
async def test_another_tokenizer_is_refused_at_the_start(double: Double, tokenizer: Path):
    double.words = ("Ja", "Nein")
    async with answering(double) as url:
        with pytest.raises(ModelError, match="another tokenizer than the one given"):
            async with asking(url, tokenizer):
                pass


@pytest.mark.parametrize("double", ["vllm", "llama.cpp"], indirect=True)
async def test_sampling_that_touches_the_scores_is_refused_at_the_start(
    double: Double, tokenizer: Path
):
    """As where a router in front replaces the temperature, and scores are taken after it."""
    plain = double._labels

    def sharpened(prompt: list[int]) -> list[float]:
        return [value * 3 for value in plain(prompt)]

    speak = "_completions" if double.kind == "vllm" else "_llama_cpp"
    true = getattr(double, speak)

    def spoken(body: dict[str, Any]) -> Any:
        sampled = "prompt_logprobs" not in body and body.get("post_sampling_probs", True)
        double._labels = sharpened if sampled else plain  # type: ignore[method-assign]
        return true(body)

    setattr(double, speak, spoken)
    async with answering(double) as url:
        with pytest.raises(ModelError, match="no sampling touches"):
            async with asking(url, tokenizer):
                pass


async def test_answers_that_change_from_call_to_call_are_refused(double: Double, tokenizer: Path):
    calls = iter(range(100))
    double.margin = lambda prompt: margin_of(prompt) + next(calls)
    async with answering(double) as url:
        with pytest.raises(ModelError, match="when asked again"):
            async with asking(url, tokenizer):
                pass


@pytest.mark.parametrize("double", KINDS, indirect=True)
async def test_policies_share_what_a_kind_of_engine_keeps(double: Double, tokenizer: Path):
    async with answering(double) as url, asking(url, tokenizer) as scorer:
        sizes = []
        for exchange in EXCHANGES[:2]:  # of a short trunk, and of one beyond 128 tokens
            double.requests.clear()
            await margins(scorer, exchange)
            sizes.append([1 if isinstance(p[0], int) else len(p) for p in double.prompts])
    assert sizes == {
        "vllm": [[3], [3]],
        "llama.cpp": [[1, 1, 1], [1, 1, 1]],
    }.get(double.kind, [[3], [1, 2]])


async def test_one_that_tells_words_only_is_served_with_a_warning(
    prompts: PromptBuilder, tokenizer: Path
):
    for kind, warned in (
        ("tensorrt_llm", "TensorRT-LLM names tokens by their words"),
        ("vllm", ""),
    ):
        double = Double(kind, prompts.answers, ("Yes", "No"))
        with capture_logs() as logs:
            async with answering(double) as url, asking(url, tokenizer):
                pass
        whys = [log["why"] for log in logs if log["event"] == "scores are not exact"]
        assert [why[: len(warned)] for why in whys] == ([warned] if warned else [])


async def test_the_longest_prompt_is_tried_where_a_limit_is_not_told(
    prompts: PromptBuilder, tokenizer: Path
):
    double = Double("tensorrt_llm", prompts.answers, ("Yes", "No"))
    double.reads = lambda prompt: prompt[:8000]
    async with answering(double) as url:
        with pytest.raises(ModelError, match="read 8000 tokens of a prompt of 8192"):
            async with asking(url, tokenizer):
                pass


async def test_a_key_is_sent_and_never_logged_and_a_wrong_one_is_said(
    double: Double, tokenizer: Path
):
    double.key = "sk-hidden"
    async with answering(double) as url:
        with capture_logs() as logs, pytest.raises(ConfigurationError, match="MODEL_KEY") as wrong:
            async with asking(url, tokenizer, model_key="sk-other"):
                pass
        assert "sk-" not in f"{logs} {wrong.value}"
        with capture_logs() as logs:
            async with asking(url, tokenizer, model_key="sk-hidden\n") as scorer:
                await margins(scorer, EXCHANGES[0])
        assert "sk-" not in f"{logs} {scorer.identity}"


@pytest.mark.parametrize(
    ("change", "flags", "why"),
    [
        ({}, {"tokenizer": None}, "give the tokenizer of the model it serves as --tokenizer"),
        ({}, {"served_model": "other"}, "serves guard: say which one with --served-model"),
        ({"status": 400}, {}, "It says: as told. It must take token ids"),
        ({"kind": "ollama"}, {"engine": "sglang"}, "no such path"),
    ],
)
async def test_what_cannot_be_asked_is_refused_in_one_sentence(
    double: Double, tokenizer: Path, change: dict[str, Any], flags: dict[str, Any], why: str
):
    for name, value in change.items():
        setattr(double, name, value)
    async with answering(double) as url:
        with pytest.raises(ConfigurationError, match=why):
            async with asking(url, **{"tokenizer": tokenizer, **flags}):
                pass


async def test_a_gateway_is_no_engine(served: Gateway, tokenizer: Path):
    with pytest.raises(ConfigurationError, match="is a shieldgate itself"):
        async with asking(served.url, tokenizer):
            pass


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("http://me:secret@vllm:8000/v1", "holds a password"),
        ("http://vllm:8000/v1,ftp://other", "http:// or https://"),
        ("http://vllm:8000/v1?key=secret", "a query"),
        ("http://", "a host"),
    ],
)
def test_a_url_that_is_none_is_refused_before_anything_is_logged(model: str, why: str):
    with pytest.raises(ConfigurationError, match=why) as refused:
        load(ScoringSettings, {"model": model})
    assert "me:secret" not in str(refused.value)


async def test_one_that_is_not_there_is_unavailable_for_now(tokenizer: Path):
    with pytest.raises(ScorerUnavailable, match="can't be reached"):
        async with asking(f"http://127.0.0.1:{free_port()}/v1", tokenizer):
            pass


async def test_a_request_is_sent_again_only_where_nothing_was_spent(
    double: Double, tokenizer: Path
):
    async with answering(double) as url, asking(url, tokenizer, model_seconds=0.3) as scorer:
        for status, requests, raised in ((429, 4, Overloaded), (500, 1, ScorerUnavailable)):
            double.status = status
            double.requests.clear()
            with pytest.raises(raised):
                await margins(scorer, EXCHANGES[0])
            assert len(double.requests) == requests
        double.status = 200
        double.requests.clear()
        double.waits = lambda: asyncio.sleep(30)
        with pytest.raises(ScorerUnavailable, match=r"did not answer within 0.3 seconds"):
            await margins(scorer, EXCHANGES[0])
        assert len(double.requests) == 1


async def test_who_hangs_up_is_hung_up_for(double: Double, tokenizer: Path):
    async with answering(double) as url, asking(url, tokenizer) as scorer:
        asked = asyncio.Event()

        async def wait() -> None:
            asked.set()
            await asyncio.sleep(30)

        double.waits = wait
        asking_task = asyncio.create_task(margins(scorer, EXCHANGES[0]))
        await asked.wait()
        asking_task.cancel()
        await asyncio.gather(asking_task, return_exceptions=True)
        async with asyncio.timeout(5):
            while not double.left:
                await asyncio.sleep(0.01)


async def test_concurrency_is_bounded_at_each_server_and_in_all(double: Double, tokenizer: Path):
    under_way = most = 0

    async def wait() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1

    async with (
        answering(double) as url,
        asking(url, tokenizer, model_texts=2, max_waiting=6) as scorer,
    ):
        double.waits = wait
        calls = [margins(scorer, Exchange(f"number {n}")) for n in range(8)]
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert most == 2
    assert [isinstance(one, Overloaded) for one in found] == [False] * 6 + [True] * 2


async def test_metrics_go_by_engine_and_traces_go_on(double: Double, tokenizer: Path):
    class Traces:
        def headers(self) -> dict[str, str]:
            return {"traceparent": "00-1-2-01"}

        def add_ended(self, name: str, seconds: float) -> None:
            pass

    registry = CollectorRegistry()
    telemetry = Telemetry(registry, Traces())  # type: ignore[arg-type]
    async with answering(double) as url, asking(url, tokenizer, observer=telemetry) as scorer:
        double.requests.clear()
        with turn.metered() as meter:
            await margins(scorer, EXCHANGES[0])
        assert meter.tokens == registry.get_sample_value("shieldgate_text_tokens_sum")
        assert [headers["traceparent"] for _, headers in double.requests] == ["00-1-2-01"]
        before = registry.get_sample_value(
            "shieldgate_remote_requests_total", {"engine": "vllm", "reply": "answered"}
        )
        assert before
        double.status = 500
        with pytest.raises(ScorerUnavailable):
            await margins(scorer, EXCHANGES[0])
        for name, labels, value in (
            ("requests_total", {"engine": "vllm", "reply": "failed"}, 1),
            ("requests_total", {"engine": "vllm", "reply": "answered"}, before),
            ("up", {"server": url.split("/")[2]}, 1),
        ):
            assert registry.get_sample_value(f"shieldgate_remote_{name}", labels) == value


async def test_failures_open_the_breaker(double: Double, tokenizer: Path):
    async with answering(double) as url, asking(url, tokenizer) as scorer:
        guarded = Resilient(scorer, seconds=5)
        double.status = 500
        for _ in range(5):
            with pytest.raises(ScorerUnavailable):
                await guarded.score(EXCHANGES[0], POLICIES[:1])
        with pytest.raises(ScorerUnavailable, match="left alone for a moment"):
            await guarded.score(EXCHANGES[0], POLICIES[:1])


async def test_texts_that_begin_alike_stay_at_one_server_and_one_that_fails_is_left_out(
    prompts: PromptBuilder, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(replicas, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(replicas, "_LONGEST_PAUSE", 0.02)
    doubles = [Double("vllm", prompts.answers, ("Yes", "No")) for _ in range(3)]

    async def where(text: str, answer: str | None = None) -> int:
        for double in doubles:
            double.requests.clear()
        await margins(scorer, Exchange(text, answer))
        [asked] = [n for n, double in enumerate(doubles) if double.requests]
        return asked

    async with AsyncExitStack() as stack:
        third = AsyncExitStack()
        ports = [free_port() for _ in doubles]
        for double, port in zip(doubles[:2], ports, strict=False):
            await stack.enter_async_context(answering(double, port))
        await third.enter_async_context(answering(doubles[2], ports[2]))
        urls = ",".join(f"http://127.0.0.1:{port}/v1" for port in ports)
        scorer = await stack.enter_async_context(asking(urls, tokenizer))

        texts = [f"text number {n}" for n in range(60)]
        homes = {text: await where(text) for text in texts}
        assert min(Counter(homes.values())[n] for n in range(3)) >= 8
        assert [await where(text) for text in texts] == list(homes.values())
        growing = "An answer that grows by and by, from here on it is"
        assert len({await where("hello", growing + " on" * n) for n in range(5)}) == 1

        await third.aclose()
        now = {text: await where(text) for text in texts}
        assert 2 not in now.values()
        assert all(now[text] == home for text, home in homes.items() if home != 2)

        # It is back with another model, so it stays out; and then with its own.
        doubles[2].model = "another"
        with capture_logs() as logs:
            async with answering(doubles[2], ports[2]):
                async with asyncio.timeout(5):
                    while not any(log["event"] == "server stays left out" for log in logs):
                        await asyncio.sleep(0.01)
                assert "serves another model than at first" in str(logs)
        doubles[2].model = "guard"
        with capture_logs() as logs:
            async with answering(doubles[2], ports[2]):
                async with asyncio.timeout(5):
                    while not any(log["event"] == "server is back" for log in logs):
                        await asyncio.sleep(0.01)
                assert {text: await where(text) for text in texts} == homes


async def test_servers_with_other_weights_are_refused(prompts: PromptBuilder, tokenizer: Path):
    doubles = [Double("vllm", prompts.answers, ("Yes", "No")) for _ in range(2)]
    doubles[1].margin = lambda prompt: -margin_of(prompt)
    async with answering(doubles[0]) as one, answering(doubles[1]) as other:
        with pytest.raises(ModelError, match="it has other weights"):
            async with asking(f"{one},{other}", tokenizer):
                pass


async def test_identity_is_what_is_known_or_what_the_operator_says(
    prompts: PromptBuilder, tokenizer: Path
):
    async def identity(model: str = "guard", **flags: Any) -> Any:
        double = Double("vllm", prompts.answers, ("Yes", "No"))
        double.model = model
        async with answering(double) as url, asking(url, tokenizer, **flags) as scorer:
            return scorer.identity

    plain = await identity()
    assert plain == await identity()
    other, paper = await identity("other"), await identity(template="paper")
    assert len({plain.key, other.key, paper.key}) == 3
    assert len({plain.name, other.name, paper.name}) == 3
    assert paper.name == f"{plain.name}+paper"
    may, june = await identity(scorer_name="may"), await identity(scorer_name="june")
    assert (may.name, june.name) == ("may", "june")
    assert len({plain.key, may.key, june.key}) == 3
    assert may.key == (await identity("other", scorer_name="may")).key


def test_a_command_in_a_report_holds_no_key(monkeypatch: pytest.MonkeyPatch):
    from shieldgate.cli.evaluate import _command

    monkeypatch.setenv("SHIELDGATE_MODEL_KEY", "sk-hidden")
    monkeypatch.setenv("SHIELDGATE_CASCADE_MODEL_KEY", "sk-hidden")
    monkeypatch.setenv("SHIELDGATE_TOKENIZER", "acme/guard")
    for given in (["--model-key", "sk-hidden"], ["--cascade-model-key=sk-hidden"]):
        monkeypatch.setattr("sys.argv", ["shieldgate", "evaluate", "a b", *given, "--limit", "3"])
        command = _command()
        assert "sk-hidden" not in command
        assert command.startswith("SHIELDGATE_TOKENIZER=acme/guard shieldgate evaluate 'a b' ")
        assert command.endswith(" --limit 3")
    assert json.dumps(command)


@pytest.mark.parametrize("double", KINDS, indirect=True)
@pytest.mark.parametrize("reply", [[], {}, None, 7, "no", {"choices": [7], "usage": 3}, [{}]])
async def test_a_reply_of_another_shape_is_no_score_and_no_defect(
    double: Double, tokenizer: Path, reply: Any
):
    async with answering(double) as url, asking(url, tokenizer) as scorer:
        for speaking in ("_completions", "_sglang", "_llama_cpp"):
            setattr(double, speaking, lambda body: reply)
        with pytest.raises(ScorerUnavailable):
            await margins(scorer, EXCHANGES[0])


async def test_the_library_asks_an_engine(double: Double, tokenizer: Path):
    double.margin = lambda prompt: 4.0
    double.key = "sk-hidden"
    async with (
        answering(double) as url,
        shieldgate.open_scorer(url, tokenizer=tokenizer, key="sk-hidden") as scorer,
    ):
        verdict = await scorer.judge_async("a text")
    assert verdict.violated
    with pytest.raises(ConfigurationError, match="for a gateway or an engine"):
        shieldgate.open_scorer("starter", key="sk-hidden")


@pytest.mark.usefixtures("restored_logging")
async def test_what_evaluate_scored_there_calibrate_writes_for_it(
    double: Double, tokenizer: Path, prompts: PromptBuilder, tmp_path: Path
):
    marked = prompts.encode(Exchange("seven wizards"), ["x"])[0]
    harmless = prompts.encode(Exchange("bread"), ["x"])[0]
    marks = set(marked) - set(harmless)
    double.margin = lambda prompt: 3.0 if marks & set(prompt[:60]) else -3.0
    rows = [
        {"prompt": f"{'seven wizards' if n % 2 else 'bread'} {n}", "labels": {"harassment": n % 2}}
        for n in range(60)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = shutil.copytree(shipped_policies(), tmp_path / "mine")
    run = tmp_path / "run"

    def use() -> None:
        given = ["--model", url, "--tokenizer", str(tokenizer), "--scorer-name", "guard-may"]
        policy = "shieldgemma/harassment"
        command = ["evaluate", str(data), *given, "--policy", policy, "--out", str(run)]
        assert CliRunner().invoke(app, command).exit_code == 0
        report = json.loads((run / "report.json").read_text())
        assert report["header"]["scorer"] == "guard-may"
        command = ["calibrate", str(run / "scores.jsonl"), "--target", "optimal-f1"]
        written = mine / "shieldgemma.yaml"
        result = CliRunner().invoke(app, [*command, "--policy", policy, "--write", str(written)])
        assert "for the scorer guard-may" in result.output
        assert "guard-may" in written.read_text()

    async with answering(double) as url:
        await asyncio.to_thread(use)
