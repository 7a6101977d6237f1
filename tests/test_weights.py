"""Rows that stand for others count as many times as their weight says."""

import json
import random
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from scored import header, scored, write_scores
from test_cli_evaluate import done, refusal, scores

from shieldgate.evaluation.calibration import (
    CalibrationOptions,
    Fitted,
    Target,
    calibrate,
    fit_sigmoid,
)
from shieldgate.evaluation.report import build_report
from shieldgate.evaluation.score_columns import ScoreColumns, read_columns
from shieldgate.policy import PolicyBook, load_book
from shieldgate.statistics import Sample, bootstrap

pytestmark = pytest.mark.usefixtures("restored_logging")

POLICY = "shieldgemma/hate"


@pytest.fixture(scope="module")
def book() -> PolicyBook:
    return load_book()


def columns(book: PolicyBook, path: Path, *, repeated: bool) -> ScoreColumns:
    """Rows of which those with high margins stand for four, by weight or four times over."""
    found = []
    for row in scored([POLICY], 300):
        weight = 4 if row.margins[POLICY] > -1 else 1
        if repeated:
            found += [replace(row, row=10 * row.row + n) for n in range(weight)]
        else:
            found.append(replace(row, row=10 * row.row, weight=float(weight)))
    random.Random(0).shuffle(found)  # a file is in the order of scoring
    return read_columns(write_scores(path, header(book, [POLICY]), found))


def test_a_weight_is_so_many_rows_in_every_figure(book: PolicyBook, tmp_path: Path) -> None:
    weighted, repeated = (
        build_report(columns(book, tmp_path / f"{r}", repeated=r), book, book.profile("default"))
        for r in (False, True)
    )
    for ours, theirs in zip(weighted.whole, repeated.whole, strict=True):
        assert theirs.rows > ours.rows + 200
        assert ours.random == pytest.approx(theirs.random)
        assert ours.optimal_threshold == theirs.optimal_threshold
        for name, figure in ours.figures.items():
            assert figure.value == pytest.approx(theirs.figures[name].value), name
            narrow = theirs.figures[name]
            assert figure.high - figure.low > 0.95 * (narrow.high - narrow.low), "no more is known"
    whole = weighted.whole[0]
    assert weighted.details[0].curve[-1][1:] == (whole.harmful, whole.rows - whole.harmful)


def test_what_a_sample_is_weighted_by_and_what_is_drawn_of_it_multiply() -> None:
    labels, probabilities = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.3, 0.1])
    sample = Sample(labels, probabilities, probabilities > 0.5, np.array([1.0, 3.0, 2.0, 1.0]))
    assert sample.figures()["precision"] == 0.25
    assert sample.figures(np.array([2, 1, 0, 0]))["precision"] == 0.4
    assert sample.where(np.array([True, True, False, False])).figures()["precision"] == 0.25
    assert bootstrap(sample.figures, 4, resamples=20)["recall"].value == pytest.approx(1 / 3)


def test_thresholds_are_chosen_as_from_so_many_rows(book: PolicyBook, tmp_path: Path) -> None:
    def fitted(*, repeated: bool) -> Fitted:
        given = columns(book, tmp_path / f"{repeated}", repeated=repeated)
        if not repeated:
            given = replace(given, header=replace(given.header, options={"weight": "weight"}))
        options = CalibrationOptions(Target.parse("fpr=0.1"))
        [one] = calibrate(given, book, options, today=date(2026, 1, 1))
        assert isinstance(one, Fitted)
        return one

    weighted, repeated = fitted(repeated=False), fitted(repeated=True)
    assert weighted.calibration.threshold == repeated.calibration.threshold
    scores, once = weighted.calibration.scores, repeated.calibration.scores
    assert scores
    assert once
    assert scores.share_from(0) == pytest.approx(once.share_from(0), abs=1e-3)
    assert scores.rows < weighted.rows, "weights that differ are worth fewer rows"
    assert weighted.achieved.value == pytest.approx(repeated.achieved.value)
    assert weighted.calibration.provenance["weight"] == "weight"
    assert "weight" not in repeated.calibration.provenance


def test_temperature_and_bias_are_fitted_as_to_so_many_rows() -> None:
    drawn = np.random.default_rng(1)
    labels = drawn.random(4000) < 0.3
    margins = drawn.normal(np.where(labels, 2.0, -2.0), 2.0)
    weights = np.where(labels, 5.0, 1.0)
    ours = fit_sigmoid(margins, labels, weights)
    times = weights.astype(int)
    theirs = fit_sigmoid(np.repeat(margins, times), np.repeat(labels, times))
    assert ours.temperature == pytest.approx(theirs.temperature, rel=0.01)
    assert ours.bias == pytest.approx(theirs.bias, abs=0.02)
    assert abs(ours.bias - fit_sigmoid(margins, labels).bias) > 1


def test_evaluate_takes_weights_from_a_column_and_says_where_it_leaves_them_out(
    tmp_path: Path, hot_checkpoint: Path
) -> None:
    data, one = tmp_path / "rows.jsonl", ("--model", hot_checkpoint, "--policy", POLICY)
    rows = [
        {
            "id": f"r{n}",
            "prompt": f"zebra {n}",
            "labels": {"hate": n % 2},
            "weight": 20.0 if n % 4 == 1 else 1,
            "chosen": ["near"],
        }
        for n in range(12)
    ]
    bad = [{**rows[1], "weight": 0}, {**rows[1], "weight": "many"}, {"prompt": "x", "labels": {}}]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *bad]))
    told = "without --weight weight the figures are of these rows alone"
    plain = done(data, *one, "--out", tmp_path / "plain")
    assert told in " ".join(plain.stdout.split())
    assert "bad rows" not in plain.stderr
    weighted = done(data, *one, "--out", tmp_path / "weighted", "--weight", "weight")
    assert told not in " ".join(weighted.stdout.split())
    assert "each row counts by its 'weight'" in " ".join(weighted.stdout.split())
    head, found = scores(tmp_path / "weighted")
    assert head.options["weight"] == "weight"
    assert [row.weight for row in found] == [row["weight"] for row in rows]
    report = json.loads((tmp_path / "weighted/report.json").read_text())
    assert report["slices"][0]["random"] == pytest.approx((3 * 20 + 3) / (3 * 20 + 9))
    again = refusal(data, *one, "--out", tmp_path / "plain", "--weight", "weight")
    assert "holds the scores of another run" in again
    why = (
        "13 ('weight' is no number above 0)",
        "14 ('weight' is no",
        "15 (has no column 'weight')",
    )
    assert all(reason in weighted.stderr for reason in why)
