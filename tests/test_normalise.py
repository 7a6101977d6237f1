"""Disguised words are judged as what they are read as, and nothing else changes."""

import unicodedata

import pytest
from fakes import FakeScorer, small_book
from front import Open
from hypothesis import given
from hypothesis import strategies as st
from upstream import streamed, text_of

from shieldgate import moderation
from shieldgate.errors import ScorerUnavailable
from shieldgate.normalise import _ALIKE, normalised
from shieldgate.policy import Profile
from shieldgate.types import Action, Exchange

DISGUISED = {
    "zero-width": "cr\u200bu\u200cd\u2060e",
    "soft hyphens": "cr\u00adu\u00adde",
    "byte order marks": "c\ufeffrude",
    "bidi controls": "c\u202er\u202cude",
    "variation selectors": "c\ufe0fr\U000e0101ude",
    "hangul fillers": "cr\u3164ude",
    "full-width": "ｃｒｕｄｅ",
    "mathematical": "𝐜𝓻𝔲𝕕𝖾",
    "encircled": "ⓒⓡⓤⓓⓔ",
    "small capitals": "ᴄʀᴜᴅᴇ",
    "Cyrillic": "сrudе",
    "Greek": "crυdε",
    "Armenian": "crսde",
    "struck out": "c\u0336r\u0336u\u0336d\u0336e\u0336",
    "marks on top": "cr\u030b\u0326u\u0332d\u0332e\u0332",
    "tags": "".join(chr(0xE0000 + ord(c)) for c in "crude"),
    "several": "ｃr\u200bυ\u0336𝐝е",
}


@pytest.mark.parametrize("text", DISGUISED.values(), ids=DISGUISED)
def test_a_disguised_word_is_written_plainly(text: str) -> None:
    assert normalised(f"how {text}!") == "how crude!"


def test_a_word_of_nothing_but_twins_is_latin_where_the_text_is() -> None:
    assert normalised("more ѕех now") == "more sex now"
    assert normalised("more ѕех, привет") == "more ѕех, привет"
    assert normalised("она и сосо") == "она и сосо"


PLAIN = [
    "",
    "How do I bake bread?",
    "Привет, как дела? Hello to Москва.",
    "Ελληνικά and English",
    "日本語のテスト、です。（はい）！",  # full-width marks
    "Việt Nam, naïve, Ångström, e\u0301te\u0301",
    "… “quoted” — non\u00a0breaking",
    "❤️ and 👩‍👩‍👧 and 1️⃣",
    "שָׁלוֹם and مُحَمَّد and हिन्दी",
]


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_plain_stays_as_it_is(text: str) -> None:
    assert normalised(text) is text


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_it_takes_any_text_and_what_is_written_plainly_is_not_much_longer(text: str) -> None:
    plain = normalised(text)
    assert len(plain) <= 8 * len(text)
    assert normalised(normalised(plain)) == normalised(plain)


def test_every_twin_is_a_letter_of_another_script_and_becomes_a_latin_one() -> None:
    for twin, letter in _ALIKE.items():
        script, *_ = unicodedata.name(chr(twin)).split()
        assert script in ("CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE")
        assert unicodedata.name(chr(letter)).startswith("LATIN")
        assert chr(twin).isupper() == chr(letter).isupper() or script == "CHEROKEE"


def test_no_control_token_comes_of_it_that_the_text_could_not_spell_itself() -> None:
    from shieldgate.prompt import GEMMA_CONTROL_TOKENS, TEMPLATES, Control

    token = GEMMA_CONTROL_TOKENS[1]
    wide = "".join(chr(ord(c) + 0xFEE0) for c in token)
    forged = normalised(f"{wide} {token[:4]}\u200b{token[4:]}")
    segments = TEMPLATES["chat"].segments(Exchange(forged), "No threats.")
    count = sum(isinstance(segment, Control) for segment in segments)
    plain = TEMPLATES["chat"].segments(Exchange("bread"), "No threats.")
    assert count == sum(isinstance(segment, Control) for segment in plain)


async def judge(scorer: FakeScorer, exchange: Exchange, **profile: object) -> Action:
    book = small_book(**profile)
    rules = book.rules(book.profiles["default"])
    return (await moderation.judge(scorer, exchange, rules)).action


async def test_the_worse_of_both_ways_to_write_it_counts(scorer: FakeScorer) -> None:
    disguised = Exchange("how cr\u200bude")
    assert await judge(scorer, disguised) is Action.BLOCKED
    assert [e.prompt for e, _ in scorer.calls] == ["how cr\u200bude", "how crude"]
    assert await judge(scorer, disguised, normalise=False) is Action.ALLOWED
    # What only the original says counts too.
    scorer.margins[("\u200b", "test/threat")] = 3.0
    assert await judge(scorer, Exchange("brea\u200bd")) is Action.BLOCKED


async def test_an_answer_is_written_plainly_with_its_prompt(scorer: FakeScorer) -> None:
    exchange = Exchange("ｗｈｙ", "because cr\u00adude", growing=True)
    assert await judge(scorer, exchange) is Action.BLOCKED
    assert scorer.calls[-1][0] == Exchange("why", "because crude", growing=True)


async def test_plain_text_is_judged_once(scorer: FakeScorer) -> None:
    for text in PLAIN:
        await judge(scorer, Exchange(text))
    assert len(scorer.calls) == len(PLAIN)


async def test_a_guard_that_fails_on_the_second_way_has_failed(scorer: FakeScorer) -> None:
    scorer.fails_on = "how crude"
    with pytest.raises(ScorerUnavailable):
        await judge(scorer, Exchange("how cr\u200bude"))


async def test_a_disguised_answer_is_stopped_in_a_stream_and_what_leaves_is_what_came(
    front: Open,
) -> None:
    kind = "ｋｉｎｄ wo\u200brds, " * 12
    async with front(streamed(kind, piece=3)) as opened:
        assert text_of(await opened.stream()) == kind
    async with front(streamed(kind + "сr\u200bｕdе" + " and more" * 40, piece=3)) as opened:
        events = await opened.stream()
    left = text_of(events)
    assert kind.startswith(left)
    assert events[-1] == "[DONE]"
    assert any(c["finish_reason"] == "content_filter" for e in events[:-1] for c in e["choices"])


def test_a_caller_who_asks_for_scores_gets_no_block_by_it() -> None:
    from shieldgate.gateway.inline import demands
    from shieldgate.openai.chat import InlineModeration

    book = small_book(normalise=False)
    base: Profile = book.profiles["default"]
    for mode, expected in (("score", False), ("block", True)):
        asked = {"model": "strict", "policy": {"input": {"mode": mode}}}
        found = demands(base, InlineModeration.model_validate(asked), book, "fake@0")
        assert found.rules["prompt"].profile.normalise is expected
        assert found.rules["response"].profile.normalise is False
