"""Whatever a body holds: each string is judged, refused, or named by docs/coverage.md as passed.

The oracle knows nothing of the walk. It looks for marks: words that stand nowhere else, in strings
and in names of fields. `FUZZ_EXAMPLES=20000` looks for longer, and elsewhere each time. What a new
dialect needs is an entry in `SPOKEN`.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_coverage_table import AROUND, CHAT, CHOICES, COMPLETIONS, MESSAGES, ROWS

from shieldgate.dialects import DIALECTS, Dialect
from shieldgate.dialects.openai_chat import OpenAIChat
from shieldgate.dialects.openai_completions import OpenAICompletions
from shieldgate.policy import Profile
from shieldgate.strands import whole_and_parts

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
fuzzed = settings(
    max_examples=int(EXAMPLES or 60),
    derandomize=not EXAMPLES,
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
PROFILE = Profile("default", ("test/threat",), history="all")

# Words as a reader would take them for such, each of them another.
_SYLLABLES = ("ma", "re", "no", "ti", "la", "se", "co", "de", "pi", "lo")
MARK = re.compile(r"(?:ma|re|no|ti|la|se|co|de|pi|lo){4}zzo")


def mark(number: int) -> str:
    return "".join(_SYLLABLES[int(digit)] for digit in f"{number:04d}"[-4:]) + "zzo"


def passed(table: str) -> set[str]:
    """The fields that the page names as passed, whatever they hold."""
    rows = [row for row in ROWS if row.table == table]
    whole = {row.field for row in rows if row.becomes == "passed" and "TEXT" in str(row.example)}
    return whole - {row.field for row in rows if row.becomes != "passed"} - {""}


PASSED = {table: passed(table) for table in (MESSAGES, CHAT, COMPLETIONS, CHOICES, AROUND)}
# Few words pass here, which is said in the row; a mark is one.
WORDS = {"model", "provider"}
# JSON that a caller or a model has made: what stands there is text, numbers and all.
FREE = {"arguments", "input", "tools", "functions", "response_format"}
NUMBERS = {"bytes", "token_logprobs", "text_offset", "logprob", "logit_bias"}
NUMBERS |= {"stop_token_ids", "allowed_token_ids"}

FIELDS = sorted(
    {row.field for row in ROWS if row.field} | {key for row in ROWS for key in row.example}
)
INNER = ("type", "text", "thinking", "function", "custom", "index", "url", "title", "x", "token")
EXACT = ("messages", "choices", "message", "delta", "n", "stream", "stream_options", "moderation")
KEYS = [key for key in (*FIELDS, *INNER) if key not in EXACT and "TEXT" not in key]
TYPES = ("text", "function", "thinking", "refusal", "image_url", "reasoning.text", "url_citation")


def leaves() -> st.SearchStrategy[Any]:
    said = st.builds("say {}".format, st.just("MARK"))
    return (
        st.just("MARK")
        | said
        | st.just("call_MARK")
        | st.just("{JSON}")
        | st.none()
        | st.booleans()
        | st.integers(0, 99)
        | st.sampled_from(TYPES)
        | st.lists(st.integers(1, 9), max_size=3)
    )


JSON = st.recursive(
    leaves(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "MARK"]), inner, max_size=4)
    ),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.sampled_from([*KEYS, "MARK"]), JSON, max_size=5)
ROLES = st.sampled_from(["user", "assistant", "tool", "system", "MARK"])


def marked(value: Any, marks: Iterator[int], *, keys: bool = True) -> Any:
    """Write marks where they belong; what is JSON in a string spells its own with escapes."""
    if isinstance(value, str):
        if value == "{JSON}":
            spelled = "".join(f"\\u{ord(c):04x}" for c in mark(next(marks)))
            return (
                json.dumps({"q": f'{{"deep": "{spelled}"}}'})
                if next(marks) % 2
                else (f'{{"q": "{spelled}"}}')
            )
        return value.replace("MARK", mark(next(marks))) if "MARK" in value else value
    if isinstance(value, list):
        return [marked(item, marks) for item in value]
    if isinstance(value, dict):
        return {marked(key, marks): marked(item, marks) for key, item in value.items()}
    return value


def unescaped(text: str) -> str:
    """Read escapes as a reader would who knows JSON, in strings within strings, too."""
    for _ in range(4):
        text = re.sub(r"\\+u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)
    return text


def strings(value: Any, passes: Callable[[tuple[str, ...]], bool], *at: str) -> Iterator[str]:
    """All marks that have to be judged."""
    if passes(at):
        return
    if isinstance(value, str):
        yield from MARK.findall(unescaped(value))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, passes, *at)
    elif isinstance(value, dict):
        for key, item in value.items():
            # Outermost names without a text are no text, if they are few words.
            yield from MARK.findall(key) if len(at) > 0 else ()
            yield from strings(item, passes, *at, key)


def numbers(value: Any, passes: Callable[[tuple[str, ...]], bool], *at: str) -> bool:
    """Tell whether there is a list of numbers where text belongs."""
    if passes(at) or (at and at[-1] in FREE | NUMBERS):
        return False
    if isinstance(value, list):
        found = sum(type(item) in (int, float) for item in value)
        return found > 1 or any(numbers(item, passes, *at) for item in value)
    if isinstance(value, dict):
        return any(numbers(item, passes, *at, key) for key, item in value.items())
    return False


def of_request(table: str) -> Callable[[tuple[str, ...]], bool]:
    def passes(at: tuple[str, ...]) -> bool:
        if at[:1] == ("messages",):
            mark_at = [place for place, key in enumerate(at) if key in PASSED[MESSAGES]]
            return bool(mark_at) and (
                mark_at[0] == 1 or at[1:2] == ("content",) == at[1 : mark_at[0]]
            )
        return bool(at) and at[0] in PASSED[table]

    return passes


def of_reply(at: tuple[str, ...]) -> bool:
    if at[:1] == ("choices",):
        return len(at) > 1 and at[1] in PASSED[CHOICES]
    return bool(at) and (at[0] in PASSED[AROUND] or (at == (at[0],) and at[0] in WORDS))


def missing(wanted: Iterator[str], judged: str) -> list[str]:
    return [each for each in wanted if each not in judged]


@dataclass(frozen=True)
class Spoken:
    """How a dialect is fuzzed: what its bodies look like, and what docs/coverage.md lets pass.

    `request` makes a body, `reply` a whole reply; `chunk` makes an event of a stream of two
    choices. In all, MARK stands for words. `passes_request` and `passes_reply` tell of a path of
    names whether what stands there passes unjudged.
    """

    dialect: Dialect
    request: st.SearchStrategy[dict[str, Any]]
    reply: st.SearchStrategy[dict[str, Any]]
    chunk: st.SearchStrategy[dict[str, Any]]
    passes_request: Callable[[tuple[str, ...]], bool]
    passes_reply: Callable[[tuple[str, ...]], bool] = of_reply


def with_choice(field: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda around, choice, said, index: {
            **around,
            "choices": [{**choice, field: said, "index": index}] if index < 2 else [],
        },
        *(OBJECT, OBJECT, st.just("MARK") if field == "text" else OBJECT, st.integers(0, 2)),
    )


def first_choice(reply: dict[str, Any]) -> dict[str, Any]:
    return {**reply, "choices": [{**choice, "index": 0} for choice in reply["choices"]]}


MESSAGE = st.builds(lambda role, message: {"role": role, **message}, ROLES, OBJECT)
SPOKEN = [
    Spoken(
        OpenAIChat(),
        st.builds(
            lambda messages, more: {**more, "messages": messages},
            *(st.lists(MESSAGE, min_size=1, max_size=3), OBJECT),
        ),
        with_choice("message").filter(lambda reply: reply["choices"]).map(first_choice),
        with_choice("delta"),
        of_request(CHAT),
    ),
    Spoken(
        OpenAICompletions(),
        st.builds(
            lambda more: {"prompt": "MARK", **more},
            OBJECT.filter(lambda more: isinstance(more.get("prompt", ""), (str, list))),
        ),
        with_choice("text").filter(lambda reply: reply["choices"]).map(first_choice),
        with_choice("text"),
        of_request(COMPLETIONS),
    ),
]
each_dialect = pytest.mark.parametrize("spoken", SPOKEN, ids=lambda spoken: spoken.dialect.name)


def test_every_dialect_is_fuzzed() -> None:
    here = {spoken.dialect.route for spoken in SPOKEN}
    # Those with pages and events of their own have files of their own.
    for route in {dialect.route for dialect in DIALECTS} - here:
        name = route.removeprefix("/v1/")
        assert Path(__file__).with_name(f"test_{name}_walk.py").exists()


@each_dialect
@fuzzed
@given(st.data())
def test_every_string_of_a_request_is_judged_refused_or_named_as_passed(
    spoken: Spoken, data: st.DataObject
) -> None:
    body = marked(data.draw(spoken.request), count(1))
    plan = spoken.dialect.plan(body, PROFILE)
    if plan.unscreenable:
        return
    texts = [
        text for s in plan.prompts for e in s.exchange.apart() for text in (e.response or e.prompt,)
    ]
    assert missing(strings(body, spoken.passes_request), "\n".join(texts)) == []
    assert not numbers(body, spoken.passes_request)


@each_dialect
@fuzzed
@given(st.data())
def test_every_string_of_an_answer_is_judged_refused_or_named_as_passed(
    spoken: Spoken, data: st.DataObject
) -> None:
    reply = marked(data.draw(spoken.reply), count(1))
    [answer] = spoken.dialect.answers(reply)
    if answer.unscreenable:
        return
    whole, parts = whole_and_parts(answer.texts)
    assert missing(strings(reply, spoken.passes_reply), "\n".join((whole, *parts))) == []
    assert not numbers(reply, spoken.passes_reply)


@each_dialect
@fuzzed
@given(st.data())
def test_every_string_that_leaves_in_a_stream_is_judged_refused_or_named_as_passed(
    spoken: Spoken, data: st.DataObject
) -> None:
    marks = count(1)
    stream = spoken.dialect.stream({"stream": True}, 2)
    said: dict[int, dict[str, str]] = {0: {}, 1: {}}
    left: dict[int, list[Any]] = {0: [], 1: []}
    stopped: set[int] = set()
    for chunk in data.draw(st.lists(spoken.chunk, min_size=1, max_size=4)):
        for piece in stream.read("", marked(chunk, marks)):
            event = json.loads(piece.data.rpartition(b"data: ")[2])
            if piece.choice is None:
                # Nobody judges it.
                assert list(strings(event, spoken.passes_reply)) == []
                assert not numbers(event, spoken.passes_reply)
                continue
            if piece.unscreenable:
                stopped.add(piece.choice)
            if piece.choice not in stopped:
                left[piece.choice].append(event)
                for strand, text in piece.texts:
                    said[piece.choice][strand] = said[piece.choice].get(strand, "") + text
    for index, events in left.items():
        whole, parts = whole_and_parts(said[index].items())
        for event in events:
            assert missing(strings(event, spoken.passes_reply), "\n".join((whole, *parts))) == []
            assert not numbers(event, spoken.passes_reply)


@pytest.mark.parametrize("table", [MESSAGES, CHAT, COMPLETIONS, CHOICES, AROUND])
def test_the_page_names_some_fields_as_passed_and_none_that_hold_what_is_judged(table: str) -> None:
    assert PASSED[table] or table == CHOICES
    assert not PASSED[table] & {"content", "messages", "prompt", "message", "delta"}
