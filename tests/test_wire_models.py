"""Whatever JSON comes, a body is read or refused in order, and what is read can be judged."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from shieldgate.dialects.openai_chat import plan_chat
from shieldgate.dialects.openai_completions import plan_completion
from shieldgate.dialects.openai_text import answer, split
from shieldgate.dialects.text import material
from shieldgate.openai.chat import ChatRequest, CompletionRequest
from shieldgate.openai.moderations import ModerationRequest
from shieldgate.policy import Profile
from shieldgate.schemas import ScreenRequest

# Every code point there is, halves of surrogate pairs among them, as JSON can spell them.
ANY_TEXT = st.text(st.characters(), max_size=8) | st.text(
    st.characters(categories=("Cs", "Cc", "Cf", "Lo")), max_size=4
)
# No infinities: JSON cannot spell them, and a number too large for a double is refused when read.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
PROFILE = Profile("default", ("test/threat",), history="all")


def bodies(*fields: str, likely: st.SearchStrategy[Any] = JSON) -> st.SearchStrategy[Any]:
    """Objects with some of these fields, which hold anything, and with others."""
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(fields, likely | JSON))
    return st.builds(
        lambda more, said: more | said, st.dictionaries(ANY_TEXT, JSON, max_size=2), known
    )


PARTS = st.lists(bodies("type", "text", "image_url", likely=st.just("text") | ANY_TEXT), max_size=3)
MESSAGES = st.lists(
    bodies("role", "content", "name", "tool_calls", likely=st.just("user") | ANY_TEXT | PARTS),
    max_size=4,
)
SHAPES = {
    ModerationRequest: bodies("input", "model", likely=ANY_TEXT | st.lists(ANY_TEXT) | PARTS),
    ScreenRequest: bodies("prompt", "response", "exchanges", "policies", likely=ANY_TEXT),
    ChatRequest: bodies("messages", "n", "stream", "moderation", "tools", likely=MESSAGES),
    CompletionRequest: bodies("prompt", "n", "suffix", likely=ANY_TEXT | st.lists(ANY_TEXT)),
}


def read(model: type[BaseModel], body: Any) -> Any:
    """Read a body as the routes do; None where it is refused."""
    try:
        return model.model_validate(body)
    except ValidationError:
        return None


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in (
        value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    ):
        yield from strings(item)


@pytest.mark.parametrize("model", SHAPES)
def test_a_body_is_read_or_refused_and_never_anything_else(model: type[BaseModel]) -> None:
    @settings(max_examples=40)
    @given(SHAPES[model] | JSON)
    def holds(body: Any) -> None:
        read(model, body)

    holds()


@settings(max_examples=40)
@given(SHAPES[ModerationRequest], SHAPES[ScreenRequest])
def test_what_is_read_is_text_that_can_be_encoded(moderation: Any, screen: Any) -> None:
    if asked := read(ModerationRequest, moderation):
        assert all(text.encode() or not text for text in asked.input)
    if asked := read(ScreenRequest, screen):
        for exchange in asked.all():
            (exchange.prompt + (exchange.response or "")).encode()


@settings(max_examples=40)
@given(SHAPES[ChatRequest], SHAPES[CompletionRequest])
def test_what_goes_upstream_is_what_came(chat: Any, completion: Any) -> None:
    for model, body in ((ChatRequest, chat), (CompletionRequest, completion)):
        if asked := read(model, body):
            sent = orjson.loads(orjson.dumps(asked.for_upstream()))
            assert sent == {key: value for key, value in body.items() if key != "moderation"}


@settings(max_examples=40)
@given(MESSAGES)
def test_every_string_of_the_newest_turn_is_judged_or_the_request_is_refused(messages: Any) -> None:
    asked = read(ChatRequest, {"messages": messages})
    assume(asked and messages)
    plan = plan_chat(asked.for_upstream(), PROFILE)
    content = messages[-1].get("content")
    assume(isinstance(content, str | list))
    judged = "\n".join(f"{s.exchange.prompt}\n{s.exchange.response}" for s in plan.prompts)
    missed = [text for text in strings(content) if text.strip() and text not in judged]
    assert not missed or plan.unscreenable or all(text in ("text", "user") for text in missed)


@settings(max_examples=40)
@given(JSON, st.dictionaries(ANY_TEXT, JSON, max_size=3))
def test_any_answer_is_read(value: Any, around: dict[str, Any]) -> None:
    material(value)
    for choice in ({"message": value}, {"delta": value}, {"text": value}, {"logprobs": value}):
        answer(choice, split(around)[1])


@settings(max_examples=40)
@given(SHAPES[CompletionRequest])
def test_any_completion_has_a_plan(body: Any) -> None:
    if asked := read(CompletionRequest, body):
        plan_completion(asked.for_upstream())
