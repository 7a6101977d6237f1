"""Says of each event of a streamed response what it says, and where in the response that stands.

An answer's text comes in deltas, and again when it is done: with its part, its item and the whole
response. Each time it bears the same name, so that what repeats is known.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shieldgate.dialects.fields import Anything, Json, Known, Object, Passed, Text, Unscreenable
from shieldgate.dialects.interface import JsonObject
from shieldgate.dialects.openai_responses_reply import answered
from shieldgate.dialects.openai_responses_text import (
    ANNOTATION,
    ID,
    ITEM,
    LOGPROBS,
    NUMBER,
    PART,
    SHELL_OUTPUT,
    STATUS,
)
from shieldgate.dialects.openai_text import CONTENT, REASONING, REFUSAL, TOOLS
from shieldgate.dialects.text import Field, Found

LAST = ("response.completed", "response.incomplete", "response.failed")
AROUND = ("response.created", "response.queued", "response.in_progress")
_PLACES = ("output_index", "content_index", "summary_index", "annotation_index", "command_index")

_ITEM = "output[{output_index}]"
_CONTENT = _ITEM + ".content[{content_index}]"
_SUMMARY = _ITEM + ".summary[{summary_index}]"
# By the beginning of the names of two events: the field of the second one that has all of it.
_TEXTS: dict[str, tuple[str, str, Field]] = {
    "response.output_text": (f"{_CONTENT}.text", "text", Text(CONTENT)),
    "response.refusal": (f"{_CONTENT}.refusal", "refusal", Text(REFUSAL)),
    "response.reasoning_text": (f"{_CONTENT}.text", "text", Text(REASONING)),
    "response.reasoning_summary_text": (f"{_SUMMARY}.text", "text", Text(REASONING)),
    "response.function_call_arguments": (f"{_ITEM}.arguments", "arguments", Json(TOOLS)),
    "response.mcp_call_arguments": (f"{_ITEM}.arguments", "arguments", Json(TOOLS)),
    "response.custom_tool_call_input": (f"{_ITEM}.input", "input", Json(TOOLS)),
    "response.code_interpreter_call_code": (f"{_ITEM}.code", "code", Text(TOOLS)),
    "response.shell_call_command": (
        _ITEM + ".action.commands[{command_index}]",
        "command",
        Json(TOOLS),
    ),
    "response.shell_call_output_content": (f"{_ITEM}.output", "output", SHELL_OUTPUT),
    "response.audio.transcript": ("transcript", "transcript", Text(CONTENT)),
}
_WHOLES: dict[str, tuple[str, str, Field]] = {
    "response.shell_call_command.added": _TEXTS["response.shell_call_command"],
    **{f"{name}.done": text for name, text in _TEXTS.items()},
    **dict.fromkeys(
        ("response.content_part.added", "response.content_part.done"), (_CONTENT, "part", PART)
    ),
    **dict.fromkeys(
        ("response.reasoning_summary_part.added", "response.reasoning_summary_part.done"),
        (_SUMMARY, "part", PART),
    ),
    **dict.fromkeys(
        ("response.output_item.added", "response.output_item.done"), (_ITEM, "item", ITEM)
    ),
    "response.output_text.annotation.added": (
        _CONTENT + ".annotations[{annotation_index}]",
        "annotation",
        ANNOTATION,
    ),
}
_DELTAS: dict[str, tuple[str, str, Field]] = {
    **{f"{name}.delta": (path, "delta", tree) for name, (path, _, tree) in _TEXTS.items()},
    "response.audio.delta": ("audio", "delta", Unscreenable()),
}
_ANYTHING = Anything()
_WITHOUT_TEXT = (
    *("response.audio.done", "response.compaction.compacting", "response.image_generation_call"),
    *(
        f"response.{call}.{state}"
        for call in (
            *("code_interpreter_call", "file_search_call", "web_search_call", "mcp_call"),
            *("mcp_list_tools", "image_generation_call"),
        )
        for state in (
            *("in_progress", "searching", "interpreting", "generating", "completed", "failed"),
            "partial_image",
        )
    ),
)
KINDS = frozenset((*LAST, *AROUND, *_WHOLES, *_DELTAS, *_WITHOUT_TEXT))
# What events have beside what they say; a name of a tool stands in its item as well.
_EVENT = Object(
    {
        "type": Known(KINDS),
        **dict.fromkeys((*_PLACES, "sequence_number", "partial_image_index"), NUMBER),
        "item_id": ID,
        "status": STATUS,
        "partial_image_b64": Unscreenable(),
        # Written anew before it leaves.
        "obfuscation": Passed(),
    }
)


@dataclass(frozen=True, slots=True)
class Said:
    """What an event says: what goes on with earlier events, and what may repeat them."""

    goes_on: list[tuple[str, str]]
    repeats: list[tuple[str, str]]
    unscreenable: bool


def read_event(kind: str, event: JsonObject, body: JsonObject) -> Said:
    """Read one event of an answer to `body`; what stands in no known field goes on."""
    goes_on, repeats = Found(), Found()
    # Most of each event is numbers that say nothing.
    rest = {k: v for k, v in event.items() if type(v) is not int or k not in _EVENT.fields}
    at = {name: value if type(value := event.get(name)) is int else 0 for name in _PLACES}
    if (said := _DELTAS.get(kind) or _WHOLES.get(kind)) is not None:
        path, field, tree = said
        found = goes_on if kind in _DELTAS else repeats
        if (value := rest.pop(field, None)) is not None:
            # In an event JSON is a string, or a piece of one.
            of_protocol = isinstance(value, str) or not isinstance(tree, Json)
            (tree if of_protocol else _ANYTHING).read(value, found, path.format_map(at))
        if tokens := rest.pop("logprobs", None):
            LOGPROBS.read(tokens, found, f"{_CONTENT}.logprobs".format_map(at))
        if (name := rest.pop("name", None)) is not None:
            Text(TOOLS).read(name, repeats, f"{_ITEM}.name".format_map(at))
    elif kind in LAST or kind in AROUND:
        whole = answered(rest.pop("response"), body)
        repeats.strands += whole.strands
        repeats.unscreenable += whole.unscreenable
    for name, value in rest.items():
        known = name in _EVENT.fields
        _EVENT.read({name: value}, repeats if known else goes_on, "" if known else f"event.{kind}")
    refused = goes_on.unscreenable or repeats.unscreenable
    return Said(goes_on.strands, repeats.strands, bool(refused))


class Heard:
    """What of a stream its judge was given, strand by strand."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._others: dict[str, list[str]] = {}

    def new(self, said: Said) -> Iterator[tuple[str, str]]:
        """Give what the judge has not heard; what differs from it is another strand."""
        for strand, text in said.goes_on:
            self._texts.setdefault(strand, []).append(text)
            yield strand, text
        yield from self._unheard(said.repeats)

    def _unheard(self, repeats: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        for strand, text in repeats:
            heard = "".join(self._texts.get(strand, ()))
            others = self._others.setdefault(strand, [])
            if text in heard or text in others:
                continue
            if text.startswith(heard):
                self._texts[strand] = [text]
                yield strand, text[len(heard) :]
            else:
                others.append(text)
                yield f"{strand} {len(others)}", text
