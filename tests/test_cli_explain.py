"""`shieldgate score --explain`: the words that carried a score, on terminals and elsewhere."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from test_cli_score import score

from shieldgate.cli.explained import show_explanation
from shieldgate.types import Exchange, Explanation, Part

pytestmark = pytest.mark.usefixtures("restored_logging")

TEXT = "bread threat weapon and tea"


def shown(explained: Explanation, text: str, **terminal: object) -> str:
    console = Console(width=200, record=True, **terminal)
    with console.capture() as said:
        show_explanation("test/threat", explained, Exchange(text), console)
    return said.get()


FOUND = Explanation(
    start=9,
    end=24,
    margin=3.0,
    sentences=(),
    words=(Part(9, 12, 0.1), Part(13, 18, 8.0), Part(19, 24, 4.0)),
    tested=2,
    margin_without=-5.5,
    margin_alone=2.5,
)


def test_elsewhere_the_words_that_count_most_stand_in_brackets() -> None:
    said = shown(FOUND, "A [dull] You crude fool")
    assert [line.rstrip() for line in said.splitlines()] == [
        "test/threat by characters 9 to 24, the passage that scores worst:",
        "  You [crude] [fool]",
        "  Carried most: crude 8.00, fool 4.00, You 0.10. The margin is 3.00, without the 2 "
        "words that carry most -5.50, with nothing but them 2.50.",
    ]


def test_on_a_terminal_they_are_coloured_by_how_much_they_carry() -> None:
    said = shown(FOUND, "A [dull] You crude fool", force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[1;7;31mcrude\x1b\[0m", said)
    assert re.search(r"\x1b\[1;31mfool\x1b\[0m", said)
    assert "[crude]" not in said


def test_where_no_word_alone_lowers_the_margin_it_says_so() -> None:
    said = shown(Explanation(0, 6, 3.0, (), (Part(0, 5, 0.0),), reading="crude!"), "ｃｒｕｄｅ!")
    assert "another reading of the text" in said
    assert re.search(r"^  crude! *$", said, re.M)
    assert "No word alone lowers the margin." in said


def test_a_real_score_is_explained_in_both_ways(hot_checkpoint: Path) -> None:
    found = {}
    for way in ((), ("--gradient",)):
        result = score(TEXT, "--explain", *way, "--json", "--model", hot_checkpoint)
        assert result.exit_code == 0, result.output
        [verdict] = json.loads(result.stdout)["results"]
        assert verdict["explanation"]["error"] is None
        for policy, one in verdict["explanation"]["policies"].items():
            assert policy in (verdict["violated"] or verdict["policies"])
            assert [TEXT[w["start"] : w["end"]] for w in one["words"]] == TEXT.split()
            assert one["margin"] == pytest.approx(verdict["policies"][policy]["margin"], abs=1e-4)
        found[way] = verdict["explanation"]["policies"]
    assert found[()].keys() == found["--gradient",].keys()
    assert found[()] != found["--gradient",]
    plain = score(TEXT, "--explain", "--model", hot_checkpoint)
    assert "by the whole text:" in plain.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--lines", "-", "--explain"), "--explain is for one text"),
        (("bread", "--gradient"), "Give --explain, too"),
    ],
)
def test_what_cannot_be_explained_is_refused(arguments: tuple[str, ...], why: str) -> None:
    result = score(*arguments, stdin="a\nb\n")
    assert why in str(result.exception)
