"""`shieldgate tune`, as a person uses it: rows and a policy in, a scorer and its worth out."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_calm_checkpoint
from full_disk import full_disk
from rich.console import Console
from typer.testing import CliRunner, Result

from shieldgate.cli import app, tune_run
from shieldgate.cli.tune_run import _Shown
from shieldgate.errors import ConfigurationError
from shieldgate.prompt import find_template
from shieldgate.scoring.local import load_engine
from shieldgate.statistics import Estimate
from shieldgate.tuning.fit import Hyperparameters
from shieldgate.tuning.loop import Check
from shieldgate.tuning.run_folder import RunFolder
from shieldgate.tuning.tune import Measured, TuningCallback, TuningReport, TuningTask

pytestmark = pytest.mark.usefixtures("restored_logging")

BOOK = """
family: acme
policies:
  foxes:
    title: Foxes
    threshold: 0.5
    guideline:
      prompt: '"No Foxes": none.'
      response: '"No Foxes": none at all.'
  tea:
    title: Tea
    threshold: 0.5
    guideline:
      prompt: '"No Tea": none.'
      response: '"No Tea": none at all.'
profiles:
  default:
    policies: [acme/foxes]
"""


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def refusal(*arguments: str | Path) -> str:
    result = invoke("tune", *arguments)
    assert isinstance(result.exception, ConfigurationError), result.output
    return str(result.exception)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def zebras(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows in a text that is easily found again, of which every other one has a fox."""
    return [
        {
            "prompt": f"zebra {n}, " + ("a quick brown fox" if n % 2 else "a lazy dog"),
            "labels": {"foxes": n % 2, "weather": 0},
        }
        for n in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_calm_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture
def given(base: Path, tmp_path: Path) -> tuple[str | Path, ...]:
    """What every run needs: a base, rows, a book, and few steps."""
    book = tmp_path / "my.yaml"
    book.write_text(BOOK)
    data = write(tmp_path / "rows.jsonl", zebras(40))
    chosen = ("--base", base, "--data", data, "--policies", book)
    return *chosen, "--device", "cpu", "--steps", "8", "--rate", "0.01"


def test_rows_become_a_scorer_that_serves(given: tuple[str | Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "mine"
    os.umask(umask := os.umask(0o022))
    result = invoke("tune", *given, "--out", out)
    assert result.exit_code == 0, (result.output, result.exception)
    name = load_engine(str(out), device="cpu").identity.name
    assert f"scorer {name}" in result.stdout
    assert "24 rows to learn from, 8 to stop by, 8 to measure on" in result.stdout
    for command in (
        f"serve --model {out} --policies {tmp_path}/my.yaml\n",
        "evaluate fresh.jsonl --policy=acme/foxes --model",
        f"calibrate runs/mine/scores.jsonl --target fpr=0.01 --policies {tmp_path}/my.yaml "
        f"--write {tmp_path}/my.yaml\n",
    ):
        assert f"\n  shieldgate {command}" in result.stdout
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    assert "labels were read so: foxes as acme/foxes" in result.stderr
    report = (out / "tuning/report.json").read_text()
    assert "zebra" not in report
    [measured] = json.loads(report)["report"]["measured"]
    assert measured["rows"] == 8
    assert measured["after"]["average_precision"]["value"] is not None
    again = invoke("tune", *given, "--out", out)
    assert again.stdout == result.stdout
    book = tmp_path / "my.yaml"
    served = invoke("score", "a quick brown fox", "--model", out, "--policies", book, "--json")
    assert served.exit_code == 0, served.output
    assert json.loads(served.stdout)["scorer"]["name"] == name


def test_the_bar_says_only_what_is_known_and_fits_80_columns() -> None:
    shown = _Shown()
    shown.begin(Hyperparameters.for_rows(2000, "full", 0))

    def bar() -> str:
        console = Console(width=80, file=io.StringIO())
        console.print(shown._progress.get_renderable())
        return console.file.getvalue().rstrip("\n")

    assert "nan" not in bar()
    assert "loss" not in bar()
    shown.step(0, 0.5)
    shown.check(Check(1, (0.75, 0.5)))
    assert "loss 0.500 AU-PRC 0.750, best 0.750" in bar()
    assert "\n" not in bar()


def test_a_stopped_run_says_how_to_go_on_and_does(
    given: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shieldgate.cli import tune_run

    def stop(callback: TuningCallback, step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tune_run._Shown, "step", stop)
        stopped = invoke("tune", *given, "--out", tmp_path / "mine")
    assert stopped.exit_code == 130
    assert "Give the same command again" in stopped.stderr
    assert invoke("tune", *given, "--out", tmp_path / "mine").exit_code == 0


def test_training_that_diverges_ends_with_1(given: tuple[str | Path, ...], tmp_path: Path) -> None:
    result = invoke("tune", *given, "--rate", "1e30", "--out", tmp_path / "mine")
    assert result.exit_code == 1
    assert "Try a lower --rate" in result.stderr


def test_test_rows_are_measured_on(given: tuple[str | Path, ...], tmp_path: Path) -> None:
    fresh = write(tmp_path / "fresh.jsonl", zebras(20, first=30))
    result = invoke("tune", *given, "--test", fresh, "--out", tmp_path / "mine")
    assert "24 rows to learn from, 6 to stop by, 20 to measure on" in result.stdout
    assert f"evaluate {fresh} --policy" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "acme/x"], "There is no policy named 'acme/x'"),
        (["--policy", "acme/tea"], "no label names a policy. Its labels: foxes, weather. The poli"),
        (["--label", "weather=acme/x"], "no such policy is evaluated"),
        (["--label", "weather=acme/tea"], "acme/tea: 0 rows violate it, and at least 5 must"),
        (["--adapter", "mmlu"], "--adapter mmlu: known are ours"),
        (["--base", "nowhere/at/all"], "there is no such folder"),
        (["--data", "nowhere.jsonl"], "there is no such file"),
        (["--policies", "nowhere.yaml"], "nowhere.yaml:1: can't be read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    given: tuple[str | Path, ...], tmp_path: Path, arguments: list[str], said: str
) -> None:
    out = tmp_path / "mine"
    assert said in refusal(*given, *arguments, "--out", out)
    assert not out.exists()


def test_too_few_rows_are_refused(given: tuple[str | Path, ...], tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", zebras(9))
    assert "acme/foxes: 4 rows violate it" in refusal(
        *given, "--data", few, "--out", tmp_path / "o"
    )
    one_sided = write(tmp_path / "fresh.jsonl", zebras(1))
    said = refusal(*given, "--test", one_sided, "--out", tmp_path / "o")
    assert "no rows are left to measure on" in said


def test_a_base_of_an_unknown_family_is_refused(
    given: tuple[str | Path, ...], base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((base / name).read_bytes())
    (other / "config.json").write_text('{"model_type": "bert"}')
    assert "is a bert model, and the scorer knows Gemma 2" in refusal(
        *given, "--base", other, "--out", tmp_path / "o"
    )


def test_adapters_without_peft_are_refused_with_the_mend(
    given: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    said = refusal(*given, "--method", "lora", "--out", tmp_path / "mine")
    assert "pip install 'shieldgate[tune]'" in said


def test_another_run_in_the_same_folder_is_refused(
    given: tuple[str | Path, ...], tmp_path: Path
) -> None:
    run = (*given, "--steps", "1", "--out", tmp_path / "mine")
    assert invoke("tune", *run).exit_code == 0
    said = refusal(*run, "--seed", "1")
    assert "belongs to another run:\n  data.train: " in said
    assert "\n  recipe.seed: 0 -> 1\n" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").touch()
    assert "files that no tuning left there" in refusal(*given, "--out", tmp_path / "full")


def test_help_teaches_with_examples() -> None:
    result = invoke("tune", "--help")
    assert "shieldgate tune --base starter --data rows.jsonl" in result.stdout


def test_a_full_disk_is_named_and_the_same_command_goes_on(
    given: tuple[str | Path, ...], tmp_path: Path
) -> None:
    out = tmp_path / "scorer"
    words = (*given, "--steps", "1", "--out", out)
    with full_disk(20_000):
        why = refusal(*words)
    assert f"{out / 'tuning/state.new'} can't be written" in why
    assert "See whether the disk is full" in why
    mended = invoke("tune", *words)
    assert mended.exit_code == 0, mended.output
    assert {file.name for file in (out / "tuning").iterdir()} == {"report.json"}


def test_a_report_that_the_disk_has_no_room_for_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", {"seed": 0}, made_by="tuning")
    assert folder.claim(lambda report: report) is None
    with full_disk(10), pytest.raises(ConfigurationError, match=r"report\.json can't be written"):
        folder.finish({"report": "long enough"})
    assert folder.claim(lambda report: report) == {"run": {"seed": 0}}


def test_the_gains_are_whole_on_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=80, file=io.StringIO())
    monkeypatch.setattr(tune_run, "Console", lambda: console)
    figures = {name: Estimate(0.5, 0.25, 0.75) for name in ("average_precision", "optimal_f1")}
    policy = "acme/personal-banking-advice"
    measured = [Measured(policy, "response", 1234, 345, figures, figures, figures)]
    rows = dict.fromkeys(("train", "validation", "test"), 1234)
    report = TuningReport("mine@0", rows, 8, [Check(8, (0.5, 0.5))], measured, 0.02)
    tune_run._show(report, TuningTask("starter", Path("mine"), find_template("chat"), {}, (), ()))
    text = console.file.getvalue()
    assert policy in text
    assert "0.25-0.75" in text
    assert "+0.25, +0.75" in text
    assert "…" not in text
