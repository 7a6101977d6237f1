"""Which messages are judged, as what, and with what the answer is judged."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shieldgate.dialects.openai_chat import plan_chat
from shieldgate.dialects.openai_completions import plan_completion
from shieldgate.dialects.openai_text import answer, contents
from shieldgate.dialects.plan import Plan
from shieldgate.dialects.text import Contents
from shieldgate.openai.chat import ChatRequest, CompletionRequest
from shieldgate.policy import Profile
from shieldgate.types import Exchange

LATEST = Profile("latest", ("acme/spam",), history="latest")
WINDOW = Profile("window", ("acme/spam",), history="window", window=2)
ALL = Profile("all", ("acme/spam",), history="all", window=2)
TRUST = Profile("trust", ("acme/spam",), history="latest", instructions="trust")


def chat(*messages: Any, profile: Profile = LATEST, **fields: Any) -> Plan:
    """Plan a chat; a message is written `role: text`, or given as it is."""
    read = [
        dict(zip(("role", "content"), m.split(": "), strict=True)) if isinstance(m, str) else m
        for m in messages
    ]
    asked = ChatRequest.model_validate({"messages": read, **fields})
    return plan_chat(asked.for_upstream(), profile)


def completion(**fields: Any) -> Plan:
    return plan_completion(CompletionRequest.model_validate(fields).for_upstream())


def judged(plan: Plan) -> list[tuple[str, str] | str]:
    """What is judged: prompts as they are, and answers as (prompt, answer); parts by themselves."""
    exchanges = [each for subject in plan.prompts for each in subject.exchange.apart()]
    return [e.prompt if e.response is None else (e.prompt, e.response) for e in exchanges]


TALK = ("user: one", "assistant: two", "user: three", "assistant: four", "user: five")


# History


def test_latest_judges_the_newest_user_turn_and_the_answer_with_it():
    plan = chat(*TALK)
    assert judged(plan) == ["five"]
    assert plan.prompts[0].field == "messages[4]"
    assert plan.context(0) == "five"


def test_window_judges_all_within_it_and_its_user_turns_as_one_prompt_too():
    plan = chat(*TALK, profile=WINDOW)
    assert judged(plan) == ["three", ("three", "four"), "five", "three\nfive"]
    fields = ["messages[2]", "messages[3]", "messages[4]", "messages"]
    assert [subject.field for subject in plan.prompts] == fields
    assert plan.context(0) == "three\nfive"


def test_all_judges_every_message_by_itself_and_the_window():
    plan = chat(*TALK, profile=ALL)
    turns = ["one", ("one", "two"), "three", ("three", "four"), "five"]
    assert judged(plan) == [*turns, "three\nfive"]
    assert plan.context(0) == "three\nfive"


def test_what_the_assistant_has_begun_is_the_beginning_of_the_answer():
    assert chat(*TALK).prefill == ""
    plan = chat(*TALK, "assistant: six", "assistant: and")
    assert plan.prefill == "six\nand"
    assert plan.context(0) == "five"
    assert judged(plan) == ["five", ("five", "six"), ("five", "and")]


@given(
    st.lists(st.sampled_from(["user: a", "user: b", "assistant: c", "tool: d", "system: e"])),
    st.integers(2, 5),
)
def test_each_history_judges_all_that_the_one_before_it_judges(messages: list[str], window: int):
    plans = [
        chat(*messages, profile=Profile("p", ("acme/spam",), history=history, window=window))
        for history in ("latest", "window", "all")
    ]
    # Messages of a word each, which are judged joined by spaces, are joined to more.
    latest, some, all_ = (
        {s.exchange for s in plan.prompts if " " not in s.exchange.prompt} for plan in plans
    )
    assert latest <= some <= all_


@pytest.mark.parametrize("profile", [LATEST, WINDOW, ALL])
def test_a_single_turn_is_judged_once(profile: Profile):
    plan = chat("user: one", profile=profile)
    assert judged(plan) == ["one"]
    assert plan.prompts[0].field == "messages[0]"


def test_a_message_that_is_repeated_is_judged_once():
    assert judged(chat("user: a", "assistant: b", "user: a", profile=ALL)) == [
        "a",
        ("a", "b"),
        "a\na",
    ]


def test_user_messages_in_a_row_are_one_turn():
    plan = chat("user: one", "assistant: two", "user: three", "user: four")
    assert judged(plan) == ["three\nfour"]
    assert plan.context(0) == "three\nfour"


# Roles


def test_what_follows_the_newest_user_turn_is_judged_in_every_history():
    talk = ("user: zero", "assistant: one", "user: weather?", "assistant: looking", "tool: rain")
    plan = chat(*talk)
    assert judged(plan) == ["weather?", ("weather?", "looking"), "rain"]
    assert plan.context(0) == "weather?"


def test_results_of_several_tools_are_judged_one_by_one():
    assert judged(chat("user: go", "tool: a", "function: b", "tool: c")) == ["go", "a", "b", "c"]


def test_an_answer_that_the_caller_began_is_judged_as_an_answer():
    assert judged(chat("user: go", "assistant: Sure, first")) == ["go", ("go", "Sure, first")]


@pytest.mark.parametrize("role", ["human", "User", "model", "", 7, None, ["user"], {"a": 1}])
def test_whoever_is_not_known_speaks_as_a_user(role: Any):
    plan = chat({"role": role, "content": "one"}, "assistant: two", "user: three", profile=WINDOW)
    assert any("one" in text for text in judged(plan))


def test_system_and_developer_messages_are_judged_wherever_they_stand():
    plan = chat("system: be kind", "user: one", "developer: be brief", "assistant: two", "user: x")
    assert judged(plan) == ["x", "be kind", "be brief"]
    assert plan.context(0) == "x"


def test_trusted_instructions_are_not_judged_and_material_is():
    fields = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s"}},
        "documents": ["a report"],
    }
    plan = chat("system: be kind", "user: one", profile=TRUST, **fields)
    assert judged(plan) == ["one", "a report"]


def test_each_tool_is_judged_by_itself_as_the_json_that_a_model_is_shown():
    tools = [{"type": "function", "function": {"name": n, "parameters": {}}} for n in "fg"]
    plan = chat("user: one", tools=tools)
    assert judged(plan)[1:] == [
        '{"type":"function","function":{"name":"f","parameters":{}}}',
        '{"type":"function","function":{"name":"g","parameters":{}}}',
    ]
    assert [s.field for s in plan.prompts[1:]] == ["tools[0]", "tools[1]"]


def test_without_a_user_the_answer_is_judged_with_the_last_thing_said_to_the_model():
    assert chat("system: write a poem").context(0) == "write a poem"
    assert chat("system: a", "assistant: b", profile=ALL).context(0) == "a"
    assert chat().context(0) == ""


def test_nothing_is_judged_where_nothing_was_said():
    plan = chat("user: ", {"role": "assistant", "content": None}, {"role": "user"}, "user:  \n")
    assert plan.prompts == ()
    assert plan.unscreenable == ()


# What can't be screened

PICTURE = {"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}


def test_the_text_beside_a_picture_is_judged_and_the_picture_named():
    plan = chat({"role": "user", "content": [{"type": "text", "text": "look"}, PICTURE]})
    assert judged(plan) == ["look"]
    assert plan.unscreenable == ("messages[0].content[1]",)


def test_pictures_of_older_turns_are_named_in_every_history():
    plan = chat({"role": "user", "content": [PICTURE]}, "assistant: a", "user: b")
    assert plan.unscreenable == ("messages[0].content[0]",)


@pytest.mark.parametrize("message", ["hello", 7, None, ["hello"]])
def test_a_message_that_is_none_is_named(message: Any):
    body = {"messages": [message, {"role": "user", "content": "b"}]}
    plan = plan_chat(ChatRequest.model_validate(body).for_upstream(), LATEST)
    assert plan.unscreenable == ("messages[0]",)


def test_a_name_that_the_caller_made_up_stands_in_no_field_name():
    value: Any = "x"
    for _ in range(120):
        value = {"secret words": value}
    plan = chat({"role": "user", "content": "a", "secret words": value})
    assert plan.unscreenable == ("messages[0]",)
    assert [s.field for s in plan.prompts] == ["messages[0]"]


@pytest.mark.parametrize("field", ["documents", "chat_template_kwargs", "unknown words"])
def test_what_is_nested_too_deeply_is_named_wherever_it_stands(field: str):
    value: Any = "x"
    for _ in range(120):
        value = [value]
    named = {"documents": "documents[0]", "unknown words": "body"}.get(field, field)
    assert chat("user: a", **{field: value}).unscreenable == (named,)
    assert completion(prompt="a", **{field: value}).unscreenable == (named,)


def test_marks_for_the_cache_are_left_out_only_on_messages_and_parts():
    mark = {"cache_control": {"type": "an ephemeral one"}}
    part = {"type": "text", "text": "a", **mark}
    assert contents({"content": [part], **mark}).texts == ("a",)
    assert "ephemeral" in contents({"tool_calls": [mark]}).texts[0]
    assert "ephemeral" in answer({"index": 0, "message": {"content": "a", **mark}}, {}).texts[0]


# Completions


def test_each_prompt_of_a_completion_is_judged_and_its_choices_with_it():
    plan = completion(prompt=["one", "two"], n=2)
    assert judged(plan) == ["one", "two"]
    assert [s.field for s in plan.prompts] == ["prompt[0]", "prompt[1]"]
    assert [plan.context(choice) for choice in range(5)] == ["one", "one", "two", "two", "two"]


def test_the_choices_of_a_chat_all_answer_the_same_prompt():
    plan = chat("user: one", n=3)
    assert [plan.context(choice) for choice in range(3)] == ["one"] * 3


@pytest.mark.parametrize("prompt", [None, "", []])
def test_a_completion_of_nothing_has_nothing_to_judge(prompt: Any):
    plan = completion(prompt=prompt)
    assert (plan.prompts, plan.unscreenable, plan.context(0)) == ((), (), "")


def test_the_end_of_a_completion_is_judged_by_itself_and_with_each_prompt_and_answer():
    plan = completion(prompt=["one", "two"], suffix="end")
    assert judged(plan) == ["one", "two", "end", "one\nend", "two\nend"]
    assert [plan.context(choice) for choice in range(2)] == ["one\nend", "two\nend"]
    assert judged(completion(prompt="", suffix="end")) == ["end"]


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ([1, 2], ("prompt",)),
        ([[1, 2], "b", [3]], ("prompt[0]", "prompt[2]")),
        ([{"a": "b"}, None], ("prompt[0]", "prompt[1]")),
    ],
)
def test_tokens_are_named_and_the_texts_beside_them_judged(prompt: Any, named: tuple[str, ...]):
    plan = completion(prompt=prompt)
    assert plan.unscreenable == named
    assert judged(plan) == [item for item in prompt if item == "b"]


# Messages and deltas


def test_the_voices_of_a_message_are_judged_joined_and_each_alone():
    message = {
        "role": "assistant",
        "reasoning_content": "hm",
        "content": "a",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_it", "arguments": "{}"}}
        ],
    }
    assert contents(message).texts == ("hm\na\nget it\n{}", "hm", "a", "get it\n{}")


def test_the_pieces_of_one_tool_call_have_one_field_wherever_they_stand_in_their_deltas():
    def delta(index: int, text: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

    names = [contents(delta(i, t)).strands[0][0] for i, t in [(0, "a"), (1, "b"), (0, "c")]]
    assert names == [f"tools/tool_calls[{i}].function.arguments" for i in (0, 1, 0)]


def test_a_transcript_is_judged_though_its_sound_can_not_be():
    found = contents({"audio": {"data": "UklGRg==", "transcript": "hello"}})
    assert found == Contents((("content/audio.transcript", "hello"),), ("audio",))


WORDS = st.sampled_from(["a", "bc", "two words", "text", "user"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["role", "content", "type", "tool_calls", "audio", "name", "id", "x"])
MESSAGE = JSON | st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON)), max_size=4)


@settings(max_examples=40)
@given(st.lists(MESSAGE, max_size=4), st.sampled_from([LATEST, WINDOW, ALL]))
def test_no_message_is_too_strange_to_be_planned(messages: list[Any], profile: Profile):
    plan = chat({"role": "user", "content": "x"}, *[{"m": m} for m in messages], profile=profile)
    assert plan.prompts
    plan_chat({"messages": messages}, profile)


@given(st.lists(WORDS))
def test_no_word_of_a_message_is_lost(words: list[str]):
    message = {f"field {place}": [{"deep": word}] for place, word in enumerate(words)}
    said = [f"field {place}\ndeep\n{word}" for place, word in enumerate(words)]
    whole, *without_names = contents(message).texts
    assert whole == "\n".join(said)
    # Words that are cut between two fields are joined.
    assert ["".join(text.split()) for text in without_names] == ["".join(words).replace(" ", "")][
        : len(words)
    ]


# The requests themselves


def test_a_request_goes_on_as_it_came_without_what_is_meant_for_us():
    moderation = {"model": "strict", "policy": {"output": {"mode": "block"}}}
    body = {"messages": [], "model": "m", "stream": None, "extra": {"a": [1.5, None]}, "n": 1}
    asked = ChatRequest.model_validate({**body, "moderation": moderation})
    assert asked.for_upstream() == body
    assert asked.moderation is not None
    assert asked.moderation.policy is not None
    assert asked.moderation.policy.output is not None
    assert asked.moderation.policy.output.mode == "block"
    assert asked.moderation.policy.input is None


@pytest.mark.parametrize(
    "field",
    [
        {"stream": "true"},
        {"n": 0},
        {"n": 1.5},
        {"n": 129},
        {"messages": "hello"},
        {"moderation": {"model": "strict", "policy": {"inputs": {"mode": "block"}}}},
        {"moderation": {"model": "strict", "policy": {"input": {"mode": "off"}}}},
        {"unknown": "\ud83d"},
        {"unknown": 2**64},
    ],
)
def test_what_would_be_misread_or_can_not_be_sent_on_is_refused(field: dict[str, Any]):
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": [], **field})


def test_an_exchange_is_a_prompt_or_an_answer_with_its_prompt():
    plan = chat("user: one", "assistant: two")
    assert [s.exchange for s in plan.prompts] == [Exchange("one"), Exchange("one", "two")]
