"""`make bench` runs, its contestants agree, and its counts are those made by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from shieldgate.scoring.pack import Pack

ROOT = Path(__file__).parents[1]


@pytest.fixture
def counter() -> object:
    from benchmarks.counting import Counter
    from benchmarks.subject import FULL

    with torch.device("meta"):
        return Counter.of(Gemma2ForCausalLM(Gemma2Config(**FULL.shape)))


@pytest.mark.parametrize(
    ("text", "snippet", "pipeline"),
    [(20, 2.0, 1.6), (100, 2.5, 2.0), (300, 3.4, 2.6), (1000, 4.6, 3.6)],
)
def test_predicted_ratios_are_those_of_counting_by_hand(
    counter: object, text: int, snippet: float, pipeline: float
) -> None:
    trunk = tuple(range(text + 45))
    pack = Pack(trunk, (tuple(range(130)),) * 4)
    lengths = [len(trunk) + 130] * 4
    ours = counter.packed(pack)
    assert counter.prompts(lengths, full_logits=True) / ours == pytest.approx(snippet, rel=0.03)
    assert counter.prompts(lengths, full_logits=False) / ours == pytest.approx(pipeline, rel=0.04)


def test_the_bench_runs_and_the_three_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.__main__ import main

    report = tmp_path / "report.txt"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--out", str(report)])
    main()
    text = report.read_text(encoding="utf-8")
    assert "P(Yes) of the three differs by at most" in text
    assert "raised the resident memory" in text
    assert "\x1b" not in text


def test_what_needs_a_tool_that_is_not_there_says_that_it_is_left_out() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        check=True,
        env={"PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "It needs wrk" in said.stdout
