"""What of a request for a response is judged, and what later requests may refer to.

The rule is that of all requests: what the model reads is judged. `docs/coverage.md` says of every
field what becomes of it, and is held to that by a test.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shieldgate.dialects.beside import field_items, material_beside
from shieldgate.dialects.conversation import Message, converse, definitions
from shieldgate.dialects.fields import Numbers, Object, Text, known
from shieldgate.dialects.interface import JsonObject
from shieldgate.dialects.openai_responses_text import (
    DEVELOPER,
    ITEM,
    NUMBER,
    PART,
    PARTS,
    PASSED,
    kind_of,
    role_of,
)
from shieldgate.dialects.plan import Plan, Subject, distinct
from shieldgate.dialects.text import Field, Found, string_in
from shieldgate.policy import Profile

_OF_TOOLS = ("type", "name", "description", "parameters", "format")
_BEFORE, _SEAL = "previous_response_id", "encrypted_content"
_REFERRING = frozenset(("type", "id", _SEAL))
# Where items stand: those before the request's own, once they are known, and these.
_INPUTS = (_BEFORE, "input")
# What is read with the items, or refers to what stands elsewhere.
_ELSEWHERE = (*_INPUTS, "instructions", "tools", "conversation")


@dataclass(frozen=True, slots=True)
class _Variables:
    """Values for the gaps of a prompt that the server keeps, under names of the caller's."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Take names and values."""
        if not isinstance(value, dict):
            found.refuse(at)
            return
        for name, item in value.items():
            found.name(f"{at}.{name}:", name)
            (PARTS if isinstance(item, str) else PART).read(item, found, f"{at}.{name}")


_LEVELS = known("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SUMMARY = known("auto", "concise", "detailed")
FIELDS: dict[str, Field] = {
    # What no model reads; `docs/coverage.md` has the reasons.
    **dict.fromkeys(
        (
            *("model", "user", "safety_identifier", "metadata", "service_tier", "include"),
            *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
            *("tool_choice", "background_options"),
        ),
        PASSED,
    ),
    "prompt": Object({"id": PASSED, "version": PASSED, "variables": _Variables()}),
    "reasoning": Object(
        {
            "effort": _LEVELS,
            **dict.fromkeys(("summary", "generate_summary"), _SUMMARY),
            "context": known("auto", "current_turn", "all_turns"),
            "mode": known("standard", "pro"),
        }
    ),
    # Its format is a definition, as tools are.
    "text": Object({"verbosity": _LEVELS, "format": PASSED}),
    "truncation": known("auto", "disabled"),
    "context_management": Object({"type": known("compaction"), "compact_threshold": NUMBER}),
    "access_programs": Object({"cyber": known("standard", "daybreak_blue", "daybreak_red")}),
    "image": Object({"context_compression": known("auto", "enabled", "disabled")}),
    "stream_options": Object({"include_obfuscation": NUMBER}),
    "logit_bias": Numbers(),
    # Numbers and flags.
    **dict.fromkeys(
        (
            *("background", "max_output_tokens", "max_tool_calls", "parallel_tool_calls", "store"),
            *("stream", "temperature", "top_logprobs", "top_p", "top_k", "min_p", "seed"),
            *("presence_penalty", "frequency_penalty", "repetition_penalty", "include_reasoning"),
        ),
        NUMBER,
    ),
}


def plan_response(body: JsonObject, profile: Profile) -> Plan:
    """Say what is judged of a body that was read as a ResponsesRequest."""
    messages = [*_instructions(body), *_turns(body)]
    tools = list(field_items(body, ("tools",)))
    names = [name for _, tool in tools if (name := string_in(tool, "name"))]
    found = converse(messages, profile, names)
    subjects = list(found.subjects)
    if profile.instructions == "judge":
        subjects += definitions(tools, _OF_TOOLS, names)
        subjects += _format(body)
    texts, unreadable = material_beside(body, FIELDS, _ELSEWHERE)
    return Plan(
        distinct([*subjects, *texts]),
        (*found.unscreenable, *unreadable),
        contexts=(found.context,),
        prefill=found.prefill,
        unseen=tuple(_unseen(body)),
    )


def _instructions(body: JsonObject) -> Iterator[Message]:
    given = body.get("instructions")
    if given is None:
        return
    found = Found()
    for place, item in enumerate(given if isinstance(given, list) else [given]):
        if isinstance(item, dict):
            ITEM.read(item, found, f"[{place}]")
        else:
            Text("content").read(item, found, "")
    yield Message(DEVELOPER, "instructions", found.contents())


def _turns(body: JsonObject) -> Iterator[Message]:
    for field in _INPUTS:
        for place, item in enumerate(_items(body, field)):
            found = Found()
            ITEM.read(item, found, "")
            yield Message(role_of(item), f"{field}[{place}]", found.contents())


def _format(body: JsonObject) -> Iterator[Subject]:
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    if form not in (None, {}, {"type": "text"}, {"type": "json_object"}):
        yield from definitions([("text.format", form)], (), ())


def _unseen(body: JsonObject) -> Iterator[str]:
    """Name what refers to texts that the model reads and that stand nowhere in the body."""
    for field in ("conversation", "prompt", _BEFORE):
        if body.get(field) and not isinstance(body[field], list):
            yield field
    for field in _INPUTS:
        for place, item in enumerate(_items(body, field)):
            if _refers(item):
                yield f"{field}[{place}]"


def _items(body: JsonObject, field: str) -> Sequence[Any]:
    given = body.get(field)
    if field == "input" and isinstance(given, str):
        return [{"role": "user", "content": given}]
    return given if isinstance(given, list) else []


def _refers(item: Any) -> bool:
    kind = kind_of(item)
    return kind == "item_reference" or (kind == "compaction" and _SEAL in item)


class ResponsesThread:
    """What a request goes on with: a response before it, and items by their ids.

    A conversation and a prompt of the server's are filled by routes that don't lead through here,
    so that nobody knows all that is in them.
    """

    def __init__(self, body: JsonObject) -> None:
        """Read what a body refers to."""
        self._body = body
        named = [body.get(_BEFORE), *map(_id, filter(_refers, _items(body, "input")))]
        self.ids: Sequence[str] = tuple(dict.fromkeys(filter(None, named)))

    def read(self, known: Mapping[str, Sequence[Any]]) -> JsonObject:
        """Write the body with the items that are known in place of what refers to them."""
        read = dict(self._body)
        before = known.get(read.get(_BEFORE) or "")
        if before is not None:
            read[_BEFORE] = before
        if not isinstance(read.get("input"), str):
            read["input"] = [_meant(item, known) for item in _items(read, "input")]
        return read

    def said(self, read: JsonObject, reply: JsonObject) -> Mapping[str, Sequence[Any]]:
        """List what the next turn goes on with, by the response's id, and each item by its own."""
        made, output = _id(reply), reply.get("output")
        if self._body.get("store") is False or not made or not isinstance(output, list):
            return {}
        # What was not seen stays so.
        unseen = [{"id": field} for field in _unseen(read) if "[" not in field]
        earlier = [item for field in _INPUTS for item in _items(read, field)]
        each = {name: [item] for item in output if (name := _id(item))}
        return {**each, made: [*unseen, *earlier, *output]}


def _id(item: Any) -> str:
    return string_in(item, "id")


def _meant(item: Any, known: Mapping[str, Sequence[Any]]) -> Any:
    """Give the item that one stands for; one that nobody knows stands for itself."""
    found = known.get(_id(item)) if _refers(item) else None
    # What stands beside a reference would not be judged in its place.
    if not found or not _REFERRING.issuperset(item):
        return item
    if kind_of(item) == "item_reference":
        return found[0]
    # What was made shorter was judged before; that it is this, its seal tells.
    return {"type": "compaction"} if found[0].get(_SEAL) == item[_SEAL] else item
