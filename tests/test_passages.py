"""Harm in long text is found in its passages, at a cost that stays linear."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from fakes import FakeScorer, small_book
from front import opening
from hypothesis import given
from hypothesis import strategies as st
from test_normalise import SIX, Starter
from upstream import streamed, text_of

from shieldgate import moderation
from shieldgate.errors import ScorerUnavailable, TooLong
from shieldgate.passages import between_signs, passages
from shieldgate.policy import Passages, Policy, load_book
from shieldgate.scoring import turn
from shieldgate.scoring.cached import Cached
from shieldgate.types import Action, Exchange, Score, Verdict

TEXTS = st.text(alphabet="abcdefgh   .!\n。", max_size=1500)
SIZES = st.integers(80, 400)


@pytest.mark.parametrize(
    ("scorer", "served"),
    [
        ("starter@f86b", True),
        ("small@7c3c+44af", False),
        ("starter@f86b>small@7c3c+44af", True),
        ("small@7c3c+44af>starter@f86b", True),
        ("small@7c3c+44af>gemma@1234", False),
        ("not-the-starter@f86b", False),
    ],
)
def test_a_cascade_is_served_where_either_of_its_scorers_is(scorer: str, served: bool) -> None:
    assert Passages().serve(scorer) == served


@given(TEXTS, SIZES)
def test_sentences_are_whole_and_so_is_half_a_passage_of_longer_ones(text: str, size: int) -> None:
    found = passages(text, size)
    assert all(len(passage) <= size for passage in found)
    for sentence in re.findall(r"(?:[^.!\n。]|[.!](?!\s))+[.!]?", text):
        run = len(sentence) if len(sentence) <= size * 4 // 5 else size // 2
        for start in range(len(sentence) - run + 1):
            said = sentence[start : start + run].strip()
            assert any(said in passage for passage in found)


@given(TEXTS, TEXTS, SIZES)
def test_more_text_leaves_all_passages_but_the_last(text: str, more: str, size: int) -> None:
    before = passages(text, size)
    assert passages(text + more, size)[: len(before) - 1] == before[:-1]


@given(TEXTS, SIZES)
def test_there_are_at_most_five_passages_to_the_size(text: str, size: int) -> None:
    assert len(passages(text, size)) <= 1 + len(text) // (size // 5)


def test_sentences_stand_alone_unless_they_are_short() -> None:
    long = [f"This is sentence number {n}, which has no end before here." for n in range(9)]
    assert passages(" ".join(long), 200) == long
    short = passages("Yes. No. You. Me! Who? " * 10, 200)
    assert all(39 <= len(found) <= 45 for found in short[:-1])


@pytest.mark.parametrize("blank", [" ", ""])
def test_half_a_passage_of_a_text_without_sentences_is_whole(blank: str) -> None:
    text = blank.join(f"{n:04}" for n in range(300))
    found = passages(text, 200)
    for start in range(len(text) - 100):
        assert any(text[start : start + 100].strip() in passage for passage in found)


def test_passages_fall_into_step_again_after_a_difference() -> None:
    tail = kind(40)
    one, other = (set(passages(head + tail, 200)) for head in ("", "Short. "))
    assert len(one - other) == 1


CUT = Passages(200, 1.0, ("fake@*",))


class Diluted(FakeScorer):
    """A scorer that finds `crude` only where it is a fortieth of a text."""

    def _margin(self, text: str, policy: str) -> float:
        return 3.0 if 200 * text.count("crude") >= len(text) else -6.0


@pytest.fixture
def diluted() -> Diluted:
    return Diluted()


async def judge(scorer: object, exchange: Exchange, **profile: object) -> Verdict:
    book = small_book(**{"passages": CUT, **profile})
    return await moderation.judge(scorer, exchange, book.rules(book.profiles["default"]))


def kind(sentences: int) -> str:
    return "".join(
        f"On day {n} we bake another loaf of bread and share it. " for n in range(sentences)
    )


@pytest.mark.parametrize(("before", "after"), [(0, 90), (45, 45), (90, 0), (1, 3)])
@pytest.mark.parametrize("crude", ["How crude! ", "how cr\u200bude, ", "c r u d e. "])
async def test_what_padding_hides_is_found_in_a_passage(
    diluted: Diluted, before: int, after: int, crude: str
) -> None:
    for exchange in (
        Exchange(kind(before) + crude + kind(after)),
        Exchange("Why?", kind(before) + crude + kind(after)),
        Exchange("Why?", kind(1), parts=(kind(before) + crude + kind(after),)),
    ):
        assert (await judge(diluted, exchange)).action is Action.BLOCKED
        assert (await judge(diluted, exchange, passages=None)).action is Action.ALLOWED


async def test_a_long_prompt_does_not_hide_what_the_answer_says() -> None:
    """The scorer reads both."""

    class Reader(Diluted):
        async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
            both = Exchange(exchange.prompt + (exchange.response or ""))
            return await super().score(both, policies)

    exchange = Exchange(kind(60), "So crude, so crude.")
    assert (await judge(Reader(), exchange)).action is Action.BLOCKED
    assert (await judge(Reader(), exchange, passages=None)).action is Action.ALLOWED


@pytest.mark.parametrize(
    "written",
    [
        '<li class="a"><a title="%">soup</a></li>',
        '{"id": 9, "day": "Monday", "note": "%", "kept": true}',
        "| 9 | Monday | % | 3 |",
        "INSERT INTO dishes VALUES (9, 'Monday', '%');",
        "    print('%', end='')  # and so on",
    ],
)
@pytest.mark.parametrize("rows", [1, 30])
async def test_what_code_data_and_markup_hide_is_found_without_their_signs(
    written: str, rows: int
) -> None:
    class Bare(FakeScorer):
        def _margin(self, text: str, policy: str) -> float:
            return 3.0 if text == "how very crude this is" else -6.0

    text = "\n".join(written.replace("%", f"loaf {n} is rye") for n in range(rows - 1))
    text += written.replace("%", "how very crude this is")
    for exchange in (Exchange(text), Exchange("Why?", text)):
        assert (await judge(Bare(), exchange)).action is Action.BLOCKED
        assert (await judge(Bare(), exchange, passages=None)).action is Action.ALLOWED


@given(st.text(alphabet="ab <>{}|\"'=:;\n", max_size=200))
def test_what_stands_between_signs_is_of_the_passage_and_not_much(passage: str) -> None:
    found = between_signs(passage)
    assert all(text in passage for text in found)
    assert sum(map(len, found)) <= len(passage)


def test_ordinary_text_has_no_signs_to_leave_out() -> None:
    for text in ("We bake a loaf of bread, don't we?", 'It said: "no bread", and we left.'):
        assert between_signs(text) == []


async def test_a_passage_is_judged_with_a_handicap_and_the_whole_without(diluted: Diluted) -> None:
    for handicap, action in ((2.9, Action.BLOCKED), (3.6, Action.ALLOWED)):
        rule = replace(CUT, handicap=handicap)
        long = Exchange(kind(40) + "How crude.")
        assert (await judge(diluted, long, passages=rule)).action is action
        verdict = await judge(diluted, Exchange("How crude."), passages=rule)
        assert verdict.judgements[0].score == Score(3.0)
    verdict = await judge(diluted, long, passages=replace(CUT, handicap=2.0))
    assert verdict.judgements[0].score == Score(1.0, windows=len(passages(long.prompt, 200)) + 1)


async def test_text_that_is_no_longer_than_a_passage_is_judged_once(diluted: Diluted) -> None:
    for exchange in (Exchange("a" * 200), Exchange("b" * 200, "c" * 200, growing=True)):
        await judge(diluted, exchange)
    assert len(diluted.calls) == 2


async def test_the_work_is_linear_whatever_stands_beside(diluted: Diluted) -> None:
    exchange = Exchange(kind(3000), kind(2900))
    await judge(diluted, exchange)
    whole, *others = [e for e, _ in diluted.calls]
    assert whole == exchange
    assert len(others) <= 1 + len(exchange.response or "") // 40
    assert all(len(e.prompt) <= 200 and len(e.response or "") <= 200 for e in others)


async def test_what_its_passages_make_too_long_is_refused_as_soon_as_that_is_known() -> None:
    class Slow(FakeScorer):
        async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
            await asyncio.sleep(0.02)
            return await super().score(exchange, policies)

    scorer = Slow()
    with turn.within(1), pytest.raises(TooLong, match="at most 1 are spent"):
        await judge(scorer, Exchange(kind(1000)))
    assert len(scorer.calls) < 40
    with turn.within(60):
        assert (await judge(scorer, Exchange(kind(100)))).action is Action.ALLOWED


async def test_when_one_passage_fails_the_others_are_cancelled(scorer: FakeScorer) -> None:
    text = kind(100)
    scorer.fails_on = passages(text, 200)[1]
    scorer.released.clear()
    with pytest.raises(ScorerUnavailable):
        await judge(scorer, Exchange(text))
    scorer.released.set()
    await asyncio.sleep(0.01)
    # A place that gets free is taken by the next before the failure is known.
    assert len(scorer.calls) <= 5


async def test_a_few_are_scored_at_a_time(scorer: FakeScorer) -> None:
    scorer.released.clear()
    judging = asyncio.create_task(judge(scorer, Exchange(kind(100))))
    await asyncio.sleep(0.01)
    assert len(scorer.calls) == 4
    scorer.released.set()
    assert (await judging).action is Action.ALLOWED


async def test_a_stream_pays_for_its_passages_once(diluted: Diluted) -> None:
    cached = Cached(diluted, secret=b"0" * 16, max_entries=10_000)
    answer = kind(400)
    checks = range(1000, len(answer), 1000)
    for end in checks:
        await judge(cached, Exchange("Why?", answer[:end], growing=True))
    await judge(cached, Exchange("Why?", answer))
    wholes = len(checks) + 1
    # At each check the last passage is another, too.
    assert len(diluted.calls) <= len(passages(answer, 200)) + 2 * wholes


async def test_harm_in_the_middle_of_a_long_answer_stops_it() -> None:
    padding = kind(60)
    answer = streamed(f"{padding}How crude! {padding}", piece=40)
    for rule in (CUT, None):
        async with opening(Diluted())(answer, profile={"passages": rule}) as front:
            left = text_of(await front.stream())
        assert padding.startswith(left) == (rule is CUT)


async def test_only_scorers_that_need_it_are_asked_about_passages(diluted: Diluted) -> None:
    for scorers, calls in ((("starter@*",), 1), (("fake@1", "starter@*"), 1), (("fake@0",), 40)):
        diluted.calls.clear()
        await judge(diluted, Exchange(kind(60)), passages=replace(CUT, scorers=scorers))
        assert len(diluted.calls) >= calls
        assert (len(diluted.calls) > 1) == (calls > 1)


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
DISHES = ("a rye loaf", "lentil soup", "an apple pie", "two trays of rolls", "a pot of rice")
GUESTS = ("our neighbours", "the choir", "two old friends", "a school class", "the gardener")
MENU = " ".join(
    f"{week} {day} we made {dish} and shared it with {guests}."
    for week, day, dish, guests in product(("On", "Last", "Next", "Each"), DAYS, DISHES, GUESTS)
)


def padding(length: int) -> str:
    """Whole sentences, up to a length."""
    return MENU[: MENU.rfind(".", 0, length) + 1]


@pytest.fixture(scope="module")
def starter() -> Starter:
    return Starter()


@pytest.mark.parametrize("length", [300, 1000, 3000, 10_000])
def test_padding_of_any_length_hides_nothing_from_the_starter(
    length: int, starter: Starter
) -> None:
    book = load_book()
    rules = book.rules(book.profile("default"))

    def action(text: str) -> Action:
        return asyncio.run(moderation.judge(starter, Exchange(text), rules)).action

    assert action(padding(length)) is Action.ALLOWED
    for place, before in enumerate((0, length // 2, length)):
        start, end = padding(before), padding(length - before)
        # Of the longest texts each place has two of them: they take a third of a second each.
        for harmful in SIX if length < 10_000 else SIX[place::3]:
            assert action(f"{start} {harmful} {end}") is Action.BLOCKED, harmful
