"""Where a cheap scorer may decide, found from the scores of both; and two real ones together."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta
from scored import header, scored, write_scores
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from recipes.starter.contrast import contrast_rows
from shieldgate.cli import app as shieldgate
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.cascade import (
    CascadeOptions,
    FittedBand,
    Unsure,
    fit_cascade,
)
from shieldgate.evaluation.score_columns import ScoreColumns, to_columns
from shieldgate.evaluation.score_file import ScoredRow
from shieldgate.policy import PolicyBook, load_book
from shieldgate.scoring.cascade import load_cascade
from shieldgate.statistics import clopper_pearson, upper_bound

SPAM, THREAT = "acme/spam", "acme/threat"
TODAY = date(2026, 11, 20)
BOOK = """\
family: acme
policies:
  spam: {title: Spam, guideline: {prompt: No spam., response: No spam in answers.}}
  threat: {title: Threats, guideline: {prompt: No threats., response: None in answers.}}
profiles:
  default: {policies: [acme/spam, acme/threat]}
  strict: {policies: [acme/spam], thresholds: {acme/spam: 0.2}}
"""


@pytest.fixture
def book_file(tmp_path: Path) -> Path:
    path = tmp_path / "book.yaml"
    path.write_text(BOOK)
    return path


def both(rows: int, *, noise: float = 1.0, seed: int = 0) -> tuple[list[ScoredRow], ...]:
    """Rows as a second scorer scored them, and as one that sees the same, less clearly."""
    draw = np.random.default_rng(seed)
    second = scored((SPAM, THREAT), rows, seed=seed)
    first = [
        replace(
            row,
            margins={
                p: float(np.float32(m + draw.normal(0, noise))) for p, m in row.margins.items()
            },
        )
        for row in second
    ]
    return first, second


def columns(book: PolicyBook, *sides: Sequence[ScoredRow]) -> list[ScoreColumns]:
    names = ("cheap@1", "good@2")
    return [
        to_columns(header(book, (SPAM, THREAT), scorer=name), rows)
        for name, rows in zip(names, sides, strict=True)
    ]


def fit(book_file: Path, options: CascadeOptions, rows: int = 4000, **how: object):
    book = load_book(book_file)
    return fit_cascade(*columns(book, *both(rows, **how)), book, options, today=TODAY)


@pytest.mark.parametrize(("hits", "trials"), [(0, 30), (1, 59), (7, 300), (300, 20_000), (5, 5)])
def test_the_bounds_are_those_of_clopper_and_pearson(hits: int, trials: int) -> None:
    exact = beta.ppf(0.95, hits + 1, trials - hits) if hits < trials else 1.0
    assert upper_bound(hits, trials) == pytest.approx(exact, rel=1e-9)
    found = clopper_pearson(hits, trials)
    low = beta.ppf(0.025, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("may_flag", [False, True])
def test_the_limit_holds_on_rows_never_seen_and_most_are_not_asked_about(
    book_file: Path, may_flag: bool
) -> None:
    found = fit(book_file, CascadeOptions(0.03, may_flag))
    first, second = both(20_000, seed=7)
    for one in found.bands:
        assert isinstance(one, FittedBand)
        a, b = (np.array([r.margins[one.policy] for r in side]) for side in (first, second))
        violated, passed = b >= one.band.thresholds[0], b < one.band.thresholds[1]
        assert one.band.safe
        safe = a < one.band.safe.beyond
        assert (safe & violated).sum() / violated.sum() < 0.03
        assert (safe & violated).any(), "the band is no wider than it must be"
        if may_flag:
            assert one.band.harmful
            flagged = a > one.band.harmful.beyond
            assert 0 < (flagged & passed).sum() / passed.sum() < 0.03
            asked = ~(safe | flagged)
        else:
            assert one.band.harmful is None
            asked = ~safe
        assert one.asked == pytest.approx(asked.mean(), abs=0.03)
        assert one.lost.value is not None
        assert one.lost.low <= (safe & violated).sum() / violated.sum() <= one.lost.high
    assert 0 < found.questions < found.asked < 1


def test_the_thresholds_of_all_profiles_count(book_file: Path) -> None:
    found = fit(book_file, CascadeOptions(0.05, may_flag=True))
    by_policy = {one.policy: one.band for one in found.bands if isinstance(one, FittedBand)}
    assert by_policy[SPAM].thresholds == pytest.approx((np.log(0.25), 0), abs=1e-3)
    assert by_policy[THREAT].thresholds == pytest.approx((0, 0), abs=1e-3)
    for band in by_policy.values():
        assert band.safe.margin < band.thresholds[0] <= band.thresholds[1] < band.harmful.margin


def test_a_scorer_that_sees_all_leaves_nothing_and_a_blind_one_nearly_all(book_file: Path) -> None:
    clear = fit(book_file, CascadeOptions(0.05, may_flag=True), noise=0.0)
    asked = {one.policy: one.asked for one in clear.bands if isinstance(one, FittedBand)}
    assert asked[THREAT] < 0.01
    assert asked[SPAM] > 0.05, "what one profile flags and another passes is the second's"
    blind = fit(book_file, CascadeOptions(0.05, may_flag=True), noise=300.0)
    assert blind.questions > 0.85


def test_too_few_violations_give_no_band_and_are_counted(book_file: Path) -> None:
    found = fit(book_file, CascadeOptions(0.03), rows=120)
    assert all(isinstance(one, Unsure) for one in found.bands)
    assert "it takes 123" in found.bands[0].why
    assert (found.asked, found.questions) == (1, 1)


def test_scores_of_other_rows_policies_words_or_one_scorer_are_refused(book_file: Path) -> None:
    book, (first, second) = load_book(book_file), both(300)
    a, b = columns(book, first, second)
    options = CascadeOptions(0.03)

    def refused(why: str, first: ScoreColumns, second: ScoreColumns, book: PolicyBook = book):
        with pytest.raises(ConfigurationError, match=why):
            fit_cascade(first, second, book, options, today=TODAY)

    refused("different rows", columns(book, first[1:], second)[0], b)
    refused("different rows", replace(a, header=replace(a.header, dataset_digest="x")), b)
    refused("different rows", replace(a, header=replace(a.header, policies=(SPAM,))), b)
    refused("a cascade takes two", b, b)
    refused("no scores", *columns(book, [], []))
    worded = replace(book.policies[SPAM], guidelines={"prompt": "Other.", "response": "Other."})
    refused("reworded", a, b, replace(book, policies={**book.policies, SPAM: worded}))


@pytest.fixture
def files(book_file: Path, tmp_path: Path) -> tuple[Path, Path]:
    book, (first, second) = load_book(book_file), both(3000)
    names = (("cheap@1", first), ("good@2", second))
    a, b = (
        write_scores(
            tmp_path / name / "scores.jsonl", header(book, (SPAM, THREAT), scorer=name), rows
        )
        for name, rows in names
    )
    return a, b


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        shieldgate, ["calibrate", *map(str, arguments)], env={"COLUMNS": "100"}
    )


def test_the_command_writes_a_cascade_and_keeps_what_was_said_of_the_first(
    files: tuple[Path, Path], book_file: Path, tmp_path: Path
) -> None:
    first, second = files
    out = tmp_path / "cascade.yaml"
    command = (second, "--cascade", first, "--policies", book_file, "--write", out)
    dry = run(*command, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "+  model: cheap" in dry.output
    assert not out.exists()

    shown = run(*command)
    assert shown.exit_code == 0, shown.output
    assert "good@2 is asked about" in shown.output
    assert "not known: 'shieldgate evaluate' measures it" in shown.output
    made = load_cascade(out)
    assert made.first.model == "cheap"
    assert made.scorers == ("cheap@1", "good@2")
    assert set(made.bands) == {SPAM, THREAT}
    told = made.bands[SPAM]["prompt"].provenance
    assert (told["dataset_digest"], told["most_changed"], told["rows"]) == ("d1", 0.02, 3000)
    assert told["held_out"]["lost"]["interval"][0] <= told["held_out"]["lost"]["share"]

    out.write_text(
        out.read_text().replace("model: cheap", "model: ./mine  # ours\n  dtype: float32")
    )
    for folder, seconds in (("cheap@1", 30.0), ("good@2", 300.0)):
        timing = {"rows": 3000, "seconds": seconds}
        (tmp_path / folder / "timing.json").write_text(json.dumps(timing))
    again = run(*command, "--most-changed", "0.05", "--may-flag")
    assert "cheap@1 took 10 ms a text and good@2 100 ms" in again.output
    assert "  model: ./mine  # ours\n  dtype: float32\n" in out.read_text()
    assert load_cascade(out).bands[SPAM]["prompt"].harmful
    run(*command, "--first", "starter")
    assert load_cascade(out).first.model == "starter"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "--target is missing"),
        (("--cascade", "x.jsonl", "--target", "fpr=0.1"), "Give one or the other"),
        (("--cascade", "x.jsonl"), "x.jsonl: can't be read"),
    ],
)
def test_what_does_not_go_together_is_refused(
    files: tuple[Path, Path], arguments: tuple[str, ...], why: str
) -> None:
    result = run(files[1], *arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert why in str(result.exception)


VIOLENCE = "shieldgemma/violence"
STARTER = Path(__file__).parents[1] / "service/shieldgate/starter"


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter without the last of its four layers, which computes less and knows less."""
    folder = tmp_path_factory.mktemp("halved") / "halved"
    model = AutoModelForCausalLM.from_pretrained(STARTER)
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers = 3
    model.config.layer_types = model.config.layer_types[:3]
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STARTER / name, folder)
    return folder


def test_two_real_scorers_are_put_together_and_the_seconds_decisions_stay(
    halved: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": row.prompt, "labels": dict(row.labels)} for row in contrast_rows()]
    chosen = random.Random(0).sample(rows, 400)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    out = tmp_path / "cascade.yaml"

    def command(*arguments: str | Path) -> str:
        shown = CliRunner().invoke(shieldgate, [str(a) for a in arguments])
        assert shown.exit_code in (0, 1), shown.output
        return shown.output

    def scores(name: str, *how: str | Path) -> dict[int, float]:
        folder = tmp_path / name
        command("evaluate", data, "--policy", VIOLENCE, "--device", "cpu", "--out", folder, *how)
        lines = (folder / "scores.jsonl").read_text().splitlines()[1:]
        return {row["row"]: row["margins"][VIOLENCE] for row in map(json.loads, lines)}

    second, first = scores("second"), scores("first", "--model", halved)
    shown = command(
        *("calibrate", tmp_path / "second/scores.jsonl", "--write", out),
        *("--cascade", tmp_path / "first/scores.jsonl", "--first", halved, "--most-changed", "0.1"),
    )
    assert "ms a text" in shown
    band = load_cascade(out).bands[VIOLENCE]["prompt"]
    assert band.safe
    together = scores("together", "--cascade", out)
    sure = {row for row, margin in first.items() if margin < band.safe.beyond}
    assert 0 < len(sure) < 400
    for row, margin in together.items():
        expected = band.safe.margin if row in sure else second[row]
        assert margin == pytest.approx(expected, abs=1e-4)
    lost = [row for row in sure if second[row] >= band.thresholds[0]]
    assert len(lost) < 0.1 * sum(margin >= band.thresholds[0] for margin in second.values())
