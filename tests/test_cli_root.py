"""The command line as a whole: help, settings, and what it leaves unimported."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shieldgate import __version__
from shieldgate.cli import app
from shieldgate.given_settings import flag
from shieldgate.policy import shipped_policies
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
    assert f"{why}, which is not installed. Run: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("activated", [True, False])
def test_pip_is_that_of_this_environment(activated: bool, tmp_path: Path) -> None:
    here = Path(sys.executable).parent
    (tmp_path / "pip").symlink_to(here / "pip")
    path = str(here if activated else tmp_path)
    program = "import sys; sys.modules['scipy'] = None; from shieldgate.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "drift", "decisions.log"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    pip = "pip" if activated else f"{sys.executable} -m pip"
    assert f"Run: {pip} install 'shieldgate[eval]'" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        command = [Path(sys.executable).with_name("shieldgate"), "policies", "list"]
        result = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE)
    why = b"Error: the output can't be written: No space left on device.\n"
    assert (result.returncode, result.stderr) == (2, why)


def test_the_package_itself_is_the_command_line() -> None:
    command = [sys.executable, "-m", "shieldgate", "--version"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"shieldgate {__version__}\n"), result.stderr


def test_what_the_locale_has_no_letter_for_is_shown_by_its_number() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "shieldgate", "serve", "--help"],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    )
    assert b"\\u2022 shieldgate serve" in result.stdout, result.stderr


def test_json_is_json_where_the_locale_has_no_letter_for_what_it_says(tmp_path: Path) -> None:
    shutil.copytree(shipped_policies(), folder := tmp_path / "policies")
    title = "Gefährlich \N{FIRE}"
    path = folder / "openai.yaml"
    path.write_text(
        path.read_text("utf-8").replace("title: Sexual\n", f"title: {title}\n"), "utf-8"
    )
    result = subprocess.run(
        [sys.executable, "-m", "shieldgate", "policies", "list", "--json", "--policies", folder],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    )
    found = json.loads(result.stdout.decode("latin-1"))
    assert title in {policy["title"] for policy in found["policies"]}
