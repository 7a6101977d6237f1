"""Whatever a body or a response holds: each string is judged, refused, or named as passed.

The oracle is that of `test_walk_property`, which knows nothing of the walk.
"""

import json
from itertools import count
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from test_responses_coverage import ASKED, DIALECT, FIELDS, ITEMS, ROWS, of
from test_walk_property import JSON, PROFILE, fuzzed, marked, missing, numbers, strings

from shieldgate.dialects.interface import Refusal
from shieldgate.dialects.openai_responses_events import AROUND, KINDS, LAST
from shieldgate.sse import Decoder
from shieldgate.strands import whole_and_parts

PASSED = {row.field for row in of(FIELDS) if row.becomes == "passed" and "TEXT" in str(row.example)}
NAMED = sorted({row.field for row in of(ITEMS) if row.field})
KEYS = sorted({key for row in ROWS for key in row.example} | {"text", "refusal", "x", "MARK"})
APART = ("input", "stream", "moderation", "type", "output", "prompt", "conversation")
APART = (*APART, "background", "previous_response_id")
OBJECT = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)
MORE = OBJECT.map(
    lambda o: {k: v for k, v in o.items() if k not in (*APART, "previous_response_id")}
)
# Items as the protocol has them, with something changed or added.
ITEM = st.builds(
    lambda kind, more: {**more, "type": kind}, st.sampled_from(NAMED), OBJECT
) | st.builds(
    lambda row, more: {**row.example, **more},
    st.sampled_from(of(ITEMS)),
    OBJECT.map(lambda found: {k: v for k, v in found.items() if k != "type"}),
)
LIST = st.lists(ITEM | st.just("MARK"), max_size=3)


def passes(at: tuple[str, ...]) -> bool:
    if at[:1] == ("input",):
        # A mark on a part, and nowhere else.
        return len(at) > 2 and at[1] in ("content", "output", "summary") and at[2] == _MARK
    return bool(at) and at[0] in PASSED


_MARK = "prompt_cache_breakpoint"


def of_answer(at: tuple[str, ...]) -> bool:
    """Names that are few words, and those of the model."""
    marked_part = at[-1:] == (_MARK,) and any(k in at for k in ("content", "output", "summary"))
    return at == ("model",) or marked_part


@fuzzed
@given(LIST | st.just("MARK"), MORE)
def test_every_string_of_a_request_is_judged_refused_or_named_as_passed(
    input: Any, more: dict[str, Any]
) -> None:
    body = marked({**more, "input": input}, count(1))
    plan = DIALECT.plan(body, PROFILE)
    if plan.unscreenable or plan.unseen:
        return
    texts = [
        text for s in plan.prompts for e in s.exchange.apart() for text in (e.response or e.prompt,)
    ]
    assert missing(strings(body, passes), "\n".join(texts)) == []
    assert not numbers(body, passes)


@fuzzed
@given(LIST, MORE)
@example([], {"metadata": [0, 0]})
def test_every_string_of_an_answer_is_judged_refused_or_named_as_passed(
    output: list[Any], more: dict[str, Any]
) -> None:
    reply = marked({**more, "output": output}, count(1))
    [answer] = DIALECT.answers(reply, ASKED)
    if answer.unscreenable:
        return
    whole, parts = whole_and_parts(answer.texts)
    assert missing(strings(reply, of_answer), "\n".join((whole, *parts))) == []
    assert not numbers(reply, of_answer)


PART = st.sampled_from(
    ["output_text", "refusal", "summary_text", "reasoning_text", "MARK"]
).flatmap(lambda kind: OBJECT.map(lambda more: {**more, "type": kind}))
INDEX = st.integers(0, 1) | st.just("MARK")
EVENTS = st.builds(
    lambda kind, more, inner, place: {**more, **inner, "type": kind, "output_index": place},
    st.sampled_from(sorted(KINDS - {*AROUND, *LAST})) | st.just("MARK"),
    OBJECT,
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("delta", "text", "arguments", "code", "annotation", "logprobs"), JSON),
            "item": ITEM,
            "part": PART,
            "item_id": st.just("MARK"),
            "content_index": INDEX,
            "obfuscation": st.just("MARK"),
        },
    ),
    INDEX,
)
ALL = EVENTS | st.builds(
    lambda kind, more, output: {"type": kind, "response": {**more, "output": output}},
    st.sampled_from([*AROUND, *LAST]),
    MORE,
    LIST,
)


@fuzzed
@given(st.lists(ALL, min_size=1, max_size=6))
@example([{"type": "response.shell_call_command.delta", "delta": [1, 1], "output_index": 0}])
@example([{"type": "response.shell_call_command.done", "command": [1, 1], "output_index": 0}])
def test_every_string_that_leaves_in_a_stream_is_judged_refused_or_named_as_passed(
    events: list[dict[str, Any]],
) -> None:
    marks = count(1)
    stream = DIALECT.stream(ASKED, 1)
    said: dict[str, str] = {}
    sent = b""
    stopped = False
    for event in events:
        for piece in stream.read("", marked(event, marks)):
            if piece.unscreenable:
                stopped = True
                break
            sent += stream.release(piece)
            for strand, text in piece.texts:
                said[strand] = said.get(strand, "") + text
        if stopped:
            sent += stream.ending(0, Refusal("No."))
            break
    sent += stream.closing(None)
    whole, parts = whole_and_parts(said.items())
    judged = "\n".join((whole, *parts))
    found = [(e.name, json.loads(e.data)) for e in Decoder(10**7).feed(sent)]
    assert [event["sequence_number"] for _, event in found] == list(range(len(found)))
    for name, event in found:
        assert "zzo" not in name
        # The outermost names of a response are such there, too.
        for part in (event.pop("response", {}), event):
            assert missing(strings(part, of_answer), judged) == []
            assert not numbers(part, of_answer)
