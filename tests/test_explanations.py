"""Which words carried a score: found by leaving them out, and placed in the text as it came."""

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeScorer, small_book
from hypothesis import given
from hypothesis import strategies as st

from shieldgate.explanations.explain import (
    MOST_CHARACTERS,
    MOST_POLICIES,
    MOST_SENTENCES,
    MOST_WORDS,
    explain,
    explain_whole,
)
from shieldgate.explanations.spans import joined, only, sentences, without, words
from shieldgate.moderation import judge
from shieldgate.policy import Passages
from shieldgate.scoring import Scorer, UnixSocketScorer
from shieldgate.scoring.unix_socket import listening
from shieldgate.types import Exchange, Explanation

BOOK = small_book()
THREAT, SPAM = BOOK.policies.values()
LOST = 9.0  # a margin of 3 becomes one of -6


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer({("crude", "test/threat"): 3.0, ("buy", "test/spam"): 3.0})


async def explained(
    scorer: Scorer, exchange: Exchange, profile: str = "strict", **changed: object
) -> dict[str, Explanation]:
    """Judge and explain as a server does."""
    rules = BOOK.rules(replace(BOOK.profiles[profile], **changed))
    verdict = await judge(scorer, exchange, rules)
    return await explain(scorer, exchange, rules, verdict.judgements)


def carriers(found: Explanation, text: str) -> list[str]:
    text = found.reading or text
    return [text[word.start : word.end] for word in found.words if word.lost > 0]


# -- spans -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('He said: "Go away, you (old) fool!"', "He said Go away you old fool"),
        ("don't f*** with @me 🖕 ... -- $5", "don't f*** with @me 🖕 -- $5"),
        ("我要杀了你。", "我要 杀了 你"),
        ("x" * 60, " ".join(("x" * 24, "x" * 24, "x" * 12))),
        (" \n ... ", ""),
    ],
)
def test_words_come_without_the_marks_around_them(text: str, found: str) -> None:
    assert [text[a:b] for a, b in words(text)] == found.split()


def test_sentences_come_without_the_blanks_between() -> None:
    text = " One. Two!  \n\n ... Three"
    assert [text[a:b] for a, b in sentences(text)] == ["One.", "Two!", "Three"]


@given(st.text(alphabet="ab, .!\n🖕我", max_size=60), st.data())
def test_what_is_left_out_and_what_is_kept_are_the_whole(text: str, data: st.DataObject) -> None:
    parts = words(text)
    chosen = data.draw(st.lists(st.sampled_from(parts), unique=True)) if parts else []

    def said(spans: list[tuple[int, int]]) -> str:
        return "".join(text[a:b] for a, b in sorted(spans))

    others = [part for part in parts if part not in chosen]
    assert "".join(only(text, chosen).split()) == said(chosen)
    left = without(text, chosen)
    assert [c for c in left if c not in ", .!\n"] == [c for c in said(others) if c not in ", .!\n"]
    assert without(text, []) == text


def test_leaving_a_word_out_leaves_no_blank_of_its_own() -> None:
    assert without("a bad day", [(2, 5)]) == "a day"
    assert without("bad day", [(0, 3)]) == "day"
    assert only("a bad, bad day", [(2, 5), (7, 10)]) == "bad bad"


def test_many_spans_are_joined_to_few_without_a_gap() -> None:
    spans = [(i, i + 1) for i in range(0, 200, 2)]
    found = joined(spans, 16)
    assert len(found) <= 16
    assert (found[0][0], found[-1][1]) == (0, 199)
    assert joined(spans[:3], 16) == spans[:3]
    assert joined([], 16) == []


# -- explanations ----------------------------------------------------------------------------------


async def test_the_word_without_which_the_margin_falls_is_found(scorer: FakeScorer) -> None:
    text = "Well, 🖕 you crude fool."
    found = await explained(scorer, Exchange(text))
    assert list(found) == ["test/threat"]  # the other one is not violated
    one = found["test/threat"]
    assert carriers(one, text) == ["crude"]
    assert [word.lost for word in one.words] == [0, 0, 0, LOST, 0]
    assert (one.start, one.end, one.reading, one.margin) == (0, len(text), None, 3.0)
    assert (one.tested, one.margin_without, one.margin_alone) == (1, -6.0, 3.0)
    assert one.sentences == ()


async def test_of_an_answer_its_own_words_are_left_out(scorer: FakeScorer) -> None:
    exchange = Exchange("Is this crude?", "A crude one.")
    one = (await explained(scorer, exchange))["test/threat"]
    assert carriers(one, "A crude one.") == ["crude"]
    assert {asked.prompt for asked, _ in scorer.calls} == {"Is this crude?"}


async def test_each_violated_policy_has_its_own_words(scorer: FakeScorer) -> None:
    text = "You crude fool, buy it."
    found = await explained(scorer, Exchange(text))
    assert {id: carriers(one, text) for id, one in found.items()} == {
        "test/threat": ["crude"],
        "test/spam": ["buy"],
    }
    assert MOST_POLICIES >= 2


async def test_where_none_is_violated_the_nearest_is_explained(scorer: FakeScorer) -> None:
    scorer.margins = {("crude", "test/threat"): -4.0}
    found = await explained(scorer, Exchange("crude oil"))
    assert {id: carriers(one, "crude oil") for id, one in found.items()} == {
        "test/threat": ["crude"]
    }


async def test_where_no_word_alone_lowers_the_margin_none_is_tested(scorer: FakeScorer) -> None:
    one = (await explained(scorer, Exchange("crude crude")))["test/threat"]
    assert [word.lost for word in one.words] == [0, 0]
    assert (one.tested, one.margin_without, one.margin_alone) == (0, None, None)
    empty = (await explained(scorer, Exchange("")))["test/threat"]
    assert (empty.words, empty.end) == ((), 0)


async def test_a_reading_that_scored_worst_is_what_is_explained(scorer: FakeScorer) -> None:
    text = "You ｃｒｕｄｅ fool"
    one = (await explained(scorer, Exchange(text)))["test/threat"]
    assert one.reading == "You crude fool"
    assert carriers(one, text) == ["crude"]
    plain = await explained(scorer, Exchange(text), normalise=False)
    assert plain["test/threat"].margin == -6.0


async def test_a_passage_that_scored_worst_is_placed_in_the_text(scorer: FakeScorer) -> None:
    class Weighing(FakeScorer):
        """Loses a word among more than forty characters."""

        def _margin(self, text: str, policy: str) -> float:
            return super()._margin(text, policy) if len(text) <= 40 else -6.0

    text = "A dull beginning of some words. You crude fool. And then a dull end of it all."
    cutting = Passages(size=40, scorers=("fake@*",))
    one = await explained(Weighing(scorer.margins), Exchange(text), passages=cutting)
    found = one["test/threat"]
    assert "crude" in text[found.start : found.end]
    assert found.end - found.start <= 40
    assert carriers(found, text) == ["crude"]
    assert found.margin == 3.0  # without the handicap of passages


async def test_of_many_words_sentences_are_left_out_first(scorer: FakeScorer) -> None:
    dull = "Some words that say nothing at all of it. "
    text = dull * 9 + "You crude fool. " + dull * 9
    one = (await explained(scorer, Exchange(text), passages=None))["test/threat"]
    assert carriers(one, text) == ["crude"]
    assert len(one.sentences) <= MOST_SENTENCES
    [worst] = [part for part in one.sentences if part.lost > 0]
    assert "crude" in text[worst.start : worst.end]
    assert 3 <= len(one.words) <= MOST_WORDS
    asked = {call for call, _ in scorer.calls}
    assert len(asked) <= 1 + MOST_SENTENCES + MOST_WORDS + 2


async def test_a_long_sentence_is_left_out_in_phrases(scorer: FakeScorer) -> None:
    text = " ".join(["dull"] * 150 + ["crude"] + ["dull"] * 149)
    [one] = (await explain_whole(scorer, Exchange(text), [THREAT])).values()
    assert len(one.words) <= MOST_WORDS
    assert [phrase.split().count("crude") for phrase in carriers(one, text)] == [1]


async def test_of_a_long_text_the_passage_that_scores_worst_is_explained(
    scorer: FakeScorer,
) -> None:
    dull = "Some words that say nothing at all of it. "
    text = dull * 200 + "You crude fool. " + dull * 200
    [one] = (await explain_whole(scorer, Exchange(text), [THREAT])).values()
    assert one.end - one.start <= MOST_CHARACTERS
    assert carriers(one, text) == ["crude"]
    assert len({call for call, _ in scorer.calls}) < 2 * len(text) / MOST_CHARACTERS * 2 + 70


async def test_a_scorer_of_another_process_is_explained_alike(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    exchange = Exchange("You crude fool, buy it.")
    path = tmp_path / "scorer"
    async with listening(scorer, path), UnixSocketScorer(path) as remote:
        assert await explained(remote, exchange) == await explained(scorer, exchange)


async def test_gradients_weigh_words_in_place_of_leaving_them_out(scorer: FakeScorer) -> None:
    text = "You crude fool"
    tokens = [(0, 4, 0.5), (4, 6, 1.0), (6, 9, 2.0), (9, 14, -1.0)]  # crude is cut in two
    [one] = (
        await explain_whole(scorer, Exchange(text), [THREAT], lambda asked, of: [tokens])
    ).values()
    assert [word.lost for word in one.words] == [0.5, 3.0, -1.0]
    assert (one.tested, one.margin_without, one.margin_alone) == (1, -6.0, 3.0)
    assert len(scorer.calls) == 3
