"""From labelled scores to thresholds that decide."""

import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import typer
from checkpoints import WORDS
from hypothesis import given
from hypothesis import strategies as st
from scored import SCORER, header, scored, write_scores
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner, Result

from shieldgate.cli import app as shieldgate
from shieldgate.cli.calibrate import calibrate as command
from shieldgate.drift import bin_of
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.calibration import (
    CalibrationOptions,
    Fitted,
    Skipped,
    Target,
    _roundest,
    calibrate,
    fit_sigmoid,
)
from shieldgate.evaluation.score_columns import to_columns
from shieldgate.evaluation.score_file import ScoredRow
from shieldgate.evaluation.writeback import edit
from shieldgate.policy import Calibration, PolicyBook, decide, load_book, shipped_policies
from shieldgate.types import DIRECTIONS, Exchange, Judgement, Score

SPAM, THREAT = "acme/spam", "acme/threat"
TODAY = date(2026, 11, 20)
BOOK = """\
# What we don't want.
family: acme

policies:
  spam:  # the older one
    title: Spam
    guideline:
      prompt: >-
        No spam
        in prompts.
      response: No spam in answers.

  # Asked for by legal.
  threat:
    title: Threats
    threshold: {prompt: 0.40, response: 0.6}
    guideline: {prompt: "No threats in prompts.", response: No threats in answers.}
    calibrated:
      # kept for the old server
      scorer@0:
        prompt: {threshold: 0.25}  # agreed

profiles:
  default:
    policies: [acme/spam, acme/threat]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A book of one file, in a directory of its own."""
    path = tmp_path / "policies" / "acme.yaml"
    path.parent.mkdir()
    path.write_text(BOOK)
    return path


@pytest.fixture
def scores(file: Path, tmp_path: Path) -> Path:
    rows = scored((SPAM, THREAT), 400, directions=DIRECTIONS)
    return write_scores(tmp_path / "scores.jsonl", header(load_book(file), (SPAM, THREAT)), rows)


def run(*arguments: str | Path, columns: int = 120) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})


def made(
    book: PolicyBook,
    rows: Sequence[ScoredRow],
    options: CalibrationOptions,
    only: Sequence[str] = (),
) -> list[Fitted | Skipped]:
    columns = to_columns(header(book, (SPAM, THREAT)), rows)
    return list(calibrate(columns, book, options, today=TODAY, only=only))


def judged(book: PolicyBook, row: ScoredRow, policy: str, scorer: str = SCORER) -> Judgement:
    pair = (book.policies[policy], Score(row.margins[policy]))
    return decide(book.profile("default"), [pair], row.direction, scorer).judgements[0]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("optimal-f1", Target("optimal-f1")),
        ("fpr=0.01", Target("fpr", 0.01)),
        ("recall=0.95", Target("recall", 0.95)),
        ("precision=0.9", Target("precision", 0.9)),
    ],
)
def test_a_target_reads_as_it_is_written(text: str, target: Target):
    assert Target.parse(text) == target
    assert str(target) == text


@pytest.mark.parametrize("text", ["", "f1", "fpr", "fpr=", "fpr=1", "fpr=-1", "optimal-f1=1"])
def test_what_is_no_target_is_refused_with_those_there_are(text: str, scores: Path):
    result = run(scores, "--target", text)
    assert isinstance(result.exception, ConfigurationError)
    assert "write optimal-f1, fpr=0.01, recall=0.95 or precision=0.9" in str(result.exception)


@pytest.mark.parametrize("text", ["fpr=0.05", "recall=0.9", "precision=0.8"])
def test_a_target_is_met_and_one_score_further_would_err_more_or_miss_it(text: str, file: Path):
    rows, book = scored((SPAM, THREAT), 300), load_book(file)
    target = Target.parse(text)
    for one in made(book, rows, CalibrationOptions(target)):
        assert isinstance(one, Fitted)
        known = [r for r in rows if one.policy in r.labels]
        labels = np.array([r.labels[one.policy] == 1 for r in known])
        said = np.array([one.calibration.probability(r.margins[one.policy]) for r in known])

        def figure(flagged: np.ndarray, labels: np.ndarray = labels) -> float:
            over = {"fpr": ~labels, "recall": labels, "precision": flagged}[target.aim]
            wanted = flagged if target.aim != "precision" else labels
            return float(wanted[over].mean())

        threshold = one.calibration.threshold
        here, met = figure(said >= threshold), one.achieved.value
        assert here == pytest.approx(met)
        higher, lower = said[said > threshold].min(), said[said < threshold].max()
        if target.aim == "fpr":
            assert here <= 0.05 < figure(said >= said[(said < threshold) & ~labels].max())
        elif target.aim == "recall":
            assert figure(said > higher) < 0.9 <= here
        else:
            assert here >= 0.8
            assert all(figure(said >= s) < 0.8 for s in said[said <= lower])


def test_the_best_f1_beats_every_other_threshold(file: Path):
    rows, book = scored((SPAM, THREAT), 200), load_book(file)
    (one,) = made(book, rows, CalibrationOptions(Target("optimal-f1")), [SPAM])
    assert isinstance(one, Fitted)
    known = [r for r in rows if SPAM in r.labels]
    labels = np.array([r.labels[SPAM] == 1 for r in known])
    margins = np.array([r.margins[SPAM] for r in known])
    best = max(
        2 * (labels & (margins >= m)).sum() / (labels.sum() + (margins >= m).sum()) for m in margins
    )
    assert one.achieved.value == pytest.approx(best)


def test_what_weighted_rows_gave_is_written_too(file: Path, tmp_path: Path):
    rows = [replace(r, weight=3.34 if n % 3 else 1.0) for n, r in enumerate(scored((SPAM,), 400))]
    path = write_scores(tmp_path / "weighted.jsonl", header(load_book(file), [SPAM]), rows)
    result = run(path, "--target", "fpr=0.05", "--write", file)
    assert result.exit_code == 0, result.output
    written = load_book(file).policies[SPAM].calibration(SCORER, "prompt")
    assert written
    assert written.scores
    assert 0 < written.scores.rows < 400


def test_the_new_threshold_decides_and_only_for_its_scorer(file: Path, scores: Path):
    rows = scored((SPAM, THREAT), 400, directions=DIRECTIONS)
    before = load_book(file)
    assert run(scores, "--target", "fpr=0.05", "--write", file).exit_code == 0
    after = load_book(file)
    for policy in (SPAM, THREAT):
        for direction in DIRECTIONS:
            here = [r for r in rows if r.direction == direction and r.labels.get(policy) == 0]
            calls = [judged(after, row, policy) for row in here]
            assert all(call.calibrated for call in calls)
            assert sum(call.violated for call in calls) == int(0.05 * len(here))
            assert calls != [judged(before, row, policy) for row in here]
            assert [judged(after, row, policy, "scorer@2") for row in here] == [
                judged(before, row, policy, "scorer@2") for row in here
            ]


def test_a_write_only_adds_lines_and_says_where_they_come_from(file: Path, scores: Path):
    run(scores, "--target", "fpr=0.05", "--write", file, "--policy", SPAM)
    old, new = BOOK.splitlines(), file.read_text().splitlines()
    start = old.index("      response: No spam in answers.") + 1
    added = len(new) - len(old)
    assert new[:start] + new[start + added :] == old
    assert new[start : start + 2] == ["    calibrated:", f"      {SCORER}:"]
    entry = load_book(file).policies[SPAM].calibration(SCORER, "response")
    assert entry is not None
    provenance = dict(entry.provenance)
    assert provenance.pop("achieved")["false_positive_rate"] <= 0.05
    assert provenance.pop("held_out").keys() == {"false_positive_rate", "interval"}
    assert provenance.pop("rows") > provenance.pop("harmful") > 20
    assert date.fromisoformat(provenance.pop("date"))
    assert provenance == {
        "target": "fpr=0.05",
        "dataset": "data.jsonl",
        "dataset_digest": "d1",
        "identity": "1|float32|chat|none",
        "shieldgate": "0.1.0",
    }


def test_the_scores_that_a_threshold_was_chosen_on_are_written_beside_it(file: Path, scores: Path):
    run(scores, "--target", "fpr=0.05", "--write", file)
    [line] = [line for line in file.read_text().splitlines() if "scores: {lowest" in line][:1]
    assert len(line) < 400
    for direction in DIRECTIONS:
        fitted = load_book(file).policies[SPAM].calibration(SCORER, direction)
        assert fitted.scores.rows == fitted.provenance["rows"]
        known = [
            row.margins[SPAM]
            for row in scored((SPAM, THREAT), 400, directions=DIRECTIONS)
            if SPAM in row.labels and row.direction == direction
        ]
        assert fitted.scores.bins()[bin_of(known[0])] == sum(
            bin_of(margin) == bin_of(known[0]) for margin in known
        )


def test_other_scorers_and_comments_stay_and_a_second_write_replaces_the_first(
    file: Path, scores: Path
):
    run(scores, "--target", "fpr=0.05", "--write", file)
    first = load_book(file).policies[THREAT]
    run(scores, "--target", "recall=0.9", "--write", file)
    second = load_book(file).policies[THREAT]
    assert second.calibration("scorer@0", "prompt") == Calibration(0.25)
    assert second.calibration(SCORER, "prompt") != first.calibration(SCORER, "prompt")
    assert set(second.calibrations) == set(first.calibrations)
    for kept in ("# kept for the old server", "# agreed", "# Asked for by legal.", "{prompt: 0.40"):
        assert file.read_text().count(kept) == 1


def test_a_file_that_is_a_book_by_itself_may_have_other_yaml_beside_it(
    file: Path, scores: Path, tmp_path: Path
):
    (file.parent / "compose.yaml").write_text("services: {}\n")
    assert run(scores, "--target", "fpr=0.05", "--write", file).exit_code == 0
    assert load_book(file).policies[SPAM].calibration(SCORER, "prompt")
    refused = run(scores, "--target", "fpr=0.05", "--write", tmp_path)
    assert str(refused.exception) == f"{tmp_path}: there is no file of that name."


def test_the_shipped_files_can_be_written_too(tmp_path: Path):
    directory = shutil.copytree(shipped_policies(), tmp_path / "policies")
    book = load_book(directory)
    policies = tuple(p for p in book.policies if p.startswith("shieldgemma/"))
    scores = write_scores(tmp_path / "scores.jsonl", header(book, policies), scored(policies, 200))
    result = run(scores, "--target", "optimal-f1", "--write", directory / "shieldgemma.yaml")
    assert result.exit_code == 0, result.output
    assert "the profile strict has thresholds of its own, which win" in result.stderr
    written = load_book(directory)
    assert all(p.calibration(SCORER, "prompt") for p in map(written.policies.get, policies) if p)
    lines = (directory / "shieldgemma.yaml").read_text().splitlines()
    assert [
        line
        for line in (shipped_policies() / "shieldgemma.yaml").read_text().splitlines()
        if line not in lines
    ] == []


def test_a_dry_run_shows_the_diff_and_changes_nothing(file: Path, scores: Path):
    result = run(scores, "--target", "fpr=0.05", "--write", file, "--dry-run")
    assert result.exit_code == 0
    assert f"+++ {file}\n" in result.stdout
    assert "+            target: fpr=0.05\n" in result.stdout
    assert file.read_text() == BOOK
    assert [p.name for p in file.parent.iterdir()] == ["acme.yaml"]


def test_without_a_file_the_figures_are_shown(file: Path, scores: Path):
    result = run(scores, "--target", "optimal-f1", "--policies", file)
    assert result.exit_code == 0
    assert "held out" in result.stdout
    assert "spam" in result.stdout


def test_scores_without_labels_of_policies_are_refused_with_the_flag_that_gives_them(
    tmp_path: Path, file: Path
):
    rows = [replace(row, labels={}) for row in scored((SPAM, THREAT), 40)]
    bare = write_scores(tmp_path / "s.jsonl", header(load_book(file), (SPAM, THREAT)), rows)
    refused = run(bare, "--target", "fpr=0.05", "--policies", file).exception
    assert isinstance(refused, ConfigurationError)
    assert "--map label:hate=COLUMN" in str(refused)


def test_what_is_skipped_for_one_reason_is_said_in_one_line(tmp_path: Path, file: Path):
    rows = [replace(row, labels={SPAM: 0, THREAT: 0}) for row in scored((SPAM, THREAT), 40)]
    few = write_scores(tmp_path / "s.jsonl", header(load_book(file), (SPAM, THREAT)), rows)
    skipped = run(few, "--target", "fpr=0.05", "--policies", file)
    assert skipped.exit_code == 1
    assert f"skipped {SPAM}, {THREAT} (prompt): no row is known to be harmful" in skipped.stderr


@pytest.mark.parametrize(
    ("target", "cost"), [("fpr=0.05", "recall"), ("recall=0.95", "false_positive_rate")]
)
def test_what_a_target_costs_stands_beside_it(file: Path, scores: Path, target: str, cost: str):
    book = load_book(file)
    rows = scored((SPAM, THREAT), 400, directions=DIRECTIONS)
    [found] = [
        one
        for one in made(book, rows, CalibrationOptions(Target.parse(target)), [SPAM])
        if isinstance(one, Fitted) and one.direction == "prompt"
    ]
    figures = {Target.parse(target).figure: found.held_out.value, cost: found.cost.value}
    harmful, harmless = found.harmful, found.rows - found.harmful
    flagged = figures["recall"] * harmful + figures["false_positive_rate"] * harmless
    assert found.flagged * found.rows == pytest.approx(flagged)
    shown = run(scores, "--target", target, "--policies", file, columns=80).stdout
    assert f"{'FPR' if cost != 'recall' else cost}," in shown
    assert "of 1,000" in shown
    assert f"{1000 * found.flagged:.0f}\n" in re.sub(r" +\n", "\n", shown)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_line_endings_and_links_stay(tmp_path: Path, file: Path, scores: Path):
    file.write_bytes(BOOK.replace("\n", "\r\n").encode())
    link = tmp_path / "book" / "acme.yaml"
    link.parent.mkdir()
    link.symlink_to(file)
    assert run(scores, "--target", "fpr=0.05", "--write", link).exit_code == 0
    assert link.is_symlink()
    assert b"\n" not in file.read_bytes().replace(b"\r\n", b"")
    assert load_book(file).policies[SPAM].calibration(SCORER, "prompt") is not None


def test_a_file_that_cannot_be_edited_line_by_line_is_refused_and_kept(file: Path, scores: Path):
    text = BOOK.replace("  spam:  # the older one\n    title: Spam\n    guideline:\n", "") + ""
    text = text.replace(
        "      prompt: >-\n        No spam\n        in prompts.\n"
        "      response: No spam in answers.\n",
        "  spam: {title: Spam, guideline: {prompt: No spam in prompts.,"
        " response: No spam in answers.}}\n",
    )
    file.write_text(text)
    result = run(scores, "--target", "fpr=0.05", "--write", file)
    assert isinstance(result.exception, ConfigurationError)
    assert "without braces" in str(result.exception)
    assert file.read_text() == text


def test_reworded_guidelines_are_refused_unless_their_policy_is_left_out(file: Path, scores: Path):
    file.write_text(BOOK.replace("No threats in prompts.", "No threats at all."))
    refused = run(scores, "--target", "fpr=0.05", "--write", file)
    assert isinstance(refused.exception, ConfigurationError)
    assert "acme/threat were reworded since they were scored" in str(refused.exception)
    assert run(scores, "--target", "fpr=0.05", "--write", file, "--policy", "spam").exit_code == 0


def test_unknown_policies_and_files_outside_the_book_are_refused(
    tmp_path: Path, file: Path, scores: Path
):
    unknown = run(scores, "--target", "fpr=0.05", "--write", file, "--policy", "acme/x")
    assert "--policy: There is no policy named 'acme/x'." in str(unknown.exception)
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(BOOK)
    outside = run(scores, "--target", "fpr=0.05", "--write", elsewhere, "--policies", file)
    assert "is no part of the policy book" in str(outside.exception)


def test_what_cannot_be_calibrated_is_skipped_with_a_reason_and_exit_code_1(
    tmp_path: Path, file: Path
):
    rows = [
        replace(row, labels={p: 0 if p == THREAT else known for p, known in row.labels.items()})
        for row in scored((SPAM, THREAT), 300)
    ]
    scores = write_scores(tmp_path / "scores.jsonl", header(load_book(file), (SPAM, THREAT)), rows)
    result = run(scores, "--target", "optimal-f1", "--write", file)
    assert result.exit_code == 1
    assert "skipped acme/threat (prompt): no row is known to be harmful" in result.stderr
    book = load_book(file)
    assert book.policies[SPAM].calibration(SCORER, "prompt") is not None
    assert book.policies[THREAT].calibration(SCORER, "prompt") is None


def test_a_target_out_of_reach_is_skipped_with_what_is_reachable(file: Path):
    rows = scored((SPAM, THREAT), 300, skill=0.0)
    (one,) = made(load_book(file), rows, CalibrationOptions(Target("precision", 0.99)), [SPAM])
    assert isinstance(one, Skipped)
    assert one.why.startswith("no threshold gives precision=0.99: the highest precision is 0.")


def test_held_out_rows_are_not_flattered_by_a_threshold_chosen_on_them(file: Path):
    gaps = []
    for seed in range(5):
        rows = scored((SPAM, THREAT), 60, seed=seed, skill=1.0)
        (one,) = made(load_book(file), rows, CalibrationOptions(Target("optimal-f1")), [SPAM])
        assert isinstance(one, Fitted)
        gaps.append((one.achieved.value or 0) - (one.held_out.value or 0))
    assert min(gaps) >= 0
    assert max(gaps) > 0.05


def test_the_same_seed_makes_the_same_and_another_deals_the_rows_otherwise(file: Path):
    book, rows = load_book(file), scored((SPAM, THREAT), 200)
    target = Target("optimal-f1")
    assert made(book, rows, CalibrationOptions(target)) == made(
        book, rows, CalibrationOptions(target)
    )
    (one,), (other,) = (
        made(book, rows, CalibrationOptions(target, seed=s), [SPAM]) for s in (0, 1)
    )
    assert isinstance(one, Fitted)
    assert isinstance(other, Fitted)
    assert one.calibration.threshold == other.calibration.threshold
    assert one.held_out != other.held_out


def test_a_fit_mends_probabilities_on_rows_it_never_saw(file: Path):
    rows = [
        replace(row, margins={p: 3 * m + 2 for p, m in row.margins.items()})
        for row in scored((SPAM, THREAT), 800)
    ]
    (one,) = made(load_book(file), rows, CalibrationOptions(Target("fpr", 0.05), fit=True), [SPAM])
    assert isinstance(one, Fitted)
    assert one.errors is not None
    before, after = one.errors
    assert before is not None
    assert after is not None
    assert after < before / 2
    assert one.calibration.provenance["calibration_error"] == {
        "before": round(before, 4),
        "held_out": round(after, 4),
    }


def test_an_earlier_fit_stays_when_only_the_threshold_is_made_anew(file: Path, scores: Path):
    run(scores, "--target", "fpr=0.05", "--fit", "--write", file)
    fitted = load_book(file).policies[SPAM].calibration(SCORER, "prompt")
    run(scores, "--target", "recall=0.9", "--write", file)
    moved = load_book(file).policies[SPAM].calibration(SCORER, "prompt")
    assert fitted is not None
    assert moved is not None
    assert fitted.temperature != 1
    assert moved.provenance["target"] == "recall=0.9"
    assert moved.provenance["temperature_and_bias"] == {
        key: fitted.provenance[key] for key in ("dataset", "dataset_digest", "date")
    }
    assert (moved.temperature, moved.bias) == (fitted.temperature, fitted.bias)
    assert moved.threshold != fitted.threshold


def test_the_fit_finds_the_temperature_and_bias_that_made_the_labels():
    random_ = np.random.default_rng(0)
    margins = random_.normal(0, 4, 40_000)
    labels = random_.random(40_000) < 1 / (1 + np.exp(-(margins / 2.5 - 0.7)))
    found = fit_sigmoid(margins, labels)
    assert found.temperature == pytest.approx(2.5, rel=0.03)
    assert found.bias == pytest.approx(-0.7, abs=0.05)
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(margins[:, None], labels)
    assert 1 / found.temperature == pytest.approx(theirs.coef_[0, 0], rel=1e-3)
    assert found.bias == pytest.approx(theirs.intercept_[0], rel=2e-3)


def test_the_fit_stays_finite_where_a_margin_separates_the_classes():
    found = fit_sigmoid(np.array([-60.0, -50, -55, 40, 50, 60]), np.array([False] * 3 + [True] * 3))
    assert 0 < found.temperature < math.inf
    assert found.probability(-50) < 0.25
    assert found.probability(40) > 0.75


def test_margins_that_separate_few_rows_are_no_surer_than_platts_softened_labels():
    """On two values a sigmoid fits the mean label of each: 1 / (3 + 2), and (4 + 1) / (4 + 2)."""
    found = fit_sigmoid(np.array([-50.0] * 3 + [40.0] * 4), np.array([False] * 3 + [True] * 4))
    assert found.probability(-50) == pytest.approx(1 / 5, rel=1e-3)
    assert found.probability(40) == pytest.approx(5 / 6, rel=1e-3)


def test_margins_that_fall_with_harm_are_skipped(file: Path):
    rows = scored((SPAM, THREAT), 300, skill=-3.0)
    (one,) = made(load_book(file), rows, CalibrationOptions(Target("fpr", 0.05), fit=True), [SPAM])
    assert isinstance(one, Skipped)
    assert "don't rise with harm" in one.why


def test_margins_that_are_all_the_same_have_no_temperature(file: Path):
    rows = [replace(r, margins=dict.fromkeys(r.margins, 1.5)) for r in scored((SPAM,), 100)]
    (one,) = made(load_book(file), rows, CalibrationOptions(Target("optimal-f1"), fit=True), [SPAM])
    assert isinstance(one, Skipped)
    (one,) = made(load_book(file), rows, CalibrationOptions(Target("recall", 0.9)), [SPAM])
    assert isinstance(one, Fitted)
    assert one.achieved.value == 1


def test_without_numpy_it_says_what_to_install_and_the_other_commands_do_without():
    program = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "import shieldgate.cli\n"
        "from shieldgate.cli.calibrate import calibrate\n"
        "calibrate('scores.jsonl', target='optimal-f1')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert "Calibrating needs numpy" in result.stderr
    assert "pip install 'shieldgate[eval]'" in result.stderr


chances = st.floats(0, 1) | st.sampled_from([1e-300, 1e-12, 1 - 2**-53, 0.5, 0.5 + 2**-53])


@given(chances, chances)
def test_a_threshold_parts_two_scores_however_close_they_are(a: float, b: float):
    below, at = sorted((a, b))
    if below == at:
        return
    assert below < _roundest(below, at) <= at


def test_a_threshold_has_no_more_digits_than_it_needs():
    assert _roundest(0.4871234, 0.5129876) == 0.5
    assert _roundest(0.000123, 0.000141) == 0.00013
    assert _roundest(0.0, 0.5) == 0.2


def test_very_small_thresholds_survive_the_file(file: Path):
    rows = [
        replace(row, margins={p: m - 40 for p, m in row.margins.items()})
        for row in scored((SPAM, THREAT), 200)
    ]
    book = load_book(file)
    fitted = [
        f
        for f in made(book, rows, CalibrationOptions(Target("fpr", 0.05)))
        if isinstance(f, Fitted)
    ]
    made_of = {(one.policy, one.direction): one.calibration for one in fitted}
    edit(file, file, SCORER, made_of).save()
    written = load_book(file).policies[SPAM].calibration(SCORER, "prompt")
    assert written == fitted[0].calibration
    assert 0 < written.threshold < 1e-12


@pytest.mark.usefixtures("restored_logging")
def test_from_a_checkpoints_own_scores_to_its_next_verdict(
    hot_checkpoint: Path, file: Path, tmp_path: Path
):
    from shieldgate.scoring.local import load_engine

    engine = load_engine(str(hot_checkpoint), device="cpu")
    policy = load_book(file).policies[SPAM]
    texts = [" ".join(random.Random(n).choices(WORDS, k=12)) for n in range(40)]

    def margin(text: str) -> float:
        prepared = engine.prepare(Exchange(text), [policy])
        return prepared.scores(engine.forward(prepared.work))[0].margin

    margins = {text: margin(text) for text in texts}
    cut = sorted(margins.values())[-12]
    rows = [
        ScoredRow(n, str(n), "prompt", {SPAM: m}, {SPAM: int(m >= cut)}, None)
        for n, m in enumerate(margins.values())
    ]
    head = header(load_book(file), [SPAM], scorer=engine.identity.name)
    scores = write_scores(tmp_path / "scores.jsonl", head, rows)
    result = run(scores, "--target", "optimal-f1", "--write", file)
    assert result.exit_code == 0, result.output

    ranked = sorted(texts, key=margins.__getitem__)
    # The default threshold would decide both alike.
    assert margins[ranked[-13]] > 0 or margins[ranked[-12]] < 0
    options = ["--model", str(hot_checkpoint), "--device", "cpu", "--policies", str(file)]
    for text, violated in ((ranked[-12], True), (ranked[-13], False)):
        said = CliRunner().invoke(shieldgate, ["score", text, "--json", *options])
        assert said.exit_code == 0, said.output
        found = json.loads(said.stdout)["results"][0]["policies"][SPAM]
        assert (found["calibrated"], found["violated"]) == (True, violated)
