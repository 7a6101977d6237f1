"""How far scores have moved: told when they have, and seldom when they have not."""

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeScorer, FixedPolicies, small_book
from prometheus_client import CollectorRegistry
from scipy.stats import chi2
from serving import gateway
from test_admin import asked, screen

from shieldgate.drift import (
    PARTS,
    WIDTH,
    Drift,
    ScoreHistogram,
    _chi_squared,
    bin_of,
    compare,
    in_parts,
)
from shieldgate.policy import Calibration, PolicyBook, load_book, shipped_policies
from shieldgate.telemetry import DriftWatch, Figures, Telemetry
from shieldgate.telemetry.score_window import ScoreWindow
from shieldgate.types import Action, Judgement, Score, Verdict

SPREAD = 2.0


def drawn(random: np.random.Generator, rows: int, moved: float = 0.0) -> Counter[int]:
    """Margins whose mean has moved by so many standard deviations, in bins."""
    return Counter(map(bin_of, random.normal(SPREAD * moved - 4, SPREAD, rows).tolist()))


def samples(rows: int, expected: int, moved: float, draws: int) -> Iterator[tuple[float, float]]:
    """Draw again and again, and give the index and what chance makes of it once in twenty."""
    random = np.random.default_rng(0)
    for _ in range(draws):
        reference = ScoreHistogram.made(drawn(random, expected))
        seen = in_parts(drawn(random, rows, moved), reference.cuts())
        found = compare(reference, seen, alpha=0.05)
        assert found
        yield found.psi, found.by_chance


# -- the index -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "expected"), [(120, 1000), (1000, 1000), (1000, 120)])
def test_where_nothing_moved_it_exceeds_chance_as_often_as_it_says(
    rows: int, expected: int
) -> None:
    found = np.array(list(samples(rows, expected, 0.0, 1000)))
    # What 1,000 draws at one in twenty give in 999 of 1,000 cases.
    assert 0.028 <= (found[:, 0] > found[:, 1]).mean() <= 0.075
    assert abs(found[:, 0].mean()) < 0.1 * found[:, 1].mean(), "its bias is off"


@pytest.mark.parametrize(
    ("moved", "states"), [(0.2, {"steady"}), (0.45, {"shifted"}), (0.8, {"drifted"})]
)
def test_a_drift_of_a_known_size_is_found_and_called_by_its_name(
    moved: float, states: set[str]
) -> None:
    """For a normal distribution that moves by d standard deviations the index is about d²."""
    random = np.random.default_rng(1)
    reference = ScoreHistogram.made(drawn(random, 5000))
    found = [
        compare(reference, in_parts(drawn(random, 5000, moved), reference.cuts()))
        for _ in range(50)
    ]
    assert {f.state for f in found if f} == states
    assert np.mean([f.psi for f in found if f]) == pytest.approx(moved**2, rel=0.2)


def test_few_scores_tell_nothing_though_their_index_is_high() -> None:
    """With 100 of each, an index of 0.25 comes of chance; the usual bounds know no numbers."""
    found = np.array(list(samples(100, 100, 0.0, 300)))
    raw = found[:, 0] + 7 * (1 / 100 + 1 / 100)  # what is taken off for eight parts
    assert (raw > 0.1).mean() > 0.5
    reference = ScoreHistogram.made(drawn(np.random.default_rng(0), 1000))
    assert compare(reference, [9.0] * 11) is None, "99 scores"
    assert compare(ScoreHistogram(0.0, (19.0,)), [500.0]) is None, "one part"


def test_chance_is_that_of_chi_squared() -> None:
    for freedom in range(4, PARTS):
        for p in (0.95, 0.999):
            assert _chi_squared(freedom, p) == pytest.approx(chi2.ppf(p, freedom), rel=0.015)


# -- histograms ----------------------------------------------------------------------------------


def test_margins_beyond_all_others_are_in_the_outermost_bins() -> None:
    assert bin_of(-0.1) == -1
    assert bin_of(0.25) == 1
    assert {bin_of(m) for m in (-1e9, -math.inf, -32.0)} == {bin_of(-32.0)} == {-128}
    assert {bin_of(m) for m in (1e9, math.inf, 31.9)} == {127}


def test_parts_are_about_equal_and_hold_every_row() -> None:
    reference = ScoreHistogram.made(drawn(np.random.default_rng(0), 1000))
    parts = in_parts(reference.bins(), reference.cuts())
    assert sum(parts) == 1000
    assert 8 <= len(parts) <= PARTS
    assert 1000 / 12 <= min(parts) <= max(parts) < 200
    # Ten rows a part, at least.
    few = ScoreHistogram.made(drawn(np.random.default_rng(0), 60))
    assert min(in_parts(few.bins(), few.cuts())) >= 10
    # Where a scorer says one thing of most texts, that is one part.
    heap = ScoreHistogram(-1.0, (5.0, 900.0, 5.0, 90.0))
    assert in_parts(heap.bins(), heap.cuts()) == [905, 95]


def test_the_share_above_a_margin_is_read_between_bins() -> None:
    histogram = ScoreHistogram(-1.0, (10.0, 20.0, 70.0))
    shares = [histogram.share_from(m) for m in (-5, -1, -1 + WIDTH / 2, -0.75, -0.5, 0, 5)]
    assert shares == pytest.approx([1, 1, 0.95, 0.9, 0.7, 0, 0])


def test_the_shipped_calibrations_say_which_scores_to_expect() -> None:
    book = load_book(shipped_policies())
    scorers = {scorer for policy in book.policies.values() for scorer, _ in policy.calibrations}
    assert len(scorers) == 2
    for scorer in scorers:
        expected = book.expected_scores(scorer)
        assert len(expected) == 12
        for (policy, direction), scores in expected.items():
            fitted = book.policies[policy].calibration(scorer, direction)
            assert fitted
            # Rows with weights are worth fewer.
            rows, weighted = fitted.provenance["rows"], "weight" in fitted.provenance
            assert rows / 2 < scores.rows < rows if weighted else scores.rows == rows


# -- the last day, in the gateway ----------------------------------------------------------------


def verdict(*margins: float, policy: str = "test/threat") -> Verdict:
    judged = tuple(Judgement(policy, 0.5, 0.5, False, True, Score(m)) for m in margins)
    return Verdict("prompt", Action.ALLOWED, judged)


def test_a_window_forgets_what_is_older_than_a_day() -> None:
    now = 0.0
    window = ScoreWindow(clock=lambda: now)
    for hour in range(100):
        now = 3600.0 * hour
        window.add(verdict(float(hour % 4)))
    assert len(window._slices) == 25, "bounded, though nobody reads it"
    assert window.counts()["test/threat", "prompt"].total() == 25
    now += 30 * 3600
    assert window.counts() == {}


def expecting(scores: ScoreHistogram | None) -> PolicyBook:
    book = small_book()
    fitted = Calibration(0.5, scores=scores)
    calibrations = {("fake@0", "prompt"): fitted}
    threat = replace(book.policies["test/threat"], calibrations=calibrations)
    return replace(book, policies={**book.policies, "test/threat": threat})


def expected_of_breads() -> ScoreHistogram:
    """A hundred texts at the margin of those in which the fake scorer finds nothing, and more."""
    return ScoreHistogram.made({bin_of(-6): 100, bin_of(0): 100, bin_of(3): 100})


async def test_the_gateway_shows_how_far_scores_have_moved(scorer: FakeScorer) -> None:
    """Of texts that were stopped and of scores from the cache, too; not of what failed."""
    scorer.margins[("crude", "test/threat")] = 3.0
    policies = FixedPolicies(expecting(expected_of_breads()))
    telemetry = Telemetry(CollectorRegistry())
    watch = DriftWatch(telemetry, lambda: policies.current.expected_scores("fake@0"))

    def metric(name: str, **labels: str) -> float | None:
        labels = {"policy": "test/threat", "direction": "prompt", **labels}
        if name.startswith("psi"):
            labels = {"expected": "calibration", **labels}
        return telemetry.registry.get_sample_value(f"shieldgate_drift_{name}", labels)

    async with gateway(scorer, policies=policies, telemetry=telemetry) as served:
        await screen(served, *["bread"] * 30, *["crude"] * 69)
        await watch.compare()
        assert math.isnan(metric("psi") or 0)
        [found] = (await asked(served, "/admin/figures"))["drift"]
        assert (found["scores"], found["psi"], found["state"]) == (99, None, None)
        await screen(served, "crude")
        scorer.fails_on = "nothing comes of this"
        await screen(served, scorer.fails_on)
        await watch.compare()
        assert [metric("scores", part=str(part)) for part in range(4)] == [30, 0, 70, 0]
        [found] = (await asked(served, "/admin/figures"))["drift"]
        assert found["psi"] == metric("psi") > 0.5
        assert found["by_chance"] == metric("psi_by_chance") < 0.5
        assert (found["scores"], found["state"]) == (100, "drifted")
        # What somebody accepted is told from what a calibration says.
        policies.current = expecting(replace(expected_of_breads(), of="900 decisions"))
        await watch.compare()
        assert metric("psi", expected="accepted") == found["psi"]
        assert math.isnan(metric("psi") or 0)
        assert (await asked(served, "/admin/figures"))["drift"][0]["of"] == "900 decisions"
        # From a book that expects nothing, no old figure stays.
        policies.current = expecting(None)
        await watch.compare()
        assert metric("scores", part="0") == 0
        assert math.isnan(metric("psi", expected="accepted") or 0)
        assert (await asked(served, "/admin/figures"))["drift"] == []


def test_of_processes_that_expect_different_scores_each_drift_is_read() -> None:
    """One of them has read the new policies, and the other is still to do so."""
    telemetry = Telemetry(CollectorRegistry())
    shown = {
        ("p", "prompt", "calibration"): Drift(0.9, 0.3),
        ("p", "prompt", "accepted"): Drift(0.2, 0.1),
    }
    telemetry.drifted(shown)
    found = Figures.of(telemetry.gathered().collect(), lambda route: True)
    assert found.drift == shown


JUDGING = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from shieldgate.drift import ScoreHistogram, bin_of
from shieldgate.telemetry import DriftWatch, Telemetry
from shieldgate.types import Action, Judgement, Score, Verdict

telemetry = Telemetry(CollectorRegistry())
expected = {("p", "prompt"): ScoreHistogram.made({bin_of(-6): 100, bin_of(3): 100})}
watch = DriftWatch(telemetry, lambda: expected)
for margin, times in zip(map(float, sys.argv[1:]), (100, 10)):
    judged = (Judgement("p", 0.5, 0.5, False, True, Score(margin)),)
    for _ in range(times):
        telemetry.verdict(Verdict("prompt", Action.ALLOWED, judged), ["p"])
while True:
    asyncio.run(watch.compare())
    for line in telemetry.page().decode().splitlines():
        if line.startswith("shieldgate_drift"):
            print(line)
    print(flush=True)
    sys.stdin.readline()
"""


def test_of_several_processes_the_scores_add_up_and_the_index_is_that_of_the_sum(
    tmp_path: Path,
) -> None:
    """Each process sees one kind of text above all; together they are as expected."""

    def start(*margins: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", JUDGING, *margins],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        )

    def page(process: "subprocess.Popen[str]") -> dict[str, float]:
        assert process.stdout
        lines = iter(lambda: process.stdout.readline().strip(), "")
        found = dict(line.rsplit(" ", 1) for line in lines)
        return {name: float(value) for name, value in found.items()}

    def again(process: "subprocess.Popen[str]") -> dict[str, float]:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        return page(process)

    psi = 'shieldgate_drift_psi{direction="prompt",expected="calibration",policy="p"}'
    parts = [
        f'shieldgate_drift_scores{{direction="prompt",part="{part}",policy="p"}}' for part in (0, 1)
    ]
    with start("-6", "3") as one:
        alone = page(one)
        assert alone[psi] > 0.5
        with start("3", "-6") as other:
            both = page(other)
            assert [both[part] for part in parts] == [110, 110]
            assert abs(both[psi]) < 0.02
            assert again(one) == both, "whoever is asked"
            other.kill()
            other.wait()
        assert again(one) == alone, "what a process saw goes with it"
        one.kill()
