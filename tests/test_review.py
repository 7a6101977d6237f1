"""What a person is asked about is chosen with a known chance, and answers become rows at once."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import small_book
from full_disk import full_disk
from pyarrow import parquet
from scored import header, scored, write_scores
from test_kept_texts import KEY, judgement, kept, new_key, put

from shieldgate.batch.actor import Job, scored_table
from shieldgate.batch.manifest import Manifest, Part, part_name
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.adapters import OURS
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.score_file import wording_digest
from shieldgate.evaluation.sources import open_source
from shieldgate.evaluation.storage import Folder
from shieldgate.kept_texts.labels import LabelStore
from shieldgate.kept_texts.seal import Seal
from shieldgate.kept_texts.store import TextStore
from shieldgate.review.candidates import Candidate, Found, JudgedText, Key, Search
from shieldgate.review.choice import Choice, Chosen, drawn
from shieldgate.review.kept import SOURCE, KeptTexts
from shieldgate.review.labelled_file import LabelledFile
from shieldgate.review.scored_rows import ScoredRows
from shieldgate.review.session import Session
from shieldgate.review.shown import parts, plain
from shieldgate.scoring import Identity
from shieldgate.settings import ScoringSettings
from shieldgate.types import Exchange, Judgement, Score

BOOK = small_book()
THREAT, SPAM = "test/threat", "test/spam"


def judged(threat: float, spam: float = 0.01, threshold: float = 0.5) -> list[Judgement]:
    return [
        Judgement(policy, p, threshold, p >= threshold, False, Score(0.0))
        for policy, p in ((THREAT, threat), (SPAM, spam))
    ]


# The choice


@pytest.mark.parametrize(
    ("choice", "judgements", "others", "why"),
    [
        (Choice(share=0), judged(0.7), None, ("near",)),
        (Choice(share=0), judged(0.74), None, ()),
        (Choice(share=0), judged(0.9, spam=0.3), None, ("near",)),
        (Choice(share=0, near=0), judged(0.5), None, ()),
        (Choice(share=0, near_probability=0.1), judged(0.61), None, ()),
        (Choice(share=0, near_probability=0.1), judged(0.41), None, ("near",)),
        (Choice(share=0), judged(0.99), {THREAT: True}, ()),
        (Choice(share=0), judged(0.99), {THREAT: False}, ("disagree",)),
        (Choice(share=0), judged(0.99), {"other/policy": False}, ()),
        (Choice(share=0, pairs=[(THREAT, SPAM)]), judged(0.99), None, ("disagree",)),
        (Choice(share=0, pairs=[(THREAT, SPAM)]), judged(0.99, 0.99), None, ()),
        (Choice(share=1), judged(0.99), None, ("random",)),
        (Choice(share=1), judged(0.5), {THREAT: False}, ("near", "disagree", "random")),
    ],
)
def test_chosen_is_what_is_near_what_is_disputed_and_what_is_drawn(
    choice: Choice, judgements: list[Judgement], others: Mapping[str, bool] | None, why: tuple
) -> None:
    found = choice.choose("r1", judgements, others)
    assert (found.why if found else ()) == why
    assert found is None or found.chance == 1.0


def test_the_share_is_drawn_by_seed_and_id_and_stays_when_more_comes() -> None:
    choice, far = Choice(share=0.1, seed=7), judged(0.001)
    chosen = [n for n in range(5000) if (found := choice.choose(f"r{n}", far)) and found.why]
    assert 420 < len(chosen) < 580
    again = [n for n in reversed(range(9000)) if choice.choose(f"r{n}", far) and n < 5000]
    assert again[::-1] == chosen
    others = [n for n in range(5000) if replace(choice, seed=8).choose(f"r{n}", far)]
    assert others != chosen
    found = choice.choose(f"r{chosen[0]}", far)
    assert found
    assert found.chance == 0.1
    # What is drawn for one purpose says nothing of what is drawn for another.
    pairs = [(drawn(0, "chosen", str(n)), drawn(0, "order", str(n))) for n in range(2000)]
    assert abs(np.corrcoef(np.array(pairs).T)[0, 1]) < 0.08


def texts(count: int, **changes: Any) -> list[JudgedText]:
    random_ = random.Random(5)
    return [
        JudgedText(Key("rows", f"r{n}"), judged(random_.random()), Exchange(f"text {n}"), **changes)
        for n in range(count)
    ]


def search(**changes: Any) -> Search:
    return replace(Search(Choice(share=0.05), [THREAT, SPAM], 100_000), **changes)


def test_weights_make_estimates_of_the_whole_from_what_is_mostly_unsure() -> None:
    """Harm is more frequent the higher the probability is, so that the unsure are no sample."""
    random_ = random.Random(3)
    population = texts(8000)
    truth = {t.key: random_.random() < t.judgements[0].probability ** 3 for t in population}
    whole = sum(truth.values()) / len(truth)
    by = Choice(share=0.2)
    found = search(choice=by).among(population, lambda key: None)
    assert found.seen == 8000
    assert found.chosen["all"] == len(found.candidates)
    weights = np.array([1 / c.chosen.chance for c in found.candidates])
    harm = np.array([truth[c.text.key] for c in found.candidates])
    assert harm @ weights / weights.sum() == pytest.approx(whole, abs=0.02)
    assert abs(harm.mean() - whole) > 0.04, "without weights it is off"
    # So does any part of them, because the order is drawn, too.
    first = search(choice=by, limit=1600).among(population, lambda key: None).candidates
    assert [c.text.key for c in first] == [c.text.key for c in found.candidates[:1600]]
    assert harm[:1600] @ weights[:1600] / weights[:1600].sum() == pytest.approx(whole, abs=0.04)
    # And what is drawn at random is by itself a sample, without weights.
    drawn_ = [truth[c.text.key] for c in found.candidates if "random" in c.chosen.why]
    assert np.mean(drawn_) == pytest.approx(whole, abs=0.04)


def test_what_was_drawn_twice_has_the_product_of_both_chances() -> None:
    def chosen(*why: Any, chance: float) -> set[tuple[tuple[str, ...], float]]:
        given = texts(400, kept=Chosen(why, chance))
        found = search(choice=Choice(near=0, share=0.5)).among(given, lambda key: None)
        assert 150 < len(found.candidates) < 250
        return {(c.chosen.why, c.chosen.chance) for c in found.candidates}

    assert chosen("random", chance=0.02) == {(("random",), 0.01)}
    assert chosen("near", chance=1.0) == {(("near",), 0.5)}, "no part of the random sample"
    assert chosen("near", "random", chance=1.0) == {(("near", "random"), 0.5)}


def test_asked_is_what_has_no_label_yet_of_the_policies_that_are_wanted() -> None:
    given = [
        replace(text, labels=labels)
        for text, labels in zip(texts(3), ({}, {THREAT: 1}, {THREAT: 1, SPAM: 0}), strict=True)
    ]
    before = {given[0].key: {"labels": {SPAM: 0}, "weight": 1.0}}

    def asked(**changes: Any) -> dict[str, tuple[str, ...]]:
        found = search(choice=Choice(share=1), **changes).among(given, before.get)
        return {c.text.key.id: c.asked for c in found.candidates}

    assert asked() == {"r0": (THREAT,), "r1": (SPAM,)}
    assert asked(policies=[SPAM]) == {"r1": (SPAM,)}
    assert asked(again=True) == {"r0": (THREAT,), "r1": (THREAT, SPAM), "r2": (THREAT, SPAM)}


def test_one_file_holds_rows_that_were_chosen_by_one_rule_only() -> None:
    given, random_ = texts(300), search(choice=Choice(near=0.5, share=0.1))
    found = random_.among(given, lambda key: None)
    rows = {
        c.text.key: {"labels": {THREAT: 1}, "weight": c.chosen.weight} for c in found.candidates
    }
    again = random_.among(given, rows.get)
    assert [c.asked for c in again.candidates] == [(SPAM,)] * len(rows)
    for other in (
        Choice(near=0.5, share=0.2),
        Choice(near=0.4, share=0.1),
        Choice(near=0.5, share=0.1, seed=1),
    ):
        with pytest.raises(ConfigurationError, match="chosen by other rules"):
            search(choice=other).among(given, rows.get)


# Where judged texts come from


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    given = [
        {"id": f"r{n}", "prompt": f"text {n}", "labels": {"spam": 0} if n % 2 else {}}
        for n in range(40)
    ]
    return write_rows(tmp_path / "rows.jsonl", given)


def scores_of(rows: Path, path: Path, seed: int = 0, **changes: Any) -> Path:
    made = [replace(r, labels={}) for r in scored([THREAT, SPAM], 40, seed=seed)]
    random.Random(seed).shuffle(made)  # a file is in the order of scoring
    head = {"dataset": rows.name, "dataset_digest": open_source(str(rows)).digest()}
    return write_scores(path, header(BOOK, [THREAT, SPAM], **head, **changes), made)


def opened(rows: Path, place: Path, **how: Any) -> ScoredRows:
    source, profile = open_source(str(rows)), BOOK.profile("default")
    return ScoredRows.open(source, str(place), BOOK, profile, **how)


ALL = search(choice=Choice(share=1))


def found_in(scores: ScoredRows, against: ScoredRows | None = None, by: Search = ALL) -> Found:
    found = by.among(scores.judged(against), lambda key: None)
    return replace(found, candidates=scores.with_texts(found.candidates, lambda key: None))


def test_scores_of_evaluate_are_joined_with_their_rows(rows: Path, tmp_path: Path) -> None:
    scores = scores_of(rows, tmp_path / "scores.jsonl")
    found = found_in(opened(rows, scores))
    assert len(found.candidates) == 40
    margins = {row.id: row.margins for row in scored([THREAT, SPAM], 40)}
    for candidate in found.candidates:
        number = candidate.text.key.row
        assert candidate.text.key == ("rows.jsonl", f"r{number}", number)
        assert candidate.exchange == Exchange(f"text {number}")
        by_policy = {j.policy: j.score.margin for j in candidate.text.judgements}
        assert by_policy == margins[f"r{number}"]
    assert [c.text.key.row for c in found.candidates] != list(range(40)), "drawn by lot"


def test_two_scorers_disagree_where_just_one_finds_a_violation(rows: Path, tmp_path: Path) -> None:
    a = opened(rows, scores_of(rows, tmp_path / "a.jsonl", seed=1))
    b = opened(rows, scores_of(rows, tmp_path / "b.jsonl", seed=2))
    found = found_in(a, b, search(choice=Choice(near=0, share=0)))
    violated = [
        {
            row.number: {j.policy for j in row.judgements if j.violated}
            for row in scores.judged_rows()
        }
        for scores in (a, b)
    ]
    expected = {n for n in range(40) if violated[0][n] != violated[1][n]}
    assert {c.text.key.row for c in found.candidates} == expected
    assert 0 < len(expected) < 40


def test_other_rows_than_those_that_were_scored_are_refused(rows: Path, tmp_path: Path) -> None:
    scores = scores_of(rows, tmp_path / "scores.jsonl")
    other = write_rows(tmp_path / "other.jsonl", [{"id": "x", "prompt": "x", "labels": {}}])
    with pytest.raises(ConfigurationError, match=r"of other data than other\.jsonl"):
        opened(other, scores)
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = rows.read_text().replace('"r7"', '"r07"').splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:20]))
    (folder / "b.jsonl").write_text("".join(lines[20:]))
    with pytest.raises(ConfigurationError, match="a row of it is no row of"):
        found_in(opened(folder, scores))
    strange = write_scores(tmp_path / "strange.jsonl", header(BOOK, ["test/gone"]), [])
    with pytest.raises(ConfigurationError, match="the policy book has none of them"):
        opened(rows, strange)


def test_rows_are_read_as_they_were_for_the_scores(rows: Path, tmp_path: Path) -> None:
    columns = ["prompt=prompt", "id=id", "label:spam=spam"]
    given = [{"id": f"r{n}", "prompt": f"text {n}", "spam": 0} for n in range(40)]
    write_rows(rows, given)
    scores = scores_of(rows, tmp_path / "s.jsonl", options={"adapter": "map", "columns": columns})
    assert len(found_in(opened(rows, scores)).candidates) == 40
    with pytest.raises(ConfigurationError, match="a row of it is no row of"):
        found_in(opened(rows, scores, columns=["prompt=prompt"]))  # ids are lines then


def test_another_file_of_the_same_name_is_not_taken_for_labelled(
    rows: Path, tmp_path: Path
) -> None:
    scores = opened(rows, scores_of(rows, tmp_path / "scores.jsonl"))

    def labelled(prompt: str) -> Mapping[Key, Any]:
        return {Key("rows.jsonl", "r7", 7): {"labels": {}, "prompt": prompt, "weight": 1.0}}

    found = ALL.among(scores.judged(), labelled("text 7").get)
    assert len(scores.with_texts(found.candidates, labelled("text 7").get)) == 40
    with pytest.raises(ConfigurationError, match="row 7 is of another text than was labelled"):
        scores.with_texts(found.candidates, labelled("other").get)


def batch_folder(rows: Path, folder: Path) -> Path:
    """Write what `shieldgate batch` writes, without Ray."""
    identity = Identity("scorer@1", "1", "float32", "chat", "none")
    policies = BOOK.find([THREAT, SPAM])
    part = Part(str(rows), rows.stat().st_size, 0)
    job = Job(ScoringSettings(), policies, "book-1", OURS, [part], identity, False, 4096, 8)
    read = list(Dataset(open_source(str(rows)), OURS).rows())
    margins = {row.row: row.margins for row in scored([THREAT, SPAM], 40)}
    batch = [(row, [Score(margins[row.number][p.id]) for p in policies]) for row in read]
    out = Folder.at(str(folder))
    guidelines = {p.id: wording_digest(p) for p in policies}
    names = [p.id for p in policies]
    options = {"adapter": "ours", "columns": []}
    Manifest([part], names, guidelines, "book-1", options, identity).write(out)
    parquet.write_table(scored_table(batch, job, identity, part), folder / part_name(0))
    return folder


def test_scores_of_batch_are_joined_with_rows_that_may_lack_labels(
    rows: Path, tmp_path: Path
) -> None:
    by_file = found_in(opened(rows, scores_of(rows, tmp_path / "scores.jsonl")))
    by_folder = found_in(opened(rows, batch_folder(rows, tmp_path / "scored")))
    shown = [
        [(c.text.key, c.exchange, c.chosen, c.text.judgements) for c in found.candidates]
        for found in (by_file, by_folder)
    ]
    assert shown[0] == shown[1]
    labels = {c.text.key.row: c.text.labels for c in by_folder.candidates}
    assert labels == {n: {SPAM: 0} if n % 2 else {} for n in range(40)}
    unlabelled = write_rows(tmp_path / "new.jsonl", [{"id": "r0", "prompt": "x"}] * 3)
    assert len(found_in(opened(unlabelled, batch_folder(unlabelled, tmp_path / "n"))).candidates)


@pytest.fixture
def store(tmp_path: Path) -> TextStore:
    return TextStore.at(str(tmp_path / "review.db"))


def test_kept_texts_come_as_they_were_judged_and_chosen(store: TextStore) -> None:
    old, other = new_key(), new_key()
    text = kept("dec_1", response="an answer", why=("random",), chance=0.02, caller="web")
    put(store, text, seal=Seal([old]))
    put(store, kept("dec_2"), seal=Seal([other]))
    texts = KeptTexts(store, LabelStore(store.database), Seal([KEY, old]))
    [found] = texts.judged()
    assert texts.locked == 1
    assert found.key == (SOURCE, "dec_1", None)
    assert found.exchange == Exchange("bread", "an answer")
    assert found.judgements == (judgement(0.4),)
    assert found.kept == Chosen(("random",), 0.02)
    assert found.about["caller"] == "web"
    assert found.about["at"] == "1970-01-01T00:16:40+00:00"


def test_a_wrong_key_is_said_and_no_empty_review(store: TextStore) -> None:
    assert not list(KeptTexts(store, LabelStore(store.database), Seal([KEY])).judged())
    put(store, kept("dec_1"), kept("dec_2"))
    with pytest.raises(ConfigurationError, match="none of its 2 texts is opened by this key"):
        list(KeptTexts(store, LabelStore(store.database), Seal([new_key()])).judged())


# The file and the session


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "labelled.jsonl"


def candidate(id: str, text: str = "", chance: float = 1.0, **changes: Any) -> Candidate:
    judged_ = JudgedText(Key("rows", id), judged(0.5), Exchange(text or f"text {id}"), **changes)
    return Candidate(judged_, Chosen(("near",), chance), (THREAT, SPAM))


def written(out: Path) -> list[tuple[str, dict[str, int]]]:
    return [(row["id"], row["labels"]) for row in map(json.loads, out.read_text().splitlines())]


def test_each_answer_is_in_the_file_before_the_next_question(out: Path) -> None:
    with LabelledFile(out) as file:
        session = Session([candidate("a"), candidate("b", chance=0.05)], file)
        assert not out.exists(), "who only looks leaves nothing"
        session.answer(1)
        assert written(out) == [("a", {THREAT: 1})]
        session.answer(0)
        assert written(out) == [("a", {THREAT: 1, SPAM: 0})]
        assert session.question
        assert session.question.policy == THREAT
        session.answer_rest(0)
        assert session.question is None
        assert written(out)[1] == ("b", {THREAT: 0, SPAM: 0})
        assert (session.labels, session.labelled) == (4, 2)
    row = json.loads(out.read_text().splitlines()[1])
    assert row.pop("reviewed").endswith("+00:00")
    assert row == {
        "id": "b",
        "prompt": "text b",
        "labels": {THREAT: 0, SPAM: 0},
        "weight": 20.0,
        "chosen": ["near"],
        "source": "rows",
    }
    assert out.stat().st_mode & 0o077 == 0, "texts of people stand in it"


def test_undo_takes_back_step_by_step_what_was_answered_or_skipped(out: Path) -> None:
    with LabelledFile(out) as file:
        session = Session([candidate("a"), candidate("b")], file)
        session.undo()
        session.answer(1)
        session.answer(None)
        session.answer_rest(0)
        assert written(out) == [("a", {THREAT: 1}), ("b", {THREAT: 0, SPAM: 0})]
        session.undo()
        assert written(out) == [("a", {THREAT: 1})]
        session.undo()
        session.undo()
        assert written(out) == []
        assert session.question
        assert session.question.policy == THREAT
        session.answer(0)
        assert written(out) == [("a", {THREAT: 0})]


def test_a_text_that_stands_in_many_rows_is_asked_once_and_labelled_in_all(out: Path) -> None:
    same = [candidate(id, "the same", chance) for id, chance in (("a", 1.0), ("c", 0.1))]
    with LabelledFile(out) as file:
        session = Session([same[0], candidate("b"), same[1]], file)
        assert (session.texts, session.questions) == (2, 4)
        session.answer(1)
        session.answer(0)
        session.answer(0)
        assert written(out) == [
            ("a", {THREAT: 1, SPAM: 0}),
            ("c", {THREAT: 1, SPAM: 0}),
            ("b", {THREAT: 0}),
        ]
        session.undo()
        session.undo()
        assert written(out) == [("a", {THREAT: 1}), ("c", {THREAT: 1})]
    with LabelledFile(out) as file:
        session = Session([candidate("d", "the same"), candidate("b")], file)
        assert session.taken_over == 1, "of a later session, too"
        assert len(written(out)) == 2, "who only looks leaves nothing"
        session.begin()
        assert written(out)[-1] == ("d", {THREAT: 1})
        assert session.questions == 3


def test_a_text_that_was_half_asked_is_asked_the_rest_and_keeps_one_row(out: Path) -> None:
    with LabelledFile(out) as file:
        session = Session([candidate("a"), candidate("b")], file)
        session.answer(1)
        session.answer(None)
        session.answer(1)
    with LabelledFile(out) as file:
        assert (row := file.row(Key("rows", "a")))
        assert row["labels"] == {THREAT: 1}
        rest = replace(candidate("a"), asked=(SPAM,))
        Session([rest], file).answer(0)
        assert written(out) == [("b", {THREAT: 1}), ("a", {THREAT: 1, SPAM: 0})]


def test_labels_that_a_row_came_with_stay(out: Path) -> None:
    with LabelledFile(out) as file:
        given = replace(candidate("a", labels={SPAM: 1}), asked=(THREAT,))
        session = Session([given], file)
        session.answer(0)
        assert written(out) == [("a", {SPAM: 1, THREAT: 0})]
        session.undo()
        assert written(out) == []


def test_a_label_that_is_asked_about_again_counts_no_more_until_it_is_answered(out: Path) -> None:
    with LabelledFile(out) as file:
        session = Session([candidate("a", labels={SPAM: 1, "test/other": 0})], file)
        session.answer(0)
        assert written(out) == [("a", {"test/other": 0, THREAT: 0})]
        session.answer(0)
        assert written(out) == [("a", {"test/other": 0, THREAT: 0, SPAM: 0})]


def test_a_line_that_was_torn_is_cut_off_and_the_text_asked_again(out: Path) -> None:
    with LabelledFile(out) as file:
        session = Session([candidate("a"), candidate("b")], file)
        session.answer_rest(1)
        session.answer_rest(1)
    whole = out.read_bytes()
    out.write_bytes(whole[:-9])
    with LabelledFile(out) as file:
        assert [row["id"] for row in file.rows] == ["a"]
        Session([candidate("b")], file).answer(0)
    assert written(out) == [("a", {THREAT: 1, SPAM: 1}), ("b", {THREAT: 0})]


def test_a_full_disk_is_said_and_what_was_labelled_before_stays(out: Path) -> None:
    with LabelledFile(out) as file:
        session = Session([candidate("a"), candidate("b", "b" * 5000)], file)
        session.answer_rest(1)
        with full_disk(3000), pytest.raises(ConfigurationError, match="can't be written"):
            session.answer(1)
    with LabelledFile(out) as file:
        assert [row["id"] for row in file.rows] == ["a"]


def test_two_reviews_do_not_write_one_file_and_no_other_file_is_touched(out: Path) -> None:
    with LabelledFile(out) as file:
        Session([candidate("a")], file).answer(1)
        with pytest.raises(ConfigurationError, match="another review"), LabelledFile(out):
            pass
    out.write_text('{"id": "mine", "prompt": "x", "labels": {}}\n')
    with pytest.raises(ConfigurationError, match=r"labelled.jsonl:1: no row of a review"):
        LabelledFile(out).__enter__()
    assert "mine" in out.read_text()


def test_halves_of_surrogate_pairs_become_what_files_may_hold(out: Path) -> None:
    with LabelledFile(out) as file:
        Session([candidate("a", "half \ud83c of one, 🎈")], file).answer(1)
    assert json.loads(out.read_text())["prompt"] == "half \ufffd of one, 🎈"


# What is shown


def test_what_would_move_a_cursor_or_turn_letters_round_is_shown_by_its_number() -> None:
    text = "a\x1b[2J\x07\u202egnp\u200b\ue000\ud83c\u2028\r b\tc\r\n\u00e9🎈"
    assert list(parts(text)) == [
        ("a", False),
        ("<U+001B>", True),
        ("[2J", False),
        ("<U+0007>", True),
        ("<U+202E>", True),
        ("gnp", False),
        ("<U+200B>", True),
        ("<U+E000>", True),
        ("<U+D83C>", True),
        ("<U+2028>", True),
        ("<U+000D>", True),
        (" b    c\n\u00e9🎈", False),
    ]
    assert plain("one\x9b\n  two") == "one<U+009B> two"


def test_marks_beyond_what_letters_have_do_not_run_over_other_lines() -> None:
    assert "".join(p for p, _ in parts("Z" + "\u0300" * 6)) == (
        "Z" + "\u0300" * 4 + "<U+0300><U+0300>"
    )
