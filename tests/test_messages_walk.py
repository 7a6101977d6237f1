"""Whatever a body of Messages or a reply holds: each string is judged, refused, or named as passed.

The oracle is that of `test_walk_property`, which knows nothing of the walk.
"""

import json
from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from test_messages_coverage import FIELDS, ROWS, of
from test_walk_property import JSON, PROFILE, fuzzed, marked, missing, numbers, strings

from shieldgate.dialects.anthropic_messages import AnthropicMessages
from shieldgate.strands import whole_and_parts

DIALECT = AnthropicMessages()
PASSED = {row.field for row in of(FIELDS) if row.becomes == "passed" and "TEXT" in str(row.example)}
KINDS = sorted({row.field for row in ROWS if row.table == "Blocks" and row.field})
KEYS = sorted(
    {key for row in ROWS for key in row.example}
    | {"name", "input", "text", "source", "data", "encrypted_content", "stdout", "url", "x", "MARK"}
)
OBJECT = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)
BLOCK = st.builds(lambda kind, more: {**more, "type": kind}, st.sampled_from(KINDS), OBJECT)
# Blocks as the protocol has them, with something changed or added.
ALTERED = st.builds(
    lambda row, more: {**row.example, **more, "type": row.field},
    st.sampled_from([row for row in ROWS if row.table == "Blocks" and row.field]),
    OBJECT,
)
CONTENT = st.lists(BLOCK | ALTERED | st.just("MARK"), max_size=3) | st.just("MARK")
ROLES = st.sampled_from(["user", "assistant", "system", "MARK"])
EXACT = ("messages", "stream", "moderation", "content", "system", "type", "index")
MORE = OBJECT.map(lambda found: {k: v for k, v in found.items() if k not in EXACT})


def passes(at: tuple[str, ...]) -> bool:
    # A mark on a block, and nowhere else.
    if at[:2] == ("messages", "content") or at[:1] == ("system",):
        return at[-1] == "cache_control" and at[-2] in ("content", "system")
    return bool(at) and at[0] in PASSED


def schema(at: tuple[str, ...]) -> bool:
    """JSON of the caller's making: its numbers are no tokens."""
    return passes(at) or "output_format" in at or "format" in at


def name(at: tuple[str, ...]) -> bool:
    """The name of a model, where few words pass, which is said in the row; a mark is one."""
    return at in (("model",), ("message", "model"))


@fuzzed
@given(st.lists(st.tuples(ROLES, CONTENT, MORE), min_size=1, max_size=3), CONTENT, MORE)
def test_every_string_of_a_request_is_judged_refused_or_named_as_passed(
    messages: list[tuple[str, Any, dict[str, Any]]], system: Any, more: dict[str, Any]
) -> None:
    given = [{**m, "role": role, "content": content} for role, content, m in messages]
    body = marked({**more, "system": system, "messages": given}, count(1))
    plan = DIALECT.plan(body, PROFILE)
    if plan.unscreenable:
        return
    texts = [
        text for s in plan.prompts for e in s.exchange.apart() for text in (e.response or e.prompt,)
    ]
    assert missing(strings(body, passes), "\n".join(texts)) == []
    assert not numbers(body, schema)


@fuzzed
@given(st.lists(BLOCK | ALTERED | st.just("MARK"), max_size=3), MORE)
def test_every_string_of_an_answer_is_judged_refused_or_named_as_passed(
    content: list[Any], more: dict[str, Any]
) -> None:
    reply = marked({**more, "content": content}, count(1))
    [answer] = DIALECT.answers(reply)
    if answer.unscreenable:
        return
    whole, parts = whole_and_parts(answer.texts)
    assert missing(strings(reply, name), "\n".join((whole, *parts))) == []
    assert not numbers(reply, name)


DELTAS = st.builds(
    lambda kind, more: {**more, "type": kind},
    st.sampled_from(
        ["text_delta", "thinking_delta", "input_json_delta", "signature_delta", "citations_delta"]
    ),
    st.dictionaries(
        st.sampled_from(["text", "thinking", "partial_json", "signature", "citation", "x", "MARK"]),
        JSON,
        max_size=3,
    ),
)
EVENTS = st.one_of(
    st.tuples(st.just("content_block_delta"), st.fixed_dictionaries({"delta": DELTAS}), MORE),
    st.tuples(
        st.just("content_block_start"),
        st.fixed_dictionaries({"content_block": BLOCK | ALTERED}),
        MORE,
    ),
    st.tuples(st.just("message_start"), st.fixed_dictionaries({"message": MORE}), MORE),
    st.tuples(st.just("message_delta"), st.fixed_dictionaries({"delta": MORE}), MORE),
    st.tuples(
        st.sampled_from(["ping", "content_block_stop", "message_stop", "MARK"]), st.just({}), MORE
    ),
)


@fuzzed
@given(st.lists(EVENTS, min_size=1, max_size=5), st.integers(0, 2))
def test_every_string_that_leaves_in_a_stream_is_judged_refused_or_named_as_passed(
    events: list[tuple[str, dict[str, Any], dict[str, Any]]], index: int
) -> None:
    marks = count(1)
    stream = DIALECT.stream({"stream": True}, 1)
    said: dict[str, str] = {}
    left: list[Any] = []
    for kind, inner, more in events:
        for piece in stream.read(
            "", marked({**more, **inner, "type": kind, "index": index}, marks)
        ):
            data = piece.data.partition(b"data: ")[2]
            sent = json.loads(data) if data else {}
            if piece.choice is None:
                # Nobody judges it.
                assert list(strings(sent, name)) == []
                continue
            if piece.unscreenable:
                return
            left.append(sent)
            assert b"zzo" not in piece.data.partition(b"data: ")[0]
            for strand, text in piece.texts:
                said[strand] = said.get(strand, "") + text
    whole, parts = whole_and_parts(said.items())
    for sent in left:
        assert missing(strings(sent, name), "\n".join((whole, *parts))) == []
        assert not numbers(sent, name)
