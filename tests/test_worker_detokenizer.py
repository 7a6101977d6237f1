"""Text leaves the worker character by character, and no part of a stop string does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shieldgate.prompt import render
from shieldgate.worker.chat_template import gemma_prompt
from shieldgate.worker.detokenizer import Detokenizer


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def written(text: str, stops: list[str], sizes: list[int]) -> tuple[list[str], bool]:
    """Push the text's bytes in groups of these sizes."""
    tokens = list(text.encode())
    out = Detokenizer(decode, stops)
    pieces = []
    while tokens:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(out.push(tokens[:size]))
        tokens = tokens[size:]
    return [*pieces, out.flush()], out.stopped


@given(
    st.text("ab€\n", max_size=40),
    st.lists(st.text("ab€\n", min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
def test_what_leaves_is_the_text_up_to_the_first_stop_string(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    pieces, stopped = written(text, stops, sizes)
    assert stopped == bool(ends)
    # The first to be complete stops the text; nothing behind it was ever looked at.
    whole = text[: min(ends)] if ends else text
    found = [whole.find(stop) for stop in stops if stop in whole]
    assert "".join(pieces) == (whole[: min(found)] if found else whole)


def test_a_piece_that_may_become_a_stop_string_waits() -> None:
    out = Detokenizer(decode, ["END"])
    assert [out.push(list(c.encode())) for c in "aEbEN"] == ["a", "", "Eb", "", ""]
    assert out.flush() == "EN"


def test_a_character_leaves_once_it_is_whole() -> None:
    out = Detokenizer(decode, [])
    assert [out.push([b]) for b in "é!".encode()] == ["", "é", "!"]
    out.push([0xE2])
    assert out.flush() == "\ufffd"


USER, MODEL = "<start_of_turn>user\n", "<start_of_turn>model\n"
END = "<end_of_turn>\n"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("user", " hi\n")], f"{USER}hi{END}"),
        ([("system", "Be brief."), ("user", "hi")], f"{USER}Be brief.\n\nhi{END}"),
        ([("developer", "Be brief.")], f"{USER}Be brief.{END}"),
        ([("user", "a"), ("user", "b")], f"{USER}a\n\nb{END}"),
        (
            [("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d")],
            f"{USER}a{END}{MODEL}b{END}{USER}c\n\nd{END}",
        ),
    ],
)
def test_system_messages_and_neighbours_of_one_role_become_one_turn(
    messages: list[tuple[str, str]], expected: str
) -> None:
    assert render(gemma_prompt(messages)) == f"<bos>{expected}{MODEL}"
