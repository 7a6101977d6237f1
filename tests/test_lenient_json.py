"""JSON as servers write it; what is read of it can be written again."""

import json
import math
from itertools import pairwise
from typing import Any

import orjson
import pytest
from front import Open
from hypothesis import given
from hypothesis import strategies as st
from upstream import DONE, delta, text_of, whole

from shieldgate.lenient_json import JsonReader
from shieldgate.policy import Streaming


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999", "-1E+400"])
def test_a_number_that_is_not_finite_is_null(written: str) -> None:
    text = f'{{"logprob": {written}, "n": [1, {written}, 0.5], "s": "NaN"}}'
    expected = {"logprob": None, "n": [1, None, 0.5], "s": "NaN"}
    assert JsonReader().read(text) == JsonReader().read(text.encode()) == expected


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**64, 10**30])
def test_a_number_beyond_64_bits_can_be_written_again(number: int) -> None:
    read = JsonReader().read(f"[{number}, NaN]")
    assert orjson.loads(orjson.dumps(read)) == read
    assert read[0] == pytest.approx(number)


def test_a_number_of_more_digits_than_python_reads_is_null() -> None:
    assert JsonReader().read("[1" + "0" * 5000 + ", NaN]") == [None, None]


DEEP = [f"{'[' * levels}NaN{']' * levels}" for levels in (900, 5000)]


@pytest.mark.parametrize("text", ["", "{", "nan", "[Inf]", "{'a': 1}", *DEEP])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|deep|Expecting|Extra|property"):
        JsonReader().read(text)


def test_a_half_that_stays_alone_in_a_whole_value_is_replaced() -> None:
    assert JsonReader().read(r'{"a\ud83c": ["x\ud83c", "\udf5ex"]}') == {
        "a\ufffd": ["x\ufffd", "\ufffdx"]
    }


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    assert JsonReader().read(b'{"a": "x\xff"}') == {"a": "x\ufffd"}


def deltas(*texts: str, **at: int) -> list[str]:
    return [json.dumps({"choices": [{**at, "delta": {"content": text}}]}) for text in texts]


def content(value: Any) -> str:
    return "".join(choice["delta"]["content"] for choice in value["choices"])


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (["a \ud83c", "\udf5e b"], "a 🍞 b"),
        (["\ud83c", "", "\udf5e"], "🍞"),
        (["\ud83c", "\udf5e\ud83c", "\udf5e"], "🍞🍞"),
        (["\ud83c", "x"], "\ufffdx"),
        (["x\udf5e", "y"], "x\ufffdy"),
        (["\ud83c\ud83c", "\udf5e"], "\ufffd🍞"),
        (["\ud83c"], ""),
    ],
)
def test_halves_are_joined_over_deltas(parts: list[str], whole: str) -> None:
    reader = JsonReader(streamed=True)
    read = [reader.read(text) for text in deltas(*parts, index=0)]
    assert "".join(map(content, read)) == whole
    for value in read:
        orjson.dumps(value)


def test_halves_of_two_choices_are_kept_apart() -> None:
    reader = JsonReader(streamed=True)
    first, second = deltas("\ud83c", index=0), deltas("\ud83d", index=1)
    more = [*deltas("\udf5e", index=1), *deltas("\udf5e", index=0)]
    said = [content(reader.read(text)) for text in (*first, *second, *more)]
    assert said == ["", "", "\U0001f75e", "\U0001f35e"]


@given(st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1F64F), max_size=9), st.data())
def test_text_cut_anywhere_in_utf_16_is_whole_again(text: str, data: st.DataObject) -> None:
    units = text.encode("utf-16-le")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(units) // 2))))
    bounds = [0, *(2 * cut for cut in cuts), len(units)]
    parts = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in pairwise(bounds)]
    reader = JsonReader(streamed=True)
    assert "".join(content(reader.read(part)) for part in deltas(*parts)) == text


JSON = st.recursive(
    st.none()
    | st.floats()
    | st.integers()
    | st.text(st.characters())
    | st.sampled_from("\ud83c\udf5e"),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.just("\ud83c"), inner)
    ),
    max_leaves=9,
)


@given(JSON)
def test_whatever_is_read_can_be_written(value: Any) -> None:
    orjson.dumps(JsonReader().read(json.dumps(value)))


async def test_such_streams_are_judged_and_pass_whole(front: Open) -> None:
    profile = {"streaming": Streaming("hold", first=1, growth=1.0, most=1)}
    logprobs = {"content": [{"token": "bread", "logprob": -math.inf, "top_logprobs": []}]}
    first = delta("bread \ud83c").replace(
        b'"finish_reason"', b'"logprobs": %s, "finish_reason"' % json.dumps(logprobs).encode()
    )
    async with front([first, delta("\udf5e!"), delta(finish="stop"), DONE], profile=profile) as f:
        events = await f.stream()
        assert text_of(events) == "bread 🍞!"
        assert events[0]["choices"][0]["logprobs"]["content"][0]["logprob"] is None
        f.script.body = [delta("so \ud83c"), delta("crude"), delta(finish="stop"), DONE]
        assert "crude" not in text_of(await f.stream())


async def test_so_are_whole_answers(front: Open) -> None:
    answer = whole("bread")
    answer["choices"][0]["logprobs"] = {"content": [{"token": "bread", "logprob": -math.inf}]}
    async with front(answer) as f:
        choice = (await f.answer())["choices"][0]
    assert choice["message"]["content"] == "bread"
    assert choice["logprobs"]["content"][0]["logprob"] is None
