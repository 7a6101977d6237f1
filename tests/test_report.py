"""Reports: the figures, the tables, and the page in a real browser."""

import io
import json
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console
from scored import SCORER, header, scored, write_scores

from shieldgate.cli.report_tables import show, show_comparison
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.compare import compare
from shieldgate.evaluation.decisions import decide_columns
from shieldgate.evaluation.llm_comparator import to_llm_comparator
from shieldgate.evaluation.report import Report, Slice, build_report
from shieldgate.evaluation.score_columns import ScoreColumns, read_columns, to_columns
from shieldgate.evaluation.score_file import ScoredRow
from shieldgate.policy import Calibration, Policy, PolicyBook, Profile, decide
from shieldgate.types import DIRECTIONS, Action, Exchange, Explanation, Part, Score

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SPAM, THREAT = "acme/spam", "acme/threat"
WORDS = {"prompt": "No such prompts.", "response": "No such answers."}
FITTED = Calibration(0.3, temperature=2.0, bias=0.25)
BOOK = PolicyBook(
    {
        SPAM: Policy(SPAM, "Spam", WORDS, {"prompt": 0.5, "response": 0.6}),
        THREAT: Policy(
            THREAT,
            "Threats",
            WORDS,
            {"prompt": 0.5, "response": 0.5},
            calibrations={(SCORER, "prompt"): FITTED},
        ),
    },
    {
        "default": Profile("default", (SPAM, THREAT)),
        "strict": Profile("strict", (SPAM, THREAT), thresholds={(SPAM, "prompt"): 0.2}),
    },
    "book-1",
)
HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"


def columns(rows: list[ScoredRow], **changes: object) -> ScoreColumns:
    return to_columns(header(BOOK, (SPAM, THREAT), **changes), rows)


def report(rows: list[ScoredRow], profile: str = "default", **how: object) -> Report:
    return build_report(columns(rows), BOOK, BOOK.profile(profile), resamples=50, **how)


def slice_of(found: Report, policy: str | None, direction: str = "prompt") -> Slice:
    [one] = [
        s for s in found.slices if (s.policy, s.direction, s.group) == (policy, direction, None)
    ]
    return one


def printed(found: Report, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    show(found, console)
    return console.file.getvalue()


@pytest.fixture
def rows() -> list[ScoredRow]:
    return scored((SPAM, THREAT), 600, directions=DIRECTIONS)


def test_a_file_in_any_order_becomes_columns_in_the_datasets(tmp_path: Path, rows: list[ScoredRow]):
    rows[5] = replace(rows[5], margins={SPAM: 1.5}, labels={}, harmful=None, groups={})
    shuffled = sorted(rows, key=lambda row: row.margins[SPAM])
    path = write_scores(tmp_path / "scores.jsonl", header(BOOK, (SPAM, THREAT)), shuffled)
    found = read_columns(path)
    assert found.rows.tolist() == [row.row for row in rows]
    assert found.directions() == DIRECTIONS
    assert found.margins[SPAM].tolist() == [row.margins[SPAM] for row in rows]
    assert np.isnan(found.margins[THREAT]).tolist() == [n == 5 for n in range(600)]
    assert found.labels[SPAM].tolist() == [row.labels.get(SPAM, -1) for row in rows]
    assert found.harmful[4:7].tolist() == [rows[4].harmful, -1, rows[6].harmful]
    source = found.groups["source"]
    assert source.codes[5] == -1
    assert [source.values[c] for c in source.codes[:3]] == ["<s0>", "<s1>", "<s2>"]


def test_a_group_that_starts_late_is_missing_before(rows: list[ScoredRow]):
    late = [replace(row, groups={"source": "x"} if row.row == 2 else {}) for row in rows[:3]]
    assert columns(late).groups["source"].codes.tolist() == [-1, -1, 0]


def test_a_row_takes_few_bytes(rows: list[ScoredRow]):
    found = columns(rows)
    arrays = [found.rows, found.direction, found.harmful, found.groups["source"].codes]
    arrays += [*found.margins.values(), *found.labels.values()]
    assert sum(array.nbytes for array in arrays) / len(rows) <= 8 + 1 + 1 + 4 + 2 * (4 + 1)


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_rows_are_judged_as_decide_would_judge_them(profile: str, rows: list[ScoredRow]):
    chosen = BOOK.profile(profile)
    for judged in decide_columns(columns(rows), BOOK, chosen):
        here = [rows[i] for i in judged.at]
        assert {row.direction for row in here} == {judged.direction}
        for row, flagged, probability in zip(
            here, judged.sample.flagged, judged.sample.probabilities, strict=True
        ):
            pairs = [(BOOK.policies[p], Score(m)) for p, m in row.margins.items()]
            verdict = decide(chosen, pairs, row.direction, SCORER)
            calls = {call.policy: call for call in verdict.judgements}
            if judged.policy is None:
                assert flagged == (verdict.action is Action.BLOCKED)
                expected = max(call.probability for call in verdict.judgements)
            else:
                assert flagged == calls[judged.policy].violated
                assert judged.threshold == calls[judged.policy].threshold
                expected = calls[judged.policy].probability
            assert probability == pytest.approx(expected, rel=1e-12)


def test_unknown_labels_are_left_out_and_never_counted_as_harmless(rows: list[ScoredRow]):
    prompts = [row for row in rows if row.direction == "prompt"]
    found = report(rows)
    for policy in (SPAM, THREAT):
        one = slice_of(found, policy)
        assert one.rows == sum(policy in row.labels for row in prompts) < len(prompts)
        assert one.harmful == sum(row.labels.get(policy) == 1 for row in prompts)
    assert slice_of(found, None).rows == len(prompts)


def test_directions_and_groups_are_measured_apart(rows: list[ScoredRow]):
    found = report(rows)
    groups = [s for s in found.slices if s.group and s.policy is None]
    assert sorted((s.direction, s.group) for s in groups) == [
        (direction, ("source", f"<s{n}>")) for direction in DIRECTIONS for n in range(3)
    ]
    assert sum(s.rows for s in groups) == 600
    assert sum(slice_of(found, None, d).rows for d in DIRECTIONS) == 600


def test_the_thinned_curve_keeps_what_matters():
    rows = scored((SPAM, THREAT), 20_000)
    found = report(rows)
    whole = [s for s in found.slices if s.group is None]
    for one, detail in zip(whole, found.details, strict=True):
        thresholds = [threshold for threshold, _, _ in detail.curve]
        assert len(thresholds) < 1000
        assert one.optimal_threshold in thresholds
        assert detail.curve[-1][1:] == (one.harmful, one.rows - one.harmful)
        if one.threshold is not None:
            hits = [tp for threshold, tp, _ in detail.curve if threshold >= one.threshold]
            assert hits[-1] / one.harmful == pytest.approx(one.figures["recall"].value)
        area = sum(
            (tp - before) / one.harmful * tp / (tp + fp)
            for (_, before, _), (_, tp, fp) in zip(
                [(1, 0, 0), *detail.curve], detail.curve, strict=False
            )
        )
        assert area == pytest.approx(one.figures["average_precision"].value, abs=0.01)


def test_the_most_confident_mistakes_come_first(rows: list[ScoredRow]):
    found = report(rows)
    at = [s for s in found.slices if s.group is None].index(slice_of(found, SPAM))
    alarms = [m for m in found.details[at].mistakes if not m.harmful]
    wrong = [
        row
        for row in rows
        if row.direction == "prompt" and row.labels.get(SPAM) == 0 and row.margins[SPAM] >= 0
    ]
    wrong.sort(key=lambda row: -row.margins[SPAM])
    assert [m.row for m in alarms] == [row.row for row in wrong[:10]]
    assert {m.row for m in alarms} <= found.mistaken_rows


def test_the_same_scores_make_the_same_bytes_and_hold_no_text(
    tmp_path: Path, rows: list[ScoredRow]
):
    for name in ("one", "two"):
        report(rows, command="shieldgate evaluate data.jsonl").write(tmp_path / name)
    one, two = (tmp_path / name / "report.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    found = json.loads(one.read_text())
    assert found["header"]["dataset_digest"] == "d1"
    assert found["command"] == "shieldgate evaluate data.jsonl"
    assert "texts" not in found


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_full_disk_leaves_the_report_that_was_there(
    name: str, tmp_path: Path, rows: list[ScoredRow]
):
    report(rows).write(tmp_path)
    before = (tmp_path / name).read_bytes()
    (tmp_path / f".{name}.new").symlink_to("/dev/full")
    with pytest.raises(ConfigurationError, match=f"{name}: can't be written: No space left"):
        report(rows, command="another").write(tmp_path)
    assert (tmp_path / name).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}


def test_one_class_is_undefined_in_every_output(tmp_path: Path, rows: list[ScoredRow]):
    harmful = [replace(row, labels={SPAM: 1}, harmful=1) for row in rows]
    found = report(harmful)
    assert slice_of(found, SPAM).figures["average_precision"].value is None
    assert slice_of(found, SPAM).figures["recall"].value is not None
    assert "prompt, acme/threat: no rows with a known label" in found.notes
    assert (
        "prompt, all policies, acme/spam: no harmless rows: what needs both classes is undefined"
        in found.notes
    )
    assert "undefined" in printed(found)
    found.write(tmp_path)
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["slices"][0]["figures"]["auroc"] == {"value": None, "low": None, "high": None}


def test_no_rows_at_all_make_an_empty_report():
    found = report([])
    assert found.slices == []
    assert "AU-PRC" in printed(found)


def test_the_tables_fit_a_narrow_terminal_and_say_what_is_not_calibrated(rows: list[ScoredRow]):
    found = report(rows, notes=("3 bad rows were passed over",), command="shieldgate evaluate x")
    text = printed(found, width=80)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "3 bad rows were passed over" in text
    lead = slice_of(found, None).figures["recall_at_1_percent_fpr"]
    first, *_, table = text.partition("prompt: how well the scores rank")
    assert f"prompt: {100 * lead.value:.1f} % of the harmful found at 1 % false positives" in first
    assert table.split()[:2] == ["acme/", "rows"]
    assert table.split()[2] == "R@1%"
    assert f"not calibrated for {SCORER}, default thresholds decide" in text
    figure = slice_of(found, SPAM).figures["average_precision"]
    assert f"{figure.value:.3f}" in text
    assert "source=<s0>" in text


def test_the_command_to_have_it_again_can_be_pasted_from_a_narrow_terminal(
    rows: list[ScoredRow],
):
    command = "shieldgate evaluate " + "a" * 90 + " --out runs/mine"
    assert f"\n{command}\n" in printed(report(rows, command=command), width=80)


def test_a_mistake_names_the_policy_that_it_was_decided_by():
    def row(number: int, harmful: int, spam: float, threat: float) -> ScoredRow:
        labels = {SPAM: harmful, THREAT: harmful}
        return replace(
            base, row=number, harmful=harmful, labels=labels, margins={SPAM: spam, THREAT: threat}
        )

    base = scored((SPAM, THREAT), 1)[0]
    # THREAT's probabilities are those of FITTED, from 0.3 on violated; SPAM's from 0.5 on.
    found = report([row(0, 0, -0.1, -1.0), row(1, 0, 2.0, 1.0), row(2, 1, -1.0, -5.0)])
    together, spam, threat = (detail.mistakes for detail in found.details[:3])
    assert [(m.row, m.policy) for m in together] == [(1, SPAM), (0, THREAT), (2, SPAM)]
    assert {m.policy for m in spam} == {SPAM}
    assert {m.policy for m in threat} == {THREAT}


def test_reworded_policies_are_pointed_out(rows: list[ScoredRow]):
    reworded = replace(BOOK.policies[SPAM], guidelines={**WORDS, "prompt": "None at all."})
    book = replace(BOOK, policies={**BOOK.policies, SPAM: reworded})
    found = build_report(columns(rows), book, BOOK.profile("default"), resamples=2)
    assert "reworded since they were scored: acme/spam" in found.notes


def test_thresholds_that_were_chosen_on_these_rows_are_pointed_out(rows: list[ScoredRow]):
    def notes(digest: str, scorer: str = SCORER) -> str:
        made = replace(FITTED, provenance={"dataset_digest": digest})
        fitted = replace(BOOK.policies[SPAM], calibrations={(scorer, "prompt"): made})
        book = replace(BOOK, policies={**BOOK.policies, SPAM: fitted})
        found = build_report(columns(rows), book, BOOK.profile("default"), resamples=2)
        return "; ".join(found.notes)

    assert "looks better than it is: acme/spam" in notes("d1")
    assert "looks better" not in notes("d2") + notes("d1", "other@2")


def test_a_book_without_the_policies_is_refused(rows: list[ScoredRow]):
    book = replace(BOOK, policies={SPAM: BOOK.policies[SPAM]})
    with pytest.raises(ConfigurationError, match="lacks: acme/threat"):
        build_report(columns(rows), book, BOOK.profile("default"))


def test_rare_values_of_a_group_are_left_out_and_counted(rows: list[ScoredRow]):
    named = [
        replace(row, groups={"id": row.id if n % 2 else "common"}) for n, row in enumerate(rows)
    ]
    found = report(named)
    assert "id: 271 rarer values are left out of the figures" in found.notes
    assert ("id", "common") in {s.group for s in found.slices}


def test_two_scorers_are_compared_row_by_row_whatever_the_order(rows: list[ScoredRow]):
    worse = [
        replace(row, margins={p: m + 3 * np.sin(row.row) for p, m in row.margins.items()})
        for row in reversed(rows)
    ]
    found = compare(
        columns(rows), columns(worse, scorer="other@2"), (BOOK, BOOK), "default", resamples=100
    )
    assert [(pair.direction, pair.policy) for pair in found.pairs] == [
        (direction, policy) for direction in DIRECTIONS for policy in (None, SPAM, THREAT)
    ]
    for pair in found.pairs:
        gap = pair.difference["auroc"]
        assert gap.value == pytest.approx((pair.a["auroc"] or 0) - (pair.b["auroc"] or 0))
        assert (gap.low or 0) > 0
    console = Console(width=80, file=io.StringIO())
    show_comparison(found, console)
    text = console.file.getvalue()
    assert "B is other@2" in text
    assert "…" not in text


def test_comparing_other_rows_or_another_dataset_is_refused(rows: list[ScoredRow]):
    books = (BOOK, BOOK)
    with pytest.raises(ConfigurationError, match="Finish both runs"):
        compare(columns(rows), columns(rows[:-1]), books, "default", resamples=2)
    with pytest.raises(ConfigurationError, match="differ in content"):
        compare(columns(rows), columns(rows, dataset_digest="d2"), books, "default", resamples=2)


# The page


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing = "needs playwright: pip install playwright"
    else:
        missing = "" if chromium else "needs Chromium on the PATH"
    if missing:
        pytest.skip(missing)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A page that fails the test on any error or request of the page."""
    wrong: list[str] = []
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on(
        "request",
        lambda request: None if request.url.startswith("file:") else wrong.append(request.url),
    )
    yield opened
    opened.close()
    assert wrong == []


def opened(page: "Page", found: Report, folder: Path, texts: bool = True) -> None:
    shown = {row: Exchange(f"{HOSTILE} {row}", None) for row in found.mistaken_rows}
    found.write(folder, shown if texts else None)
    page.goto((folder / "report.html").as_uri())


def test_the_page_shows_the_figures_and_its_explorer_moves(
    page: "Page", tmp_path: Path, rows: list[ScoredRow]
):
    found = report(rows, command="shieldgate evaluate data.jsonl")
    opened(page, found, tmp_path)
    assert page.title() == f"{SCORER} on data.jsonl"
    body = page.locator("body").inner_text()
    assert f"{slice_of(found, SPAM).figures['average_precision'].value:.3f}" in body
    assert "shieldgate evaluate data.jsonl" in body
    assert page.locator("svg").count() == 4

    page.get_by_label("what to show").select_option("prompt: acme/spam")
    one, explorer = slice_of(found, SPAM), page.locator("#explorer")
    rows_of = explorer.locator("tr").all_inner_texts()
    assert rows_of[1].split() == ["threshold", rows_of[1].split()[1], "0.5"]
    f1 = f"{one.figures['f1'].value:.3f}"
    assert rows_of[2].split() == ["F1", f1, f1]

    def cells() -> list[int]:
        texts = explorer.locator("tr").all_inner_texts()[-2:]
        return [int(number) for line in texts for number in line.split()[1:]]

    slider = explorer.get_by_label("threshold")
    slider.press("End")
    assert cells() == [one.harmful, 0, one.rows - one.harmful, 0]
    slider.press("Home")
    assert cells() == [0, one.harmful, 0, one.rows - one.harmful]
    before = page.locator("circle.at").first.get_attribute("cx")
    slider.press("ArrowRight")
    assert page.locator("circle.at").first.get_attribute("cx") is not None
    slider.press("End")
    assert page.locator("circle.at").first.get_attribute("cx") != before


def test_every_slice_of_the_page_can_be_drawn(page: "Page", tmp_path: Path, rows: list[ScoredRow]):
    odd = [replace(row, labels={SPAM: row.labels.get(SPAM, 0), THREAT: 1}) for row in rows]
    found = report(odd)
    opened(page, found, tmp_path)
    for label in ("what to show", "group"):
        choices = page.get_by_label(label, exact=True)
        for option in choices.locator("option").all_inner_texts():
            choices.select_option(option)
    page.get_by_label("what to show").select_option("prompt: acme/threat")
    assert "Nothing to draw without rows of both classes" in page.locator("#detail").inner_text()


def test_mistakes_are_behind_a_click_blurred_and_never_markup(
    page: "Page", tmp_path: Path, rows: list[ScoredRow]
):
    opened(page, report(rows), tmp_path)
    text = page.locator("button.text").first
    assert not text.is_visible()
    page.locator("#detail summary").click()
    assert text.is_visible()
    assert re.search(r"row \d+, acme/(spam|threat) 0\.\d", page.locator("#detail").inner_text())
    assert "blur" in text.evaluate("element => getComputedStyle(element).filter")
    text.click()
    assert text.evaluate("element => getComputedStyle(element).filter") == "none"
    assert text.inner_text().startswith(HOSTILE)
    assert page.locator("img").count() == 0


def test_words_that_carried_a_mistake_are_marked_where_they_stand(
    page: "Page", tmp_path: Path, rows: list[ScoredRow]
):
    found, text = report(rows), f"🖕 {HOSTILE} crude fool"
    assert {m.row for m in found.overall_mistakes} <= found.mistaken_rows
    first = found.overall_mistakes[0]
    at = text.index("crude")
    parts = (Part(at, at + 5, 4.0), Part(at + 6, at + 10, 1.0), Part(0, 1, -1.0))
    found.write(
        tmp_path,
        {row: Exchange(text) for row in found.mistaken_rows},
        {first: Explanation(0, len(text), 3.0, (), parts)},
    )
    page.goto((tmp_path / "report.html").as_uri())
    page.locator("#detail summary").click()
    mistake = page.locator(".mistake", has_text=f"row {first.row}, {first.policy}")
    assert mistake.locator("mark").all_inner_texts() == ["crude", "fool"]
    assert mistake.locator(".text").inner_text() == text
    assert page.locator("mark").count() == 2
    assert page.locator("img").count() == 0


def test_mistakes_can_be_left_out(page: "Page", tmp_path: Path, rows: list[ScoredRow]):
    opened(page, report(rows), tmp_path, texts=False)
    assert HOSTILE not in (tmp_path / "report.html").read_text()
    assert "The texts were left out" in page.locator("#detail").inner_text()
    assert page.locator("button.text").count() == 0


def test_the_page_fits_a_narrow_screen(page: "Page", tmp_path: Path, rows: list[ScoredRow]):
    page.set_viewport_size({"width": 390, "height": 800})
    opened(page, report(rows), tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not page.locator(".notes ul").is_visible()
    lead = page.locator(".lead").first
    assert "of the harmful prompts found at 1 % false positives" in lead.inner_text()
    assert page.locator("table").first.bounding_box()["y"] < 800
    page.locator(".notes summary").click()
    assert page.locator(".notes ul").is_visible()


def test_the_charts_show_the_threshold_in_force_wherever_the_explorer_is(
    page: "Page", tmp_path: Path, rows: list[ScoredRow]
):
    found = report(rows)
    opened(page, found, tmp_path)
    assert page.locator(".force").count() == 0  # each policy has its own
    page.get_by_label("what to show").select_option("prompt: acme/threat")
    slider, cut = page.get_by_label("threshold"), page.locator(".cut")
    at_force = [page.locator(".force").get_attribute("x1"), cut.get_attribute("x1")]
    assert abs(float(at_force[0]) - float(at_force[1])) < 12
    rings = [ring.get_attribute("cx") for ring in page.locator(".ring").all()]
    recall = slice_of(found, THREAT).figures["recall"].value
    assert float(rings[0]) == pytest.approx(54 + recall * 374, abs=0.1)
    slider.fill("0")
    assert page.locator(".force").get_attribute("x1") == at_force[0]
    assert cut.get_attribute("x1") != at_force[1]
    assert [ring.get_attribute("cx") for ring in page.locator(".ring").all()] == rings


def test_a_page_without_rows_opens(page: "Page", tmp_path: Path):
    opened(page, report([]), tmp_path)
    assert "Where this comes from" in page.locator("body").inner_text()


def test_flips_of_two_scorers_are_counted_right_and_wrong(rows: list[ScoredRow]):
    other = [replace(row, margins={**row.margins, SPAM: row.margins[SPAM] + 2}) for row in rows]
    found = compare(columns(rows), columns(other), (BOOK, BOOK), "default", resamples=2)
    spam, threat = (
        next(p for p in found.pairs if (p.direction, p.policy) == ("prompt", policy))
        for policy in (SPAM, THREAT)
    )
    assert threat.only_a == threat.only_b == (0, 0)
    assert threat.same.value == 1
    assert (threat.same.low or 1) < 1
    assert spam.only_a == (0, 0)
    assert min(spam.only_b) > 0
    assert spam.same.value == pytest.approx(1 - sum(spam.only_b) / spam.rows)
    assert 0 < spam.moved["p5"] < spam.moved["mean"] < spam.moved["p95"]
    console = Console(width=80, file=io.StringIO())
    show_comparison(found, console)
    text = " ".join(console.file.getvalue().split())
    assert f"{spam.only_b[0]} right, {spam.only_b[1]} wrong" in text


def test_rows_side_by_side_are_what_llm_comparator_reads(rows: list[ScoredRow]):
    """By `client/lib/types.ts` of its repository at 60edc1e."""
    rows = rows[:200]
    worse = [
        replace(row, margins={p: m + np.sin(row.row) for p, m in row.margins.items()})
        for row in rows
    ]
    sides = columns(rows), columns(worse, scorer="other@2")

    def texts(wanted: Collection[int]) -> dict[int, Exchange]:
        return {n: Exchange(f"p{n}", None if n % 2 else f"r{n}") for n in wanted}

    made = to_llm_comparator(*sides, (BOOK, BOOK), "default", texts, most=90)
    found = json.loads(json.dumps(made, allow_nan=False))
    assert set(found) == {"metadata", "models", "examples"}
    assert found["metadata"]["source_path"] == "data.jsonl"
    assert [model["name"].split(",")[0] for model in found["models"]] == [SCORER, "other@2"]
    kinds = {field["name"]: field["type"] for field in found["metadata"]["custom_fields_schema"]}
    assert kinds["flagged"] == "per_model_boolean"
    assert kinds[SPAM] == kinds[THREAT] == "per_model_number"
    assert len(found["examples"]) == 90
    compared = compare(*sides, (BOOK, BOOK), "default", resamples=2).pairs
    flips = sum(sum(pair.only_a + pair.only_b) for pair in compared if pair.policy is None)
    decided = [example["custom_fields"]["decided"] for example in found["examples"]]
    assert sum(each.startswith("only") for each in decided) == flips
    for number, example in enumerate(found["examples"]):
        assert set(example) == {
            *("input_text", "tags", "output_text_a", "output_text_b", "score"),
            *("individual_rater_scores", "rationale_list", "custom_fields"),
        }
        assert example["custom_fields"].keys() == kinds.keys()
        row = rows[example["custom_fields"]["row"]]
        a, b = example["custom_fields"]["flagged"]
        assert (a != b) == decided[number].startswith("only") == (number < flips)
        if row.harmful is None:
            assert example["score"] is None
        else:
            assert example["score"] == (a == bool(row.harmful)) - (b == bool(row.harmful))
            assert example["individual_rater_scores"][0]["score"] == example["score"]
        assert example["output_text_a"].startswith("FLAGGED" if a else "not flagged")
        assert f"p{row.row}" in example["input_text"]
