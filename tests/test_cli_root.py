"""The command line as a whole: help, settings, and what it leaves unimported."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from shieldgate import __version__
from shieldgate.cli import app
from shieldgate.given_settings import flag
from shieldgate.settings import ScoringSettings, ServeSettings, Settings, WorkerSettings


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


@pytest.mark.parametrize(
    ("command", "settings"),
    [("serve", ServeSettings), ("score", ScoringSettings), ("worker", WorkerSettings)],
)
def test_help_shows_a_flag_for_every_setting(command: str, settings: type[Settings]) -> None:
    shown = help_of(command)
    for name, field in settings.model_fields.items():
        assert re.search(rf"{flag(name)}\s", shown), name
        assert field.description
        assert field.description[:20] in shown, name
    assert "For example:" in shown


def test_help_does_not_show_how_a_supervisor_calls_the_worker() -> None:
    assert "--supervised" not in help_of("worker")


def test_score_has_no_flag_for_what_only_serving_needs() -> None:
    assert "--port" not in help_of("score")


def test_the_first_help_shows_the_commands_and_where_to_start() -> None:
    shown = help_of()
    for command in ("serve", "worker", "score", "policies"):
        assert command in shown
    assert "Start here" in shown


def test_a_mistyped_command_leads_to_none_that_is_hidden() -> None:
    result = CliRunner().invoke(app, ["scor"])
    assert result.exit_code == 2
    assert "Did you mean 'score'" in result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.output == f"shieldgate {__version__}\n"


@pytest.mark.parametrize("command", [["--help"], ["serve", "--help"], ["policies", "list"]])
def test_torch_is_not_imported_without_need(command: list[str]) -> None:
    program = (
        "import sys\n"
        "from shieldgate.cli import app\n"
        f"app({command!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("module", "command", "why"),
    [
        ("torch", ["score", "tea"], "Scoring in this process needs torch"),
        ("torch", ["worker", "--generator", "a/m"], "Generating in this process needs torch"),
        ("numpy", ["evaluate", "rows.jsonl"], "Evaluating needs numpy"),
        ("numpy", ["calibrate", "s.jsonl", "--target", "fpr=0.01"], "Calibrating needs numpy"),
        ("torch", "tune --base a --data b --out c".split(), "Tuning needs torch"),
    ],
)
def test_what_is_not_installed_is_named_with_the_extra_that_has_it(
    module: str, command: list[str], why: str
) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from shieldgate.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, *command], check=False, capture_output=True, text=True
    )
    assert f"{why}, which is not installed. Run: pip install 'shieldgate[" in result.stderr
    assert "Traceback" not in result.stderr
