"""What the model reads and what leaves is judged alone and joined, whatever stands beside it."""

import json
from collections.abc import Callable, Sequence
from itertools import cycle
from time import process_time
from typing import Any

import pytest
from fakes import FakeScorer, small_book
from front import Open
from hypothesis import given
from hypothesis import strategies as st
from upstream import DONE, delta, sse, whole

from shieldgate.dialects.looks import is_unreadable, looks_like_media, machine_made
from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.dialects.openai_completions import OpenAICompletions
from shieldgate.moderation import judge
from shieldgate.policy import Profile, Streaming
from shieldgate.strands import decoded, spaced, whole_and_parts
from shieldgate.types import Action, Exchange

PROFILE = Profile("default", ("test/threat",))
HARM = "I will find you and break your legs"
WORDS = HARM.split()
BENIGN = "Flour, water, salt and patience make a loaf. " * 60
CALL = "call_9fKq2XaW7xZ3bA8dLm4QrT1v"


def user(content: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def calls(*items: tuple[str, str, str]) -> dict[str, Any]:
    called = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in items
    ]
    return {"role": "assistant", "content": None, "tool_calls": called}


def asked(*messages: Any, profile: Profile = PROFILE, **more: Any) -> list[str]:
    """All texts that are judged of a chat, each as a scorer is shown it."""
    plan = OpenAIChat().plan({"messages": list(messages), **more}, profile)
    assert plan.unscreenable == ()
    exchanges = [each for subject in plan.prompts for each in subject.exchange.apart()]
    return [e.prompt if e.response is None else e.response for e in exchanges]


def answered(message: dict[str, Any], **around: Any) -> tuple[str, ...]:
    """All texts that are judged of an answer."""
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    [found] = OpenAIChat().answers({"id": "chatcmpl-12", "choices": [choice], **around})
    assert not found.unscreenable
    text, parts = whole_and_parts(found.texts)
    return text, *parts


def streamed(*chunks: dict[str, Any]) -> tuple[str, ...]:
    """All texts that are judged of a streamed answer; a chunk is a delta, or more than that."""
    stream, said = OpenAIChat().stream({"stream": True}, 1), dict[str, str]()
    for chunk in chunks:
        around = {"id": "chatcmpl-12", **chunk} if "choices" in chunk else chunk
        if "choices" not in chunk:
            around = {"id": "chatcmpl-12", "choices": [{"index": 0, "delta": chunk}]}
        for piece in stream.read("", around):
            assert not piece.unscreenable
            for strand, text in piece.texts:
                said[strand] = said.get(strand, "") + text
    text, parts = whole_and_parts(said.items())
    return text, *parts


def around(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": "o"}}], **fields}


# Names


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": word, "content": ""} for word in WORDS],
        [{"role": "_".join(WORDS), "content": ""}],
        [{"role": "".join(word.title() for word in WORDS), "content": ""}],
        [user(name=word) for word in WORDS],
        [user(), *({"role": "tool", "tool_call_id": w, "content": "ok"} for w in WORDS)],
        [user(), *({"role": "tool", "tool_call_id": f"call_{w}", "content": ""} for w in WORDS)],
        [user(), calls(*((f"{word}_1", "f", "{}") for word in WORDS if len(word) > 1))],
        [user(), calls((CALL, "_".join(WORDS), "{}"))],
        [user(), calls(*((CALL, word, "{}") for word in WORDS))],
        [user([{"type": "text", "text": "x", "id": word} for word in WORDS])],
    ],
    ids=lambda m: str(m)[:60],
)
def test_names_of_a_request_are_judged_together_as_the_words_they_are(messages: list[Any]):
    said = "\n".join(asked(*messages)).casefold()
    assert HARM.removeprefix("I ").casefold() in said


def test_names_of_tools_are_judged_together():
    tools = [{"type": "function", "function": {"name": word}} for word in WORDS]
    assert HARM in asked(user(), tools=tools)
    assert HARM in asked(user(), functions=[{"name": word} for word in WORDS])


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([{"role": word} for word in WORDS], HARM),
        ([{"role": letter} for letter in HARM], HARM),
        ([{"tool_calls": [{"index": 0, "id": word}]} for word in WORDS], HARM),
        ([{"tool_calls": [{"index": 0, "id": HARM[i : i + 3]}]} for i in range(0, 40, 3)], HARM),
        ([{"tool_calls": [{"index": 0, "type": word}]} for word in WORDS], HARM),
        # One short id is an id.
        ([around(id=word) for word in WORDS], HARM.removeprefix("I ")),
        ([around(model=word) for word in WORDS], HARM),
        ([around(system_fingerprint=word) for word in WORDS], HARM),
        ([around(object=word) for word in WORDS], HARM),
        ([around(service_tier="_".join(WORDS))], HARM),
    ],
    ids=lambda c: str(c)[:60],
)
def test_names_in_a_stream_are_judged_as_pieces_and_as_words(chunks: list[Any], expected: str):
    assert expected in streamed(*chunks)


def test_the_name_of_who_answers_is_judged():
    assert HARM in answered({"content": "kind", "name": "_".join(WORDS)})


def test_padding_of_a_stream_is_written_anew():
    stream = OpenAIChat().stream({"stream": True}, 1)
    for padding, expected in (("kill", b'"xxxx"'), (["kill"], b'""'), ({"kill": 1}, b'""')):
        [piece] = stream.read("", around(id="chatcmpl-1", obfuscation=padding))
        assert b'"obfuscation":' + expected in piece.data
        assert b"kill" not in piece.data
        assert piece.texts == (("content/delta.content", "o"),)


@pytest.mark.parametrize(
    "id",
    [
        *("call_9fKq2XaW7xZ3bA8dLm4QrT1v", "chatcmpl-BQx7Fh3kT9ZpLm2VcWn8Yd4Rs6Gj1", "cmpl-1"),
        *("toolu_01A09q90qw90lq917835lq9", "chatcmpl-tool-9b2d6f0c3a1e4f58", "D681PevKs", "c1"),
        *(
            "v-1.2.3.4",
            "0",
            "12",
            "call_9b3ak2ps",
            "fp_44709d6fcb",
            "chatcmpl-1ed3e0b7-9c9f-4a5c-9a4d",
        ),
    ],
)
def test_ids_of_machines_pass(id: str):
    assert machine_made(id)


@pytest.mark.parametrize(
    "id",
    [
        *("I", "will", "call_will", "will_1", "find2you3", "IWillFindYou", "I will", "kill", ""),
        *("I_will_find_you_and_break_your_legs", "9will9find9you9and9break", "é1", "9" * 65),
        *("call_k1ll_y0u", "w1llF1ndY0u", "k-1-l-l-y-o-u", "I.w.i.l.l.f.i.n.d", "b_r_3_4_k"),
    ],
)
def test_ids_that_could_be_read_do_not_pass(id: str):
    assert not machine_made(id)


# Alone and joined


@pytest.mark.parametrize(
    "message",
    [
        user(HARM, x=BENIGN),
        user(HARM, title=BENIGN),
        user(HARM, name=BENIGN),
        user(HARM, reasoning_content=BENIGN),
        user(HARM, refusal=BENIGN),
        user([{"type": "text", "text": HARM, "x": BENIGN}]),
        user([{"type": "text", "text": HARM, "title": BENIGN}]),
        user([{"type": "text", "text": HARM}, {"type": "refusal", "refusal": BENIGN}]),
        user([{"type": "text", "text": HARM}, {"type": "thinking", "thinking": BENIGN}]),
        user([{"type": "text", "text": HARM}, {"type": "refusal", "text": BENIGN}]),
    ],
    ids=lambda m: str(m)[:60],
)
def test_nothing_that_stands_beside_the_content_of_a_message_dilutes_it(message: Any):
    for profile in (PROFILE, Profile("latest", ("test/threat",), history="latest")):
        assert HARM in asked(message, profile=profile)
        assert f"hello\n{HARM}" in asked(user(), {"role": "assistant"}, message)


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ({"content": HARM, "reasoning_content": BENIGN}, {}),
        ({"reasoning_content": BENIGN, "content": HARM}, {}),
        ({"reasoning_content": HARM, "content": BENIGN}, {}),
        ({"content": HARM, "x": BENIGN}, {}),
        ({"content": HARM}, {"citations": [BENIGN]}),
        ({"content": HARM}, {"prompt_logprobs": [{"1": {"decoded_token": BENIGN}}]}),
        ({"content": [{"type": "text", "text": HARM, "annotations": [{"x": BENIGN}]}]}, {}),
    ],
    ids=lambda m: str(m)[:60],
)
def test_nothing_that_stands_beside_the_content_of_an_answer_dilutes_it(message: Any, more: Any):
    assert HARM in answered(message, **more)


def test_logprobs_are_a_text_of_their_own():
    logprobs = {"content": [{"token": word + " "} for word in BENIGN.split()]}
    choice = {"index": 0, "message": {"content": HARM}, "logprobs": logprobs}
    [found] = OpenAIChat().answers({"choices": [choice]})
    text, parts = whole_and_parts(found.texts)
    assert text == HARM
    assert [part.strip() for part in parts] == [BENIGN.strip()]


def test_what_is_spread_over_voices_is_judged_joined():
    assert answered({"content": HARM[:6], "refusal": HARM[7:]})[0] == f"{HARM[:6]}\n{HARM[7:]}"
    assert asked(user(HARM[:6], x=HARM[7:]))[0] == f"{HARM[:6]}\nx\n{HARM[7:]}"


@pytest.mark.parametrize("voices", [("content", "reasoning"), ("content", "tools", "other")])
def test_voices_that_take_turns_are_judged_in_their_order(voices: tuple[str, ...]):
    said = [(f"{voices[n % len(voices)]}/[{n}]", word) for n, word in enumerate(WORDS)]
    assert "\n".join(WORDS) in whole_and_parts(said)[1]
    # One after the other they say it anyway.
    whole, parts = whole_and_parts([("a/0", "I"), ("a/1", "will"), ("b/", "find")])
    assert (whole, parts) == ("I\nwill\nfind", ("I\nwill", "find"))


def test_a_tool_is_judged_without_what_is_no_field_of_a_tool_too():
    tool = {"type": "function", "function": {"name": "f", "description": HARM}}
    texts = asked(user(), tools=[{**tool, "x": BENIGN}])
    assert json.dumps(tool, separators=(",", ":")) in texts
    assert HARM in texts


def test_documents_are_judged_without_what_is_no_text_of_theirs_too():
    assert f"t\n{HARM}" in asked(user(), documents=[{"title": "t", "text": HARM, "x": BENIGN}])


@pytest.mark.parametrize(
    "messages",
    [
        [user()],
        [user(), {"role": "assistant", "content": "hi"}, user("go")],
        [user([{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}])],
        [
            user(),
            calls((CALL, "get_weather", '{"city": "Paris"}')),
            {"role": "tool", "tool_call_id": CALL, "name": "get_weather", "content": "rain"},
        ],
        [user(), {"role": "assistant", "content": "x", "tool_calls": [], "refusal": None}],
    ],
    ids=lambda m: str(m)[:60],
)
def test_an_ordinary_chat_costs_one_judgement_for_each_message(messages: list[Any]):
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    profile = Profile("latest", ("test/threat",), history="all", window=1)
    plan = OpenAIChat().plan(
        {"messages": messages, "tools": [{"type": "function", "function": function}]}, profile
    )
    assert len(plan.prompts) == len(messages) + 1
    assert all(subject.exchange.parts == () for subject in plan.prompts)


def test_an_ordinary_answer_costs_one_judgement():
    assert answered({"role": "assistant", "content": "kind"}) == ("kind",)
    message = {**calls((CALL, "get_weather", '{"city": "Paris"}')), "refusal": None}
    assert answered(
        message, usage={"prompt_tokens": 1, "total_tokens": 2}, model="gpt-4o-mini"
    ) == ('get weather\n{"city": "Paris"}',)
    assert streamed({"role": "assistant", "content": ""}, {"content": "ki"}, {"content": "nd"}) == (
        "kind",
    )


# JSON in strings


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


NESTED: dict[str, Callable[[str], str]] = {
    "plain": lambda text: f'{{"q": "{text}"}}',
    "partial": lambda text: f'{{"q": "{text}',
    "a list": lambda text: f'["{text}"]',
    "a string": lambda text: f'"{text}"',
    "a name": lambda text: f'{{"{text}": 1}}',
    "nested": lambda text: json.dumps({"q": f'{{"p": "{text}"}}'}),
    "nested twice": lambda text: json.dumps({"q": json.dumps({"p": f'["{text}"]'})}),
    "nested and cut": lambda text: json.dumps({"q": json.dumps({"p": f'["{text}"]'})})[:-6],
    "no JSON": lambda text: f"say {text}",
}


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
def test_escapes_are_judged_as_what_they_say(nest: Callable[[str], str]):
    hidden = nest(escaped(HARM))
    assert HARM not in hidden
    places = [
        asked(user(), calls((CALL, "f", hidden))),
        asked(user(), {"role": "tool", "tool_call_id": CALL, "content": hidden}),
        asked(user(hidden)),
        asked(user(x=hidden)),
        asked(user(name=hidden)),
        asked(user(), documents=[hidden]),
        answered(calls((CALL, "f", hidden))),
        answered({"content": None, "function_call": {"name": "f", "arguments": hidden}}),
        answered({"tool_calls": [{"id": CALL, "type": "custom", "custom": {"input": hidden}}]}),
        answered({"content": hidden}),
        streamed(
            *(
                {"tool_calls": [{"index": 0, "function": {"arguments": hidden[i : i + 5]}}]}
                for i in range(0, len(hidden), 5)
            )
        ),
    ]
    plan = OpenAICompletions().plan({"prompt": hidden}, PROFILE)
    places.append([text for s in plan.prompts for text in (s.exchange.prompt, *s.exchange.parts)])
    for texts in places:
        assert any(HARM in text for text in texts)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r'{"a": "x\ny\t\"z\""}', '{"a": "x\ny\t"z""}'),
        (r'{"a": "\ud83c\udf5e"}', '{"a": "🍞"}'),
        (r'{"a": "\ud83c"}', '{"a": "\ufffd"}'),
        (r'{"a": "\u00', r'{"a": "\u00'),
        (r"C:\new\table", r"C:\new\table"),
        (r"print('a\n')", r"print('a\n')"),
        ('{"a": "b"}', '{"a": "b"}'),
    ],
)
def test_escapes_are_those_of_json(text: str, plain: str):
    assert decoded(text) == plain


@given(st.text(st.sampled_from('\\u0041"{[ndé\ud83c'.replace("\ud83c", "")), max_size=60))
def test_any_text_can_be_decoded_and_encoded(text: str):
    decoded(text).encode()


# What is no text


@pytest.mark.parametrize(
    "name",
    [
        *("image", "images", "imageUrl", "image_url", "input_audio", "audioData", "video", "file"),
        *("file_ids", "attachments", "inline_data", "pixel_values", "inputs_embeds", "embedding"),
        *("token_ids", "input_ids", "output_token_ids", "promptIds", "hidden_states", "template"),
        *("chat_template", "custom_logit_processor", "logits_processors", "INPUT_IDS", "media"),
    ],
)
def test_fields_are_known_by_their_names_for_no_text(name: str):
    assert is_unreadable(name)
    for value in (["x"], {"x": "y"}, "x"):
        plan = OpenAIChat().plan({"messages": [user(x={"y": [{name: value}]})]}, PROFILE)
        assert plan.unscreenable == ("messages[0]",)
        choice = {"index": 0, "delta": {"content": "o", "x": {name: value}}}
        [piece] = OpenAIChat().stream({}, 1).read("", {"choices": [choice]})
        assert piece.unscreenable


@pytest.mark.parametrize(
    "name", ["profile", "filename", "content", "tool_call_id", "candidates", "max_tokens", "imago"]
)
def test_other_names_are_no_sign_of_it(name: str):
    assert not is_unreadable(name)


@pytest.mark.parametrize("value", [[1, 2], [[1, 2]], [0.5, "x", 0.25], {"a": [{"b": [1, 2]}]}])
def test_lists_of_numbers_can_not_be_screened_but_in_arguments_and_definitions(value: Any):
    def refused(body: dict[str, Any]) -> bool:
        return bool(OpenAIChat().plan({"messages": [], **body}, PROFILE).unscreenable)

    assert refused({"messages": [user(x=value)]})
    assert refused({"x": value})
    assert refused({"documents": [{"text": "t", "x": value}]})
    parameters = {"type": "object", "properties": {"image_url": {"enum": value}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert not refused({"tools": [tool], "response_format": {"json_schema": parameters}})
    call = {"id": CALL, "type": "function", "function": {"name": "f", "arguments": {"x": value}}}
    assert not refused({"messages": [{"role": "assistant", "tool_calls": [call]}]})


@pytest.mark.parametrize("field", ["tokens", "token_ids", "ids"])
def test_tokens_that_come_one_by_one_can_not_be_screened_either(field: str):
    for choice in ({"delta": {field: [7]}}, {"delta": {}, field: [7]}):
        [piece] = OpenAIChat().stream({}, 1).read("", {"choices": [{"index": 0, **choice}]})
        assert piece.unscreenable


@pytest.mark.parametrize(
    ("text", "is_media"),
    [
        ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg", True),
        (" data:audio/wav;codecs=1;base64,UklGRiQAAABXQVZF", True),
        ("iVBORw0KGgo" + "A" * 40, True),
        ("/9j/" + "A" * 40, True),
        ("data: the plural of datum, as everybody knows", False),
        ("A data:image/png;base64,iVBORw0KGgoAAAANSUhEUg in a text", False),
        ("JVBERi0 is how such a file begins, and that is text.", False),
        ("A" * 100, False),
    ],
)
def test_a_string_that_is_a_file_is_no_text(text: str, is_media: bool):
    assert looks_like_media(text) is is_media


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user(Content=[])]},
        {"messages": [user(CONTENT="x")]},
        {"messages": [{"Role": "user", "content": "x"}]},
        {"messages": [user([{"type": "text", "text": "x", "Text": "y"}])]},
        {"messages": [{**calls((CALL, "f", "{}")), "Tool_calls": []}]},
        {"messages": [{"tool_calls": [{"function": {"Arguments": "{}"}}]}]},
        {"messages": [user()], "Messages": []},
        {"messages": [user()], "meſſages": []},
        {"messages": [user()], "toolſ": []},
        {"messages": [user()], "Temperature": 1},
        {"messages": [user()], "Response_Format": {}},
    ],
    ids=str,
)
def test_names_that_differ_from_known_ones_in_case_only_are_refused(body: dict[str, Any]):
    assert OpenAIChat().plan(body, PROFILE).unscreenable


def test_names_in_arguments_may_be_written_as_they_like():
    assert asked(user(), calls((CALL, "f", '{"Content": 1}')))
    call = {"function": {"name": "f", "arguments": {"Content": "x", "image": "y"}}}
    assert asked(user(), {"role": "assistant", "tool_calls": [call]})


# History


@pytest.mark.parametrize("role", ["assistant", "tool", "user", "function"])
def test_within_the_window_every_message_is_judged(role: str):
    talk = [user("one"), {"role": role, "content": HARM, "tool_call_id": CALL}, user("Continue.")]
    assert any(HARM in text for text in asked(*talk))
    older = [user("a"), {"role": "assistant", "content": "b"}] * 3
    assert any(HARM in text for text in asked(*older, *talk))
    latest = Profile("latest", ("test/threat",), history="latest")
    if role != "user":
        assert not any(HARM in text for text in asked(*talk, profile=latest))


# From outside


async def test_an_answer_is_blocked_for_what_it_says_beside_harmless_reasoning(
    front: Open, scorer: FakeScorer
) -> None:
    async with front(whole("crude", reasoning_content="kind")) as f:
        [choice] = (await f.answer())["choices"]
    assert choice["finish_reason"] == "content_filter"
    said = {e.response for e, _ in scorer.calls if e.response is not None}
    assert said == {"crude\nkind", "crude", "kind"}


async def test_parts_of_a_stream_are_judged_as_they_grow(front: Open, scorer: FakeScorer) -> None:
    chunks = [delta(reasoning_content="hm"), delta("ki"), delta("nd", finish="stop"), DONE]
    async with front(chunks, profile={"streaming": Streaming(mode="full")}) as f:
        await f.stream()
    said = [e for e, _ in scorer.calls if e.response is not None]
    assert said == [
        Exchange("bread", "hm\nkind"),
        Exchange("bread", "hm"),
        Exchange("bread", "kind"),
    ]


async def test_an_image_in_an_answer_leaves_in_no_way(front: Open) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    async with front(whole("kind", images=[image])) as f:
        reply = await f.answer()
        assert reply["choices"][0]["finish_reason"] == "content_filter"
        assert "base64" not in str(reply)
        f.script.body = [delta("kind"), delta(images=[image]), delta(finish="stop"), DONE]
        assert "base64" not in str(await f.stream())
        f.script.body = [sse({"choices": [{"index": 0, "delta": {}, "tokens": [1, 2]}]}), DONE]
        assert "tokens" not in str(await f.stream())


def test_words_of_names_are_parted():
    assert spaced(["get_current-weather", "iWill", "a.b:7", "", "two words"]) == (
        "get current weather i Will a b two words"
    )


# Spread


def test_words_that_are_the_strings_of_json_are_judged_joined():
    for hidden in (
        json.dumps({f"k{n}": word for n, word in enumerate(WORDS)}),
        json.dumps([{"token": word, "id": n} for n, word in enumerate(WORDS)]),
    ):
        assert HARM in asked(user(hidden))
        assert HARM in asked(user(), calls((CALL, "f", hidden)))
        assert HARM in answered({"content": hidden})
    assert HARM in answered(calls(*((CALL, "f", json.dumps({"w": word})) for word in WORDS)))


@pytest.mark.parametrize("said", ['{"city": "Paris", "unit": "c"}', '["a b c d e", "f g h i j"]'])
def test_ordinary_json_costs_one_judgement(said: str):
    assert asked(user(said)) == [said]


def test_words_in_fields_that_nobody_knows_are_judged_without_their_names():
    fields = {f"x{n}": word for n, word in enumerate(WORDS)}
    assert "\n".join(WORDS) in answered(fields)
    assert "\n".join(WORDS) in streamed(*({name: word} for name, word in fields.items()))
    assert "\n".join(WORDS) in asked(user(**fields))


def test_what_definitions_say_is_judged_without_their_json():
    def tool(**function: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "f", **function}}

    assert HARM in asked(user(), tools=[tool(description=HARM)])
    assert HARM in asked(user(), response_format={"json_schema": {"description": HARM}})
    assert HARM in asked(user(), tools=[tool(description=word) for word in WORDS])
    properties = {word: {"type": "string"} for word in WORDS}
    assert HARM in asked(user(), tools=[tool(parameters={"properties": properties})])
    assert HARM in asked(user(), tools=[tool(parameters={"enum": WORDS})])


def test_names_of_fields_that_chunks_bring_one_by_one_are_judged_joined():
    said = streamed(*(around(**{word: 1}) for word in WORDS))
    assert HARM in said
    # A few are no sentence.
    assert streamed(*(around(**{name: None}) for name in ("a", "b"))) == ("oo",)
    stream = OpenAIChat().stream({"stream": True}, 1)
    left = b""
    for word in WORDS:
        for piece in stream.read("", {"id": "chatcmpl-12", "choices": [], word: 1}):
            left += piece.data
    assert b"legs" not in left


def test_numbers_one_to_a_list_are_numbers():
    choice = {"index": 0, "message": {"content": "kind", "x": [[72], [105]]}}
    [found] = OpenAIChat().answers({"choices": [choice]})
    assert found.unscreenable
    for documents in ([72, 105], [[72], [105]]):
        plan = OpenAIChat().plan({"messages": [user()], "documents": documents}, PROFILE)
        assert plan.unscreenable


@pytest.mark.parametrize(
    "written",
    [
        lambda words: "Here it is:\n" + json.dumps([{"w": word} for word in words]),
        lambda words: (
            "```json\n" + json.dumps({word * 2: word for word in words}, indent=2) + "```"
        ),
        lambda words: "\n".join(json.dumps({"w": word, "n": 1}) for word in words),
        lambda words: json.dumps({"w": [*words, "a text of more words than that"]})[:-1],
        lambda words: json.dumps({"w": words})[:-1] + ",}",
        lambda words: f"\ufeff {dict(enumerate(words))}",
        lambda words: "\n".join(f"s{n} = {word!r}" for n, word in enumerate(words)),
        lambda words: "print(" + " + ' ' + ".join(map(repr, words)) + ")",
        lambda words: "\n".join(f'"{word}"' for word in words),
        lambda words: "\n".join(f"    yield {word!r}" for word in words),
        lambda words: "\n".join(f"if x == {n}: return {w!r}" for n, w in enumerate(words)),
        lambda words: "\n".join(f"s = {word!r}  # bread" for word in words),
        lambda words: "[" + ", ".join(f"f{word!r}" for word in words) + "]",
        lambda words: "".join(f'<a b="{word}"/>' for word in words),
        lambda words: "<a " + " ".join(f'k{n}="{word}"' for n, word in enumerate(words)) + ">",
        lambda words: "It is:\n" + json.dumps({"a": json.dumps([{"w": word} for word in words])}),
    ],
)
def test_short_strings_are_judged_joined_wherever_json_or_code_stands(
    written: Callable[[list[str]], str],
) -> None:
    joined = [" ".join(text.split()) for text in asked(user(written(WORDS)))]
    assert HARM in joined


def row(role: str) -> dict[str, Any]:
    return {"messages": [user(), *({"role": role, "content": word} for word in WORDS), user("go")]}


PIECES: dict[str, dict[str, Any]] = {
    **{role: row(role) for role in ("assistant", "tool", "system")},
    "roles by turns": {
        "messages": [
            {"role": ("system", "tool", "assistant")[n % 3], "content": word}
            for n, word in enumerate(WORDS)
        ]
    },
    "calls": {
        "messages": [
            user(),
            *(calls((f"{CALL}{n}", "", json.dumps({"q": w}))) for n, w in enumerate(WORDS)),
        ]
    },
    "documents": {"messages": [user()], "documents": [{"text": word} for word in WORDS]},
    "fields": {"messages": [user()], **{f"x{n}": word for n, word in enumerate(WORDS)}},
    "properties of an answer": {
        "messages": [user()],
        "response_format": {"json_schema": {"schema": {"properties": dict.fromkeys(WORDS, True)}}},
    },
    "constants": {
        "messages": [user()],
        "tools": [
            {"name": "f", "description": "does", "parameters": {"const": word}} for word in WORDS
        ],
    },
}


@pytest.mark.parametrize("spread", PIECES)
def test_what_is_spread_by_a_word_each_is_judged_joined(spread: str) -> None:
    body = PIECES[spread]
    texts = asked(*body["messages"], **{k: v for k, v in body.items() if k != "messages"})
    assert any(HARM in " ".join(text.split()) for text in texts)
    assert HARM not in str(body)


@pytest.mark.parametrize("role", ["assistant", "tool", "system"])
def test_what_is_spread_by_a_few_words_each_is_judged_joined(role: str) -> None:
    pieces = ("Now I will", "find you and", "so break your", "legs this evening")
    texts = asked(user(), *({"role": role, "content": piece} for piece in pieces), user("go"))
    assert any(" ".join(pieces) in text for text in texts)


@pytest.mark.parametrize(
    ("harmful", "pieces"),
    [
        (HARM, ("I wil", "l find you an", "d br", "eak your le", "gs")),
        # The words that pieces make hide none that they are: here "stability".
        ("find you and stab\nility", ("I will find you and stab", "ility")),
    ],
)
async def test_words_that_are_cut_between_texts_are_read_both_ways(
    harmful: str, pieces: tuple[str, ...]
) -> None:
    scorer = FakeScorer({(harmful, "test/threat"): 3.0})
    book = small_book()
    rules = book.rules(book.profiles["default"])
    parts = [{"type": "text", "text": piece} for piece in pieces]
    for messages in [user(parts)], [user(piece) for piece in pieces]:
        plan = OpenAIChat().plan({"messages": messages}, PROFILE)
        found = [await judge(scorer, each.exchange, rules) for each in plan.prompts]
        assert any(verdict.action is Action.BLOCKED for verdict in found)
    for voices in ("a", "ab"):
        strands = [(f"{voices[n % len(voices)]}/", piece) for n, piece in enumerate(pieces)]
        answer, others = whole_and_parts(strands)
        verdict = await judge(scorer, Exchange("Why?", answer, parts=others), rules)
        assert verdict.action is Action.BLOCKED


CUT = ("I wil", "l find you an", "d br", "eak your le", "gs")


@pytest.mark.parametrize("roles", ["assistant tool", "system", "tool user"])
def test_words_that_are_cut_between_messages_are_whole(roles: str) -> None:
    each = cycle(roles.split())
    messages = [{"role": role, "content": piece} for role, piece in zip(each, CUT, strict=False)]
    texts = asked(user(), *messages)
    for said in (HARM, " ".join(CUT)):
        assert any(said in text for text in texts)


@pytest.mark.parametrize("pieces", [CUT, WORDS], ids=["cut", "whole"])
def test_what_others_say_in_between_hides_nothing(pieces: Sequence[str]) -> None:
    said = [
        {"role": role, "content": text}
        for piece in pieces
        for role, text in (("assistant", piece), ("tool", "fine"))
    ]
    assert HARM in asked(user(), *said)


@pytest.mark.parametrize("pieces", [CUT, WORDS], ids=["cut", "whole"])
def test_what_stands_in_places_that_look_alike_is_judged_joined(pieces: Sequence[str]) -> None:
    documents = [{"title": f"page {n}", "text": piece} for n, piece in enumerate(pieces)]
    fields = {f"note_{n}": {"to": "a baker", "say": piece} for n, piece in enumerate(pieces)}
    assert HARM in asked(user(), documents=documents)
    assert HARM in asked(user(), **fields)


async def test_words_that_are_cut_between_strings_of_json_are_whole() -> None:
    scorer, book = FakeScorer({(HARM, "test/threat"): 3.0}), small_book()
    text = json.dumps(["I wil", "l find you an", "d br", "eak your le", "gs"])
    verdict = await judge(scorer, Exchange(text), book.rules(book.profiles["default"]))
    assert verdict.action is Action.BLOCKED


def test_many_texts_are_joined_in_no_time() -> None:
    """The event loop does it: here 35,000 texts of voices by turns, which fit into a body."""
    strands = [(f"{'ab'[n % 2]}/[{n}]", "b") for n in range(35_000)]
    began = process_time()
    whole_and_parts(strands)
    # 35 ms on an idle machine; to look for words in it took 235.
    assert process_time() - began < 0.2


def test_a_few_short_messages_cost_one_judgement_each() -> None:
    talk = [user("hi"), {"role": "assistant", "content": "hello"}, user("thanks, bye")]
    assert asked(*talk) == ["hi", "hello", "thanks, bye", "hi\nthanks, bye"]
