"""Long content is cut into windows that overlap, fit, and leave nothing out."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shieldgate.errors import ConfigurationError, ShieldgateError
from shieldgate.scoring.windows import WindowRule
from shieldgate.types import Exchange

RULE = WindowRule(context=200, overlap=20)
FIXED = 40


def spans(text: str) -> list[tuple[int, int]]:
    """A token is a character."""
    return [(i, i + 1) for i in range(len(text))]


def numbered(count: int) -> str:
    return "".join(chr(0x4E00 + i) for i in range(count))


@given(st.integers(161, 5000))
def test_windows_of_a_prompt_overlap_and_cover_it(count: int) -> None:
    text = numbered(count)
    windows, omitted = RULE.split(Exchange(text), FIXED, spans)
    assert omitted == 0
    assert all(FIXED + len(w.prompt) <= RULE.context for w in windows)
    joined = windows[0].prompt
    for before, after in pairwise(windows):
        assert before.prompt[-RULE.overlap :] == after.prompt[: RULE.overlap]
        joined += after.prompt[RULE.overlap :]
    assert joined == text


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_a_response_is_covered_and_each_window_shows_both_ends_of_its_prompt(
    prompt: int, response: int
) -> None:
    exchange = Exchange(numbered(prompt), numbered(response))
    windows, omitted = RULE.split(exchange, FIXED, spans)
    seen: set[str] = set()
    for window in windows:
        assert window.response is not None
        assert FIXED + len(window.prompt) + len(window.response) <= RULE.context
        assert window.prompt == windows[0].prompt
        seen |= set(window.response)
    assert seen == set(exchange.response or "")
    shown = windows[0].prompt
    if omitted == 0:
        assert shown == exchange.prompt
    else:
        head, tail = shown.split("\n[…]\n")
        assert exchange.prompt.startswith(head)
        assert exchange.prompt.endswith(tail)
        assert len(head) + len(tail) + omitted == prompt


def test_a_short_response_leaves_the_room_to_its_prompt() -> None:
    windows, omitted = RULE.split(Exchange(numbered(120), numbered(100)), FIXED, spans)
    assert omitted > 0
    windows, omitted = RULE.split(Exchange(numbered(120), numbered(5)), FIXED, spans)
    assert (len(windows), omitted) == (1, 0)


def test_what_is_new_in_a_window_is_more_than_its_overlap() -> None:
    exchange = Exchange(numbered(500), numbered(500))
    least = 2 * RULE.overlap + 1 + 32  # in reserve for the seams
    windows, _ = RULE.split(exchange, RULE.context - least, spans)
    assert all(len(w.response or "") > RULE.overlap for w in windows)
    with pytest.raises(ShieldgateError):
        RULE.split(exchange, RULE.context - least + 1, spans)


@pytest.mark.parametrize("response", [100, 1000, 5000])
def test_a_prompt_keeps_a_quarter_of_the_room_beside_however_long_a_response(response: int) -> None:
    windows, omitted = RULE.split(Exchange(numbered(1000), numbered(response)), FIXED, spans)
    room = RULE.context - FIXED - 32  # in reserve for the seams
    assert 1000 - omitted == pytest.approx(room / 4, abs=9)  # less what marks the gap
    assert len(windows[0].response or "") == pytest.approx(room * 3 / 4, abs=1)


def test_a_guideline_that_fills_the_context_is_a_fault_of_configuration() -> None:
    with pytest.raises(ConfigurationError, match="takes 190 of the model's 200 tokens"):
        RULE.split(Exchange("x"), 190, spans)
