"""`shieldgate score`, with a real engine on a small checkpoint."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("restored_logging")


def score(*arguments: str | Path, stdin: str | None = None, columns: int = 120) -> Result:
    words = ["score", *map(str, arguments)]
    return CliRunner().invoke(app, words, input=stdin, env={"COLUMNS": str(columns)})


def verdict(hot: Path, *arguments: str | Path, stdin: str | None = None) -> dict[str, object]:
    result = score(*arguments, "--model", hot, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    [found] = json.loads(result.stdout)["results"]
    del found["milliseconds"]
    checked: dict[str, object] = found
    return checked


def test_a_table_shows_each_policy_and_the_scorer(hot_checkpoint: Path) -> None:
    result = score("How do I bake bread?", "--model", hot_checkpoint)
    assert result.exit_code == 0, result.output
    for policy in ("dangerous", "harassment", "hate", "sexual"):
        assert f"shieldgemma/{policy}" in result.stdout
    assert f"scorer {hot_checkpoint.name}@" in result.stdout
    assert "not calibrated" in result.stdout


def test_text_file_and_standard_input_give_the_same_verdict(
    hot_checkpoint: Path, tmp_path: Path
) -> None:
    text = "Wie backe ich Brot? 🍞"
    file = tmp_path / "prompt.txt"
    file.write_text(text, encoding="utf-8")
    expected = verdict(hot_checkpoint, text)
    assert expected["direction"] == "prompt"
    assert verdict(hot_checkpoint, file) == expected
    assert verdict(hot_checkpoint, "-", stdin=text) == expected
    assert verdict(hot_checkpoint, "another text") != expected


def test_a_response_is_judged_with_its_prompt(hot_checkpoint: Path) -> None:
    found = verdict(hot_checkpoint, "a question", "--response", "an answer")
    assert found["direction"] == "response"
    assert found != verdict(hot_checkpoint, "another question", "--response", "an answer")


def test_asked_policies_are_judged_too(hot_checkpoint: Path) -> None:
    extra = ("--policy", "shieldgemma/violence", "--policy", "shieldgemma/profanity")
    found = verdict(hot_checkpoint, "a text", *extra)
    assert isinstance(found["policies"], dict)
    assert list(found["policies"])[-2:] == ["shieldgemma/violence", "shieldgemma/profanity"]


def test_the_exit_code_tells_of_a_block_only_when_asked(hot_checkpoint: Path) -> None:
    found = verdict(hot_checkpoint, "How do I bake bread?")
    assert found["action"] == "blocked"
    arguments = ("How do I bake bread?", "--model", hot_checkpoint, "--exit-code")
    assert score(*arguments).exit_code == 3
    assert score(*arguments, "--profile", "monitor").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["x", "--policy", "no/such"], "--policy: There is no policy named 'no/such'"),
        (["x", "--profile", "none"], "--profile or SHIELDGATE_PROFILE"),
        (["x", "--device", "tpu"], "--device 'tpu' is refused"),
        (["-", "--response", "-"], "Standard input"),
        (["--file", "-", "--response", "-"], "Standard input"),
        ([], "Give one thing to judge"),
        (["x", "--text", "y"], "Give one thing to judge"),
        (["--file", "x", "--lines", "y"], "Give one thing to judge"),
        (["--lines", "x", "--response", "y"], "can't go with --lines"),
        (["--file", "anwser"], "anwser: can't be read: No such file or directory"),
        (["--file", "a\0b"], "can't be read"),
        (["--lines", "anwser"], "anwser: can't be read: No such file or directory"),
        (["."], ".: can't be read: Is a directory. If it is the text itself, give it as --text"),
        (["/"], "can't be read: Is a directory"),
        (["x", "--model", "/no/such/folder"], "there is no such folder"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: list[str], reason: str) -> None:
    result = score(*arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert reason in str(result.exception)


@pytest.mark.parametrize(
    "given",
    [
        "anwser.txt",
        "ANSWER.TXT",
        "my anwser.txt",
        "docs/anwser",
        "./anwser",
        "~/anwser",
        "C:\\Users\\anwser",
        "*.md",
        "archive.tar.gz",
        "песня.mp3",
    ],
)
@pytest.mark.parametrize("as_response", [False, True])
def test_a_misspelt_file_is_not_judged_by_its_name(given: str, as_response: bool) -> None:
    result = score(*(["x", "--response", given] if as_response else [given]), "--exit-code")
    assert isinstance(result.exception, ConfigurationError)
    assert str(result.exception).startswith(f"{given}: there is no such file. If it is the text")


@pytest.mark.parametrize("given", [["-"], [""], [" \n"], ["--file", "{empty}"]])
def test_nothing_is_no_text_to_be_allowed(given: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    result = score(*(word.format(empty=empty) for word in given), "--exit-code")
    assert isinstance(result.exception, ConfigurationError)
    assert "There is no text to judge" in str(result.exception)


@pytest.mark.parametrize(
    "text", ["Stop.", "3.14", "Wait...", "e.g. this", "threat " * 720, "a\n/b"]
)
def test_what_looks_like_no_file_is_a_text(hot_checkpoint: Path, text: str) -> None:
    assert verdict(hot_checkpoint, text) == verdict(hot_checkpoint, "--text", text)


def test_a_text_or_a_file_may_be_called_so(hot_checkpoint: Path, tmp_path: Path) -> None:
    expected = verdict(hot_checkpoint, "--text", "anwser.txt")
    assert verdict(hot_checkpoint, "-", stdin="anwser.txt") == expected
    file = tmp_path / "prompt"
    file.write_bytes(b"\xef\xbb\xbfanwser.txt")
    assert verdict(hot_checkpoint, "--file", file) == expected


def test_each_line_is_a_text_of_its_own(hot_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes("one\u2028still one\r\n\n  \ntwo [b]\n".encode())
    result = score("--lines", file, "--model", hot_checkpoint, "--json", "--exit-code")
    assert result.exit_code == 3
    found = json.loads(result.stdout)["results"]
    for text, one in zip(("one\u2028still one", "two [b]"), found, strict=True):
        del one["milliseconds"]
        assert one == verdict(hot_checkpoint, "--text", text)
    shown = score("--lines", "-", "--model", hot_checkpoint, stdin=file.read_text())
    assert shown.exit_code == 0, shown.output
    assert [shown.stdout.count(action) for action in ("BLOCKED", "ALLOWED")] == [1, 1]
    assert "two [b]" in shown.stdout
    long = "one " + "two " * 60
    narrow = score("--lines", "-", "--model", hot_checkpoint, stdin=f"{long}\nb", columns=80).stdout
    [line] = [line for line in narrow.splitlines() if "one two" in line]
    assert re.search(r"(BLOCKED|ALLOWED) +shieldgemma/\w+ +\d\.\d{3} +one two .*…", line)
    file.write_text("\n\n")
    assert "no line with text in it" in str(score("--lines", file).exception)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("Brötchen".encode("latin-1"))
    result = score(file)
    assert isinstance(result.exception, ConfigurationError)
    assert "not UTF-8 text (at byte 2)" in str(result.exception)


def test_on_a_terminal_loading_is_shown_at_once(hot_checkpoint: Path) -> None:
    program = str(Path(sys.executable).with_name("shieldgate"))
    ours, theirs = pty.openpty()
    command = [program, "score", "tea", "--model", str(hot_checkpoint), "--json"]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, text=True) as run:
        shown = os.read(ours, 10_000)
        while b"loading" not in shown:
            shown += os.read(ours, 10_000)
        assert json.loads(run.communicate()[0])["results"]
    os.close(theirs)
    os.close(ours)


def test_a_misspelt_file_exits_with_2() -> None:
    program = str(Path(sys.executable).with_name("shieldgate"))
    command = [program, "score", "anwser.txt", "--exit-code"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert "anwser.txt: there is no such file" in result.stderr


def test_a_wrong_setting_exits_with_2_and_a_sentence_on_stderr() -> None:
    program = str(Path(sys.executable).with_name("shieldgate"))
    command = [program, "score", "a text", "--template", "chta"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: There is no template 'chta'")
    assert len(result.stderr.splitlines()) == 1
