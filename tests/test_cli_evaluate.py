"""`shieldgate evaluate`, as a person uses it: a file in, margins and a report out."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeScorer, FixedPolicies, small_book
from serving import gateway
from test_keys import entry, written
from typer.testing import CliRunner, Result

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError, Overloaded
from shieldgate.evaluation.score_file import Header, ScoredRow, read_scores
from shieldgate.policy import Calibration, shipped_policies
from shieldgate.scoring.gateway_client import GatewayScorer

pytestmark = pytest.mark.usefixtures("restored_logging")


def evaluate(*arguments: str | Path) -> Result:
    words = ["evaluate", *map(str, arguments)]
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


def done(*arguments: str | Path) -> Result:
    result = evaluate(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refusal(*arguments: str | Path) -> str:
    result = evaluate(*arguments)
    assert isinstance(result.exception, ConfigurationError), result.output
    return str(result.exception)


def scores(folder: Path) -> tuple[Header, list[ScoredRow]]:
    header, rows = read_scores(folder / "scores.jsonl")
    return header, sorted(rows, key=lambda row: row.row)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten rows in our format, with a text that is easily found again."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for n in range(10):
            text = f"zebra number {n} " + "the quick brown fox " * (n % 4)
            row: dict[str, Any] = {"id": n, "prompt": text, "harmful": n % 2}
            row["labels"] = {"hate": n % 2, "weather": 0}
            file.write(json.dumps(row | {"part": "ab"[n % 2 - n % 3]}) + "\n")
    return path


@pytest.fixture
def one(hot_checkpoint: Path) -> tuple[str | Path, ...]:
    """What makes a run small: the hot checkpoint and one policy."""
    return "--model", hot_checkpoint, "--policy", "shieldgemma/hate"


def test_a_run_leaves_scores_and_a_report_and_says_what_the_labels_meant(
    data: Path, tmp_path: Path, hot_checkpoint: Path, one: tuple[str | Path, ...]
):
    out = tmp_path / "out"
    result = done(data, *one, "--group", "part", "--out", out)
    header, rows = scores(out)
    assert header.dataset == "rows.jsonl"
    assert header.scorer.startswith(f"{hot_checkpoint.name}@")
    assert header.options["labels"] == {"hate": ["shieldgemma/hate"]}
    assert [(row.row, row.id, row.harmful) for row in rows] == [
        (n, str(n), n % 2) for n in range(10)
    ]
    assert rows[3].labels == {"shieldgemma/hate": 1}
    assert set(rows[3].groups) == {"part"}
    assert "labels that match no policy, and count in no figure of one: weather" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["header"]["dataset_digest"] == header.dataset_digest
    assert "wherever it is known, the label is 0: 'weather'" in result.stderr


def test_the_same_command_again_gives_the_same_bytes(
    data: Path, tmp_path: Path, one: tuple[str | Path, ...]
):
    a, b = tmp_path / "a", tmp_path / "b"
    first = done(data, *one, "--out", a)
    again = done(data, *one, "--out", a)
    done(data, *one, "--out", b)
    assert (a / "scores.jsonl").read_bytes() == (b / "scores.jsonl").read_bytes()
    figures = [json.loads((out / "report.json").read_text())["slices"] for out in (a, b)]
    assert figures[0] == figures[1]
    assert first.stdout == again.stdout


def test_texts_stand_in_the_page_only_if_they_may(
    data: Path, tmp_path: Path, one: tuple[str | Path, ...]
):
    out = tmp_path / "out"
    done(data, *one, "--out", out)
    assert "zebra" in (out / "report.html").read_text()
    done(data, *one, "--out", out, "--no-examples")
    assert "zebra" not in (out / "report.html").read_text()
    assert "zebra" not in (out / "report.json").read_text()


def carried(folder: Path) -> dict[str, Any]:
    """What the page says of the words of mistakes, by row and policy."""
    page = (folder / "report.html").read_text()
    found = page.partition('id="report">')[2].partition("</script>")[0]
    words: dict[str, Any] = json.loads(found)["words"]
    return words


def test_words_of_mistakes_are_weighed_only_if_that_is_asked(
    data: Path, tmp_path: Path, one: tuple[str | Path, ...]
):
    out = tmp_path / "out"
    done(data, *one, "--out", out)
    assert carried(out) == {}
    done(data, *one, "--out", out, "--explain")
    found = carried(out)
    _, rows = scores(out)
    margins = {f"{row.row} shieldgemma/hate": row.margins["shieldgemma/hate"] for row in rows}
    assert found
    for row, explained in found.items():
        assert explained["margin"] == pytest.approx(margins[row], abs=1e-4)
        assert explained["words"]
    assert "zebra" not in (out / "report.json").read_text()
    for other in ("--no-examples", f"--scores={out}"):
        assert "--explain asks the scorer" in refusal(data, *one, "--explain", other)


def test_limit_and_sample_choose_rows(data: Path, tmp_path: Path, one: tuple[str | Path, ...]):
    done(data, *one, "--limit", "3", "--out", tmp_path / "limited")
    assert [row.row for row in scores(tmp_path / "limited")[1]] == [0, 1, 2]
    done(data, *one, "--sample", "4", "--seed", "1", "--out", tmp_path / "sampled")
    drawn = [row.row for row in scores(tmp_path / "sampled")[1]]
    assert len(drawn) == 4
    assert drawn != [0, 1, 2, 3]


def test_a_protocol_judges_as_the_paper_did_and_shows_its_figures(
    tmp_path: Path, hot_checkpoint: Path
):
    native = tmp_path / "samples.jsonl"
    labels = dict.fromkeys(("S", "H", "V", "HR", "SH", "S3", "H2", "V2"), 0)
    with native.open("w") as file:
        for n in range(4):
            file.write(json.dumps({"prompt": f"text {n}", **labels, "H": n % 2}) + "\n")
    out = tmp_path / "out"
    result = done(native, "--protocol", "openai-mod", "--model", hot_checkpoint, "--out", out)
    header, rows = scores(out)
    assert len(header.policies) == 8
    assert header.template == "paper"
    assert {row.direction for row in rows} == {"response"}
    assert rows[1].labels["openai/hate"] == 1
    said = " ".join(result.stdout.replace("•", "").split())
    assert "this file has 4 rows, 2 of them harmful" in said
    assert f"{header.scorer} is not one of the models of the paper" in said
    assert "2B optimal F1 0.812, AU-PRC 0.887" in said


def test_a_template_that_was_chosen_stands_above_the_protocols(
    data: Path, tmp_path: Path, one: tuple[str | Path, ...]
):
    run = (data, *one, "--protocol", "toxicchat", "--adapter", "ours", "--limit", "2")
    done(*run, "--template", "notebook", "--out", tmp_path / "out")
    header, _ = scores(tmp_path / "out")
    assert (header.template, header.protocol) == ("notebook", "toxicchat")


def test_two_wordings_are_compared_on_the_same_rows(
    data: Path, tmp_path: Path, one: tuple[str | Path, ...]
):
    mine = tmp_path / "mine"
    mine.mkdir()
    for file in shipped_policies().glob("*.yaml"):
        words = file.read_text().replace('"No Hate Speech":', '"No Hatred":')
        (mine / file.name).write_text(words)
    out = tmp_path / "out"
    result = done(data, *one, "--out", out, "--compare", shipped_policies(), mine)
    (a, rows_a), (b, rows_b) = scores(out / "a"), scores(out / "b")
    assert a.scorer == b.scorer
    assert a.guidelines != b.guidelines
    assert [row.margins for row in rows_a] != [row.margins for row in rows_b]
    assert json.loads((out / "comparison.json").read_text())["pairs"]
    side_by_side = out / "llm-comparator.json"
    texts = [example["input_text"] for example in json.loads(side_by_side.read_text())["examples"]]
    assert len(texts) == len(rows_a)
    assert any("zebra" in text for text in texts)
    side_by_side.unlink()
    done(data, *one, "--out", out, "--compare", shipped_policies(), mine, "--no-examples")
    assert not side_by_side.exists()
    assert f"policy book {b.book}" in result.stdout


@pytest.mark.parametrize("other", ["nowhere", "{empty}"])
def test_both_sides_of_a_comparison_are_looked_for_before_the_first_is_scored(
    other: str, data: Path, tmp_path: Path, one: tuple[str | Path, ...]
):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    sides = (shipped_policies(), other.format(empty=tmp_path / "empty"))
    result = evaluate(data, *one, "--out", out, "--compare", *sides)
    assert isinstance(result.exception, ConfigurationError)
    assert not out.exists()


async def test_a_gateway_is_as_good_as_an_engine(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    scorer = FakeScorer({("fox", "test/threat"): 3.0})
    async with gateway(scorer) as served:
        run = ("--url", served.url, "--family", "test", "--label", "hate=test/threat")
        await asyncio.to_thread(done, data, *run, "--out", out)
    header, rows = scores(out)
    assert (header.scorer, header.template) == ("fake@0", "chat")
    assert [row.margins["test/threat"] for row in rows[:4]] == [-6.0, 3.0, 3.0, 3.0]


async def test_a_gateways_calibrations_decide(data: Path, tmp_path: Path):
    book = small_book()
    fitted = Calibration(0.9, temperature=2.0, bias=1.0, provenance={"rows": 7})
    threat = book.policies["test/threat"]
    threat = replace(threat, calibrations={("fake@0", "prompt"): fitted})
    calibrated = replace(book, policies={**book.policies, "test/threat": threat})
    scorer = FakeScorer({("fox", "test/threat"): 3.0})
    async with gateway(scorer, policies=FixedPolicies(calibrated)) as served:
        async with GatewayScorer(served.url) as client:
            told = (await client.book()).policies["test/threat"]
        run = ("--url", served.url, "--family", "test", "--label", "hate=test/threat")
        await asyncio.to_thread(done, data, *run, "--out", tmp_path / "out")
    assert told.calibrations == threat.calibrations
    assert '"threshold": 0.9' in (tmp_path / "out" / "report.json").read_text()


async def test_a_gateways_key_comes_from_the_environment_and_stays_out_of_the_report(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    keys = written(tmp_path, entry("me", "sg-canary-5c20"))
    async with gateway(FakeScorer({("fox", "test/threat"): 3.0}), keys=keys) as served:
        run = ("--url", served.url, "--family", "test", "--label", "hate=test/threat")
        run = (*run, "--profile", "strict", "--out", str(out))
        assert "status 401" in await asyncio.to_thread(refusal, data, *run)
        monkeypatch.setenv("SHIELDGATE_GATEWAY_KEY", "sg-canary-5c20")
        await asyncio.to_thread(done, data, *run)
    assert not any(b"sg-canary" in file.read_bytes() for file in out.iterdir())
    # The gateway's profile decides.
    assert '"threshold": 0.1' in (out / "report.json").read_text()


async def test_a_run_whose_scorer_fails_ends_with_1(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shieldgate.scoring.gateway_client.ATTEMPTS", 1)
    scorer = FakeScorer(failure=Overloaded(1))
    async with gateway(scorer) as served:
        run = ("--url", served.url, "--family", "test", "--out", tmp_path / "out")
        result = await asyncio.to_thread(evaluate, data, *run)
    assert result.exit_code == 1
    assert "at last with status 429" in result.stderr


def test_an_interrupted_run_says_how_to_go_on_and_does(
    data: Path, tmp_path: Path, one: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
):
    from shieldgate.scoring.local import PackedEngine

    whole, out = tmp_path / "whole", tmp_path / "out"
    small = ("--max-batch-tokens", "700")
    done(data, *one, *small, "--out", whole)
    forward = PackedEngine.forward
    passes = iter(range(2))  # one is the engine's own check

    def interrupted(engine: PackedEngine, work: Any) -> list[list[float]]:
        if next(passes, None) is None:
            raise KeyboardInterrupt
        return forward(engine, work)

    with monkeypatch.context() as patch:
        patch.setattr(PackedEngine, "forward", interrupted)
        result = evaluate(data, *one, *small, "--out", out)
    assert result.exit_code == 130
    assert "give the same command to go on" in result.stderr
    assert 0 < len(scores(out)[1]) < 10
    done(data, *one, *small, "--out", out)
    assert (out / "scores.jsonl").read_bytes() == (whole / "scores.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--protocol", "mmlu"], "known are openai-mod, toxicchat"),
        (["--adapter", "mmlu"], "known are ours, openai-mod"),
        (["--adapter", "ours", "--map", "prompt=text"], "Give --map or --adapter"),
        (["--family", "acme"], "It has: openai, shieldgemma"),
        (["--policy", "acme/x"], "There is no policy named 'acme/x'"),
        (["--label", "hate"], "write LABEL=POLICY"),
        (["--label", "hate=acme/x"], "no such policy is evaluated"),
        (["--group", "topic"], "has no column 'topic'"),
        (["--model", "nowhere/at/all"], "there is no such folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_scored(
    data: Path, tmp_path: Path, arguments: list[str], said: str
):
    out = tmp_path / "out"
    assert said in refusal(data, *arguments, "--out", out)
    assert not out.exists()


def test_another_run_in_the_same_folder_is_refused(
    data: Path, tmp_path: Path, one: tuple[str | Path, ...]
):
    done(data, *one, "--limit", "2", "--out", tmp_path / "out")
    assert "limit': 2" in refusal(data, *one, "--out", tmp_path / "out")


def test_help_teaches_with_examples():
    result = done("--help")
    for words in ("shieldgate evaluate labelled.jsonl", "--protocol openai-mod", "--compare"):
        assert words in result.stdout
