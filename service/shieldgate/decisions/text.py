"""The text that questions are about: what a request shows, as an exchange to be judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import orjson

from shieldgate.dialects.conversation import as_json
from shieldgate.dialects.looks import looks_like_media
from shieldgate.dialects.openai_responses_text import ASSISTANT, ITEM, kind_of, role_of
from shieldgate.dialects.text import Found
from shieldgate.strands import whole_and_parts
from shieldgate.types import Exchange

_KINDS = (
    *("message", "function_call", "function_call_output"),
    *("custom_tool_call", "custom_tool_call_output"),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is judged, and the fields that hold what no scorer here can read."""

    exchange: Exchange
    unscreenable: tuple[str, ...] = ()


def shown_items(given: str | Sequence[Any]) -> Shown:
    """Read the `input` of a decision: a text, or the items of a conversation.

    A conversation is one text, whose last turn is judged alone as well. Where the assistant speaks
    last, that is judged as the answer to all that comes before.
    """
    if isinstance(given, str):
        return Shown(Exchange(given))
    turns: list[tuple[str, list[tuple[str, str]]]] = []
    unscreenable: list[str] = []
    for place, item in enumerate(given):
        at, found = f"input[{place}]", Found()
        if kind_of(item) in _KINDS:
            ITEM.read(_as_texts(item), found, "")
        else:
            found.refuse("")
        unscreenable += [f"{at}.{field}".rstrip(".") for field in found.contents().unscreenable]
        turns.append((role_of(item), found.strands))
    ending = sum(1 for _ in takewhile(lambda turn: turn[0] == ASSISTANT, reversed(turns)))
    before, last = turns[: len(turns) - ending], turns[len(turns) - ending :]
    asked, parts = whole_and_parts(strand for _, said in before for strand in said)
    if last:
        answer, parts = whole_and_parts(strand for _, said in last for strand in said)
        return Shown(Exchange(asked, answer, parts=parts), tuple(unscreenable))
    newest = whole_and_parts(before[-1][1])[0] if len(before) > 1 else asked
    alone = dict.fromkeys((*parts, newest))
    kept = tuple(part for part in alone if part != asked)
    return Shown(Exchange(asked, parts=kept), tuple(unscreenable))


def shown_state(state: Any) -> Shown:
    """Read the `state` of a System One request: a text, or JSON."""
    if isinstance(state, str):
        return Shown(Exchange(state))
    unscreenable = ("state",) if _holds_media(state) else ()
    return Shown(as_json("state", state).exchange, unscreenable)


def json_text(part: Any) -> str | None:
    """Write a part that is JSON as the text that it is read as; None where it is none."""
    if not isinstance(part, dict) or part.get("type") != "input_json":
        return None
    data = part.get("data")
    if set(part) != {"type", "data"} or _holds_media(data):
        return None
    return orjson.dumps(data).decode()


def _as_texts(item: dict[str, Any]) -> dict[str, Any]:
    content = item.get("content")
    if not isinstance(content, list):
        return item
    parts = [
        part if (text := json_text(part)) is None else {"type": "input_text", "text": text}
        for part in content
    ]
    return {**item, "content": parts}


def _holds_media(value: Any) -> bool:
    """Tell whether JSON holds an image, a sound or a file; lists of numbers are read as JSON."""
    if isinstance(value, dict):
        return any(map(_holds_media, (*value, *value.values())))
    if isinstance(value, list):
        return any(map(_holds_media, value))
    return isinstance(value, str) and looks_like_media(value)
