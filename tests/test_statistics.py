"""Figures against hand-computed cases, against scikit-learn, and against what must hold."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from shieldgate.statistics import (
    Curve,
    Estimate,
    Labels,
    Sample,
    Scores,
    bootstrap,
    brier,
    brier_skill,
    curve,
    difference,
    doubts,
    prevalence,
    rates,
    reliability,
)

RANKING = ("average_precision", "auroc", "optimal_f1")
NEED_BOTH = (*RANKING, "recall_at_1_percent_fpr", "f1", "precision", "brier_skill")


def arrays(labels: list[int], scores: list[float]) -> tuple[Labels, Scores]:
    return np.array(labels, np.bool_), np.array(scores, np.float64)


def sample(labels: list[int], scores: list[float], threshold: float = 0.5) -> Sample:
    known, given = arrays(labels, scores)
    return Sample(known, given, given >= threshold)


# Few distinct scores, so that ties are the rule.
rows = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 1.0])),
    min_size=2,
    max_size=40,
).filter(lambda drawn: len({label for label, _ in drawn}) == 2)


@st.composite
def both_classes(draw: st.DrawFn) -> tuple[Labels, Scores]:
    labels, scores = zip(*draw(rows), strict=True)
    return np.array(labels, np.bool_), np.array(scores, np.float64)


def noisy(rows: int, seed: int) -> tuple[Labels, Scores]:
    random = np.random.default_rng(seed)
    labels = random.random(rows) < 0.3
    return labels, 1 / (1 + np.exp(-random.normal(2 * labels - 1.5, 1.5)))


def test_a_curve_by_hand():
    found = curve(*arrays([1, 0, 1, 1, 0], [0.9, 0.8, 0.8, 0.3, 0.1]))
    assert found.thresholds.tolist() == [0.9, 0.8, 0.3, 0.1]
    assert found.true_positives.tolist() == [1, 2, 3, 3]
    assert found.false_positives.tolist() == [0, 1, 1, 2]
    assert found.precision == pytest.approx([1, 2 / 3, 3 / 4, 3 / 5])
    assert found.recall == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert found.average_precision() == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 4)
    # Of the six pairs, four are in order, one is tied, one is not.
    assert found.auroc() == pytest.approx(4.5 / 6)
    assert found.optimal_f1() == pytest.approx(6 / 7)
    assert found.optimal_threshold() == 0.3
    assert found.recall_at(0.49) == pytest.approx(1 / 3)
    assert found.recall_at(0.5) == pytest.approx(1)


def test_of_two_thresholds_that_are_as_good_the_higher_is_taken():
    found = curve(*arrays([1, 0, 0, 1], [0.9, 0.8, 0.7, 0.6]))
    assert found.f1[[0, 3]] == pytest.approx(2 / 3)
    assert found.optimal_threshold() == 0.9


def test_the_best_f1_is_had_at_its_threshold():
    labels, scores = noisy(500, seed=1)
    found = curve(labels, scores)
    threshold = found.optimal_threshold()
    assert threshold is not None
    assert rates(labels, scores >= threshold)["f1"] == pytest.approx(found.optimal_f1())


@given(both_classes())
def test_what_is_read_off_the_curve_is_what_scikit_learn_finds(drawn: tuple[Labels, Scores]):
    labels, scores = drawn
    found = curve(labels, scores)
    precision, recall, _ = theirs.precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    rate, hit, _ = theirs.roc_curve(labels, scores, drop_intermediate=False)
    assert found.average_precision() == pytest.approx(
        theirs.average_precision_score(labels, scores)
    )
    assert found.auroc() == pytest.approx(theirs.roc_auc_score(labels, scores))
    assert found.optimal_f1() == pytest.approx(f1.max())
    assert found.recall_at(0.05) == pytest.approx(hit[rate <= 0.05].max())


@given(both_classes(), st.sampled_from([0.0, 0.2, 0.5, 1.0, 1.1]))
def test_what_is_decided_and_said_is_what_scikit_learn_finds(
    drawn: tuple[Labels, Scores], threshold: float
):
    labels, scores = drawn
    flagged = scores >= threshold
    found = rates(labels, flagged)
    matrix = theirs.confusion_matrix(labels, flagged, labels=[False, True])
    assert found["f1"] == pytest.approx(theirs.f1_score(labels, flagged))
    assert found["recall"] == pytest.approx(theirs.recall_score(labels, flagged))
    assert found["false_positive_rate"] == pytest.approx(matrix[0, 1] / matrix[0].sum())
    if flagged.any():
        assert found["precision"] == pytest.approx(theirs.precision_score(labels, flagged))
    else:
        assert found["precision"] is None
    assert brier(labels, scores) == pytest.approx(theirs.brier_score_loss(labels, scores))


@given(both_classes(), st.data())
def test_a_weight_counts_as_that_many_copies_of_the_row(
    drawn: tuple[Labels, Scores], data: st.DataObject
):
    labels, scores = drawn
    counts = st.lists(st.integers(0, 3), min_size=labels.size, max_size=labels.size)
    weights = np.array(data.draw(counts))
    copies = np.repeat(np.arange(labels.size), weights)
    flagged = scores >= 0.5
    weighted = Sample(labels, scores, flagged).figures(weights)
    copied = Sample(labels[copies], scores[copies], flagged[copies]).figures()
    assert weighted.keys() == copied.keys()
    for name, value in copied.items():
        assert weighted[name] == (None if value is None else pytest.approx(value)), name


@given(both_classes())
def test_ranking_figures_do_not_change_with_the_scale_of_the_scores(drawn: tuple[Labels, Scores]):
    labels, scores = drawn
    before, after = curve(labels, scores), curve(labels, 7 * scores**3 - 2)
    for name in RANKING:
        assert getattr(before, name)() == pytest.approx(getattr(after, name)())


@given(both_classes())
def test_turning_the_scores_round_turns_auroc_round(drawn: tuple[Labels, Scores]):
    labels, scores = drawn
    assert curve(labels, -scores).auroc() == pytest.approx(1 - (curve(labels, scores).auroc() or 0))


def test_a_random_ranking_has_the_prevalence_as_average_precision():
    random = np.random.default_rng(0)
    labels, scores = random.random(20_000) < 0.3, random.random(20_000)
    assert curve(labels, scores).average_precision() == pytest.approx(0.3, abs=0.01)
    assert prevalence(labels) == pytest.approx(0.3, abs=0.01)


def test_a_perfect_ranking_has_one_everywhere():
    figures = sample([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0]).figures()
    for name in (*NEED_BOTH, "recall"):
        assert figures[name] == pytest.approx(1), name
    assert figures["brier"] == figures["calibration_error"] == figures["false_positive_rate"] == 0


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0]])
def test_what_needs_both_classes_is_undefined_without_them_and_never_zero(labels: list[int]):
    figures = sample(labels, [0.4, 0.6][: len(labels)]).figures()
    assert [name for name in NEED_BOTH if figures[name] is not None] == []


def test_one_class_alone_still_has_its_own_rate():
    harmful = sample([1, 1], [0.4, 0.6]).figures()
    assert (harmful["recall"], harmful["false_positive_rate"]) == (0.5, None)
    harmless = sample([0, 0], [0.4, 0.6]).figures()
    assert (harmless["recall"], harmless["false_positive_rate"]) == (None, 0.5)
    assert harmless["brier"] == pytest.approx((0.16 + 0.36) / 2)


def test_no_rows_have_no_figures_at_all():
    assert set(sample([], []).figures().values()) == {None}
    assert prevalence(np.array([], np.bool_)) is None


def test_flagging_nothing_has_no_precision_but_an_f1_of_zero():
    found = rates(np.array([True, False]), np.array([False, False]))
    assert found == {"f1": 0, "precision": None, "recall": 0, "false_positive_rate": 0}


def test_always_saying_the_prevalence_has_no_brier_skill():
    labels = np.array([True, False, False, False])
    assert brier_skill(labels, np.full(4, 0.25)) == pytest.approx(0)
    assert (brier_skill(labels, np.full(4, 0.9)) or 0) < 0


def test_calibration_error_by_hand():
    labels, said = arrays([1, 0, 1, 1], [0.05, 0.15, 0.95, 1.0])
    found = reliability(labels, said, bins=10)
    assert found.rows.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.frequency[[0, 1, 9]].tolist() == [1, 0, 1]
    assert found.error() == pytest.approx((0.95 + 0.15 + 2 * 0.025) / 4)


def test_probabilities_that_come_true_have_hardly_any_calibration_error():
    random = np.random.default_rng(0)
    said = random.random(50_000)
    assert reliability(random.random(50_000) < said, said).error() == pytest.approx(0, abs=0.01)
    assert reliability(random.random(50_000) < said**3, said).error() == pytest.approx(
        0.25, abs=0.01
    )


def test_intervals_hold_their_value_and_repeat_with_the_seed():
    judged = Sample(*noisy(300, seed=2), flagged=np.arange(300) % 2 == 0)
    found = bootstrap(judged.figures, 300, resamples=200)
    assert found == bootstrap(judged.figures, 300, resamples=200)
    assert found != bootstrap(judged.figures, 300, resamples=200, seed=1)
    for name in ("average_precision", "auroc", "recall", "false_positive_rate", "brier"):
        estimate = found[name]
        assert estimate.low is not None
        assert estimate.value is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high, name


def test_an_interval_leaves_out_a_fortieth_of_the_resamples_at_each_end():
    drawn = itertools.count(-1.0)  # the first are the rows themselves
    found = bootstrap(lambda weights: {"place": next(drawn)}, 5, resamples=1001)
    assert found == {"place": Estimate(-1.0, 25.0, 975.0)}


def test_an_interval_holds_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        labels = random.random(400) < 0.5
        flagged = random.random(400) < np.where(labels, 0.8, 0.1)
        found = bootstrap(
            lambda weights, labels=labels, flagged=flagged: rates(labels, flagged, weights),
            400,
            seed=seed,
            resamples=200,
        )["recall"]
        held += (found.low or 1) <= 0.8 <= (found.high or 0)
    assert 180 <= held <= 199


def test_undefined_figures_have_no_interval():
    judged = sample([1, 1, 1], [0.1, 0.9, 0.9])
    found = bootstrap(judged.figures, 3, resamples=20)
    assert found["auroc"] == Estimate(None)
    assert found["recall"].low is not None
    assert bootstrap(sample([], []).figures, 0)["recall"] == Estimate(None)


def test_a_scorer_does_not_differ_from_itself():
    judged = Sample(*noisy(200, seed=3), flagged=np.arange(200) % 2 == 0)
    found = bootstrap(difference(judged, judged), 200, resamples=50)
    assert set(found.values()) == {Estimate(0.0, 0.0, 0.0)}


def test_pairing_sees_a_difference_that_separate_intervals_hide():
    labels, scores = noisy(400, seed=4)
    worse = np.clip(scores + np.random.default_rng(5).normal(0, 0.15, 400), 0, 1)
    a, b = (Sample(labels, s, s >= 0.5) for s in (scores, worse))
    alone_a, alone_b = (bootstrap(s.figures, 400, resamples=300)["auroc"] for s in (a, b))
    paired = bootstrap(difference(a, b), 400, resamples=300)["auroc"]
    assert alone_b.high is not None
    assert alone_a.low is not None
    assert alone_b.high > alone_a.low
    assert paired.low is not None
    assert paired.low > 0


def test_few_rows_are_doubted_and_many_are_not():
    assert doubts(0, 0) == ["no rows with a known label"]
    assert doubts(0, 200) == ["no harmful rows: what needs both classes is undefined"]
    assert doubts(25, 1000) == ["only 25 harmful rows: recall is known to ± 20 points at best"]
    assert doubts(80, 40)[0].startswith("only 40 harmless rows")
    assert doubts(80, 200) == []


@settings(max_examples=30)
@given(both_classes())
def test_a_curve_ends_with_everything_flagged(drawn: tuple[Labels, Scores]):
    labels, scores = drawn
    found: Curve = curve(labels, scores)
    assert found.true_positives[-1] == found.positives == labels.sum()
    assert found.false_positives[-1] == found.negatives == (~labels).sum()
    assert (np.diff(found.thresholds) < 0).all()
