"""`shieldgate doctor`, as a person uses it: a file in, differences and their cost out."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from engines_elsewhere import Double, answering
from test_doctor import CHAT, GUIDELINES, PROMPT, TRAPS
from typer.testing import CliRunner, Result

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.score_file import ScoredRow, read_scores
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.prompts import PromptBuilder
from shieldgate.scoring.tokenizer_files import load_tokenizer

pytestmark = pytest.mark.usefixtures("restored_logging")


def doctor(*arguments: str | Path, standard_input: str | None = None) -> Result:
    words = ["doctor", *map(str, arguments)]
    return CliRunner().invoke(app, words, input=standard_input, env={"COLUMNS": "200"})


def found(*arguments: str | Path) -> dict[str, Any]:
    result = doctor(*arguments, "--json")
    assert result.exit_code == 1, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    """A prompt with two differences."""
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT.replace("\n<end_of_turn>", "<end_of_turn>").replace("* {", "{"))
    return path


def test_differences_are_shown_aligned_with_why_and_mend(prompt: Path) -> None:
    result = doctor(prompt)
    assert result.exit_code == 1
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    head = next(i for i, line in enumerate(lines) if "line end before <end_of_turn>" in line)
    assert lines[head].startswith("  1  ")
    assert lines[head].endswith("at 4:25")
    published, yours, caret, why, mend = lines[head + 1 : head + 6]
    assert published[caret.index("^") :].startswith("⏎<end_of_turn>")
    assert yours[caret.index("^") :].startswith("<end_of_turn>")
    assert why.split()[0] == "why"
    assert mend.split()[0] == "mend"
    assert "2 differences, 1 to mind" in lines


def test_the_page_shows_what_is_printed(prompt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs/doctor.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"```\n(prompt\.txt: .*?)```", page, re.DOTALL)
    monkeypatch.chdir(prompt.parent)
    printed = [line.rstrip() for line in doctor("prompt.txt").stdout.splitlines()]
    assert [line.rstrip() for line in shown.splitlines()] == printed[: shown.count("\n")]


def test_a_published_prompt_is_accepted_whichever_it_is() -> None:
    for template in TEMPLATES.values():
        result = doctor("-", standard_input=template.for_prompt)
        assert result.exit_code == 0
        assert f"asked as `{template.name}` was published" in result.stdout
        assert "no difference" in result.stdout


def test_it_compares_with_the_template_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "blog.txt"
    path.write_text(TEMPLATES["blog"].for_prompt.replace("* {", "{"))
    chosen = found(path, "--template", "blog")["prompts"][0]
    assert [f["kind"] for f in chosen["findings"] if f["certain"]] == ["bullet"]
    default = found(path)["prompts"][0]
    assert (default["template"], default["nearest"]) == ("chat", "blog")
    assert "wrapped" in [f["kind"] for f in default["findings"]]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nowhere.txt"], "can't be read: No such file"),
        (["{prompt}", "--template", "none"], "with the published ones: chat, paper"),
        (["{prompt}", "--data", "rows.jsonl", "--model", "http://x/v1"], "in this process"),
        (["http://x/v1", "--data", "rows.jsonl"], "this is a server"),
        (["{response}", "--template", "blog"], "'blog' only judges prompts"),
    ],
)
def test_what_cant_be_done_is_refused(
    arguments: list[str], why: str, prompt: Path, tmp_path: Path
) -> None:
    answer = tmp_path / "response.txt"
    answer.write_text(CHAT.for_response or "")
    given = [a.format(prompt=prompt, response=answer) for a in arguments]
    result = doctor(*given)
    assert isinstance(result.exception, ConfigurationError), result.output
    assert why in str(result.exception)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prompts, half of them harmful, and an answer."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    with path.open("w") as file:
        for n in range(12):
            text = f"zebra number {n} " + "the quick brown fox " * (n % 5)
            row = {"id": n, "prompt": text, "harmful": n % 2, "labels": {"hate": n % 2}}
            file.write(json.dumps(row) + "\n")
        file.write(json.dumps({"id": 12, "prompt": "a", "response": "b", "harmful": 1}) + "\n")
    return path


def margins(folder: Path) -> dict[int, ScoredRow]:
    _, scored = read_scores(folder / "scores.jsonl")
    return {row.row: row for row in scored}


# The end, where spaces tempt tokenizers, and a guideline that is its own.
@pytest.mark.parametrize("trap", ["a space at the end", "a guideline in other words"])
def test_the_cost_is_that_of_the_very_text(
    trap: str, rows: Path, hot_checkpoint: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoTokenizer, Gemma2ForCausalLM

    text = TRAPS[trap][0]
    path, out = tmp_path / "prompt.txt", tmp_path / "out"
    path.write_text(text)
    scored = ("--data", rows, "--model", hot_checkpoint, "--dtype", "float32", "--out", out)
    cost = found(path, *scored)["cost"]
    policies = [p["policy"] for p in cost["pairs"] if p["policy"]]
    reworded = "nasty" in text
    assert policies == (["shieldgemma/harassment"] if reworded else sorted(GUIDELINES))
    assert {p["direction"] for p in cost["pairs"]} == {"prompt"}
    yours, published = margins(out / "yours"), margins(out / "published")
    assert yours.keys() == published.keys() == set(range(12))

    tokenizer = AutoTokenizer.from_pretrained(hot_checkpoint)
    model = Gemma2ForCausalLM.from_pretrained(hot_checkpoint, attn_implementation="eager")
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    policy = "shieldgemma/harassment"
    for row in (0, 7):
        content = json.loads(rows.read_text().splitlines()[row])["prompt"]
        asked = text.replace("{prompt}", content)
        asked = asked.replace("{guideline}", GUIDELINES[policy]["prompt"])
        ids = tokenizer(asked, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            logits = model(ids).logits[0, -1]
        margin = yours[row].margins[policy]
        assert margin == pytest.approx(float(logits[yes] - logits[no]), abs=1e-3)
        assert margin != pytest.approx(published[row].margins[policy], abs=4e-3)


def test_rows_that_are_decided_otherwise_are_counted(
    rows: Path, hot_checkpoint: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "prompt.txt", tmp_path / "out"
    path.write_text(TRAPS["an indented string"][0])
    scored = ("--data", rows, "--model", hot_checkpoint, "--out", out)
    result = doctor(path, *scored)
    assert result.exit_code == 1, (result.output, result.exception)
    yours, published = margins(out / "yours"), margins(out / "published")
    only_a, only_b = [0, 0], [0, 0]
    for row in range(12):
        a, b = (max(side[row].margins.values()) >= 0 for side in (yours, published))
        only_a[row % 2 == 0] += a and not b
        only_b[row % 2 == 0] += b and not a
    said = " ".join(result.stdout.split())
    assert f"{sum(only_a + only_b)} of 12 rows are decided otherwise" in said
    assert f"lets {only_b[0]} harmful and {only_b[1]} harmless ones pass" in said
    assert f"flags {only_a[0]} harmful and {only_a[1]} harmless ones" in said
    assert sum(only_a + only_b) > 0


def test_rows_of_the_other_direction_alone_are_refused(
    prompt: Path, hot_checkpoint: Path, tmp_path: Path
) -> None:
    data = tmp_path / "answers.jsonl"
    data.write_text(json.dumps({"prompt": "a", "response": "b", "harmful": 1}) + "\n")
    result = doctor(prompt, "--data", data, "--model", hot_checkpoint)
    assert isinstance(result.exception, ConfigurationError)
    assert "has no rows that judge a prompt" in str(result.exception)


async def test_a_server_is_asked_what_it_does_with_prompts(hot_checkpoint: Path) -> None:
    template, encoder = load_tokenizer(str(hot_checkpoint)).encoder(CHAT)
    answers = PromptBuilder(template, encoder, 2047).answers
    double = Double("vllm", answers, ("Yes", "No"))
    double.margin = lambda prompt: -4.0
    async with answering(double) as url:

        def ask(*more: str) -> Result:
            return doctor(url, "--tokenizer", hot_checkpoint, *more)

        good = await asyncio.to_thread(ask)
        assert good.exit_code == 0, (good.output, good.exception)
        assert "reads prompts as they are sent" in " ".join(good.stdout.split())
        double.reads = lambda prompt: [2, *prompt]
        bad = await asyncio.to_thread(ask, "--json")
        assert bad.exit_code == 1
        told = json.loads(bad.stdout)
        assert told["differs"]
        assert "such as a second <bos>" in told["why"]
        unnamed = await asyncio.to_thread(doctor, url)
        assert "--tokenizer" in str(unnamed.exception)
    gone = await asyncio.to_thread(ask)
    assert gone.exit_code == 1
    assert gone.stderr.startswith("Error: ")
