"""`shieldgate policies`, as a person and as a script use it."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shieldgate.cli.policies import app
from shieldgate.policy import load_book, shipped_policies


def policies(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env=env)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return shutil.copytree(shipped_policies(), tmp_path / "policies")


def spoil(directory: Path) -> None:
    file = directory / "profiles.yaml"
    file.write_text(file.read_text().replace("hate: 0.3", "hate: 3").replace("enforce", "forbid"))


def test_check_sums_a_good_book_up_in_one_line(directory: Path):
    result = policies("check", directory)
    assert result.exit_code == 0
    assert result.output == (
        f"{directory}: 14 policies, 3 profiles, version {load_book(directory).version}\n"
    )


def test_one_policy_and_one_profile_are_not_several(tmp_path: Path):
    file = tmp_path / "one.yaml"
    file.write_text(
        "family: acme\npolicies:\n  spam: {title: Spam, guideline: {prompt: a, response: b}}\n"
        "profiles:\n  default: {policies: [acme/spam]}\n"
    )
    assert policies("check", file).stdout.startswith(f"{file}: 1 policy, 1 profile, version ")


def test_the_tables_are_whole_on_80_columns():
    text = policies("list", env={"COLUMNS": "80"}).stdout
    assert "self-harm/instructions" in text
    assert "harassment/threatening" in text
    assert max(map(len, text.splitlines())) <= 80


def test_check_warns_where_a_profile_lets_pass_what_is_calibrated_to_be_stopped(directory: Path):
    file = directory / "profiles.yaml"
    file.write_text(file.read_text().replace("max_thresholds:", "thresholds:"))
    result = policies("check", directory)
    assert result.exit_code == 0
    warnings = [line for line in result.stderr.splitlines() if "calibrated for starter@" in line]
    assert len(warnings) == 3
    assert warnings[0].startswith(
        "Warning: profiles.strict.thresholds.shieldgemma/dangerous: 0.3 is above the 0.29 "
        "calibrated for starter@"
    )
    assert "(response); write it under max_thresholds" in warnings[0]


def test_check_without_a_path_checks_the_shipped_book():
    result = policies("check")
    assert result.exit_code == 0
    assert result.output.startswith("The shipped policies: 14 policies")


def test_check_tells_every_problem_one_a_line_with_its_place_and_exits_1(directory: Path):
    spoil(directory)
    result = policies("check", directory)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == [
        f"{directory}/profiles.yaml:{line}" for line in (13, 66, 74)
    ]


@pytest.mark.parametrize("command", ["check", "list"])
def test_the_path_has_a_twin_in_the_environment(command: str, directory: Path):
    spoil(directory)
    result = policies(command, env={"SHIELDGATE_POLICIES": str(directory)})
    assert result.exit_code == 1
    assert "profiles.strict.max_thresholds.shieldgemma/hate: 3: " in result.stderr


def test_list_shows_policies_with_their_thresholds_and_profiles_with_theirs(directory: Path):
    (directory / "acme.yaml").write_text(
        "family: acme\n"
        "policies:\n"
        "  leaks:\n"
        "    title: No leaks\n"
        "    openai: [illicit]\n"
        "    threshold: {prompt: 0.25, response: 0.75}\n"
        "    guideline: {prompt: p, response: r}\n"
        "    calibrated: {starter@1f: {response: {threshold: 0.125}}}\n"
    )
    result = policies("list", "--policies", directory, env={"COLUMNS": "120"})
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()]
    assert "acme/leaks No leaks prompt 0.25, response 0.75 illicit".split() in lines
    start = lines.index(["Thresholds", "calibrated", "for", "starter@1f"])
    assert ["acme/leaks", "0.125"] in lines[start:]
    assert ["strict", "enforce", "closed", "shieldgemma/dangerous", "at", "most", "0.3"] in lines
    assert ["monitor", "monitor", "open", "shieldgemma/dangerous"] in lines


def test_list_loses_no_text_in_a_narrow_terminal():
    result = policies("list", env={"COLUMNS": "60"})
    assert "…" not in result.output


def test_list_as_json_is_for_machines():
    book = json.loads(policies("list", "--json").stdout)
    assert book["version"] == load_book().version
    assert [p["id"] for p in book["policies"]] == list(load_book().policies)
    assert [p["name"] for p in book["profiles"]] == ["default", "strict", "monitor"]
    assert book["profiles"][0]["thresholds"] == {}
    assert book["profiles"][1]["max_thresholds"]["shieldgemma/hate"] == {
        "prompt": 0.3,
        "response": 0.3,
    }


def test_init_writes_a_book_that_is_in_order_and_says_what_to_do_with_it(tmp_path: Path):
    target = tmp_path / "new" / "policies"
    result = policies("init", target)
    assert result.exit_code == 0
    assert load_book(target) == load_book()
    assert f"shieldgate policies check {target}" in result.stdout


def test_init_overwrites_nothing(tmp_path: Path):
    mine = tmp_path / "profiles.yaml"
    mine.write_text("mine")
    result = policies("init", tmp_path)
    assert result.exit_code == 1
    assert f"{mine} is there already" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["profiles.yaml"]
    assert mine.read_text() == "mine"


def test_init_says_when_it_cannot_write(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    result = policies("init", file)
    assert result.exit_code == 1
    assert f"{file}: File exists; choose a directory that can be written" in result.stderr


@pytest.mark.parametrize("command", ["check", "list", "init"])
def test_help_teaches_with_an_example(command: str):
    result = policies(command, "--help")
    assert result.exit_code == 0
    assert f"Example: shieldgate policies {command}" in result.output
