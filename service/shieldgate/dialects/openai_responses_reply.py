"""A response as a whole: what of it is judged, and how one looks that refuses."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from time import time
from typing import Any
from uuid import uuid4

from shieldgate.dialects.beside import part_around
from shieldgate.dialects.fields import Id, ModelName, Object, Text, known
from shieldgate.dialects.interface import JsonObject, Refusal
from shieldgate.dialects.openai import FILTERED
from shieldgate.dialects.openai_responses_text import ID, ITEM, NUMBER, STATUS
from shieldgate.dialects.openai_text import MEASURES
from shieldgate.dialects.text import OTHER, Contents, Found

NOTHING_SPENT = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}

# What a response repeats of its request, with the server's words for what was left out.
_ECHOES = (
    *("instructions", "tools", "tool_choice", "text", "reasoning", "metadata", "prompt", "user"),
    *("conversation", "previous_response_id", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_options", "context_management"),
)
_DEFAULTS = """
12h 24h 30m action additionalProperties all_turns allowed_callers allowed_domains allowed_tools
always and apply_patch approximate async auto background city client code_interpreter
compact_threshold compaction comparison_response_id computer computer_use computer_use_preview
concise container context country current_turn custom defer_loading description detailed direct
disabled display_height display_width effort embedding_weight enabled environment execution
explicit external_web_access file_ids file_search filters format function generate_summary grammar
high hybrid_search id image image_generation implicit in_memory input_fidelity input_image_mask
json_object json_schema key local local_shell low max max_num_results mcp medium memory_limit
minimal mode model moderation name namespace network_policy never none object opaque or
output_compression output_format output_schema parameters partial_images png pro programmatic
programmatic_tool_calling properties quality ranker ranking_options region require_approval
required schema score_threshold search_content_types search_context_size server server_description
server_label server_url shell size skills standard strict string summary syntax text text_weight
timezone tool_names tool_search tools ttl type user_location value variables vector_store_ids
verbosity version web_search web_search_preview xhigh
"""
_WORDS = frozenset(_DEFAULTS.split())


_OTHER = Text(OTHER)
_AROUND = Object(
    {
        "id": Id(short=2),
        "object": known("response"),
        "status": STATUS,
        "model": ModelName(),
        "service_tier": known(
            *("auto", "default", "flex", "scale", "priority", "fast", "ultrafast", "standard")
        ),
        "incomplete_details": Object(
            {"reason": known("max_output_tokens", "max_messages", FILTERED, "steered")}
        ),
        "error": Object({"code": _OTHER, "message": _OTHER, "type": _OTHER, "param": _OTHER}),
        **dict.fromkeys(("usage", "tool_usage"), MEASURES),
        "truncation": known("auto", "disabled"),
        "prompt_cache_retention": known("in_memory", "24h"),
        "access_programs": Object({"cyber": known("standard", "daybreak_blue", "daybreak_red")}),
        "image": Object({"context_compression": known("enabled", "disabled")}),
        "billing": Object({"payer": known("developer", "openai")}),
        "prompt_cache_diagnostics": Object(
            {
                "type": known(
                    *("cache_hit", "cache_miss", "comparison_response_not_found", "unavailable")
                )
            }
        ),
        "input_transformations": Object({"type": known("reasoning"), "id": ID}),
        **dict.fromkeys(
            (
                *("created_at", "completed_at", "background", "store", "parallel_tool_calls"),
                *("temperature", "top_p", "top_logprobs", "max_output_tokens", "max_tool_calls"),
                *("presence_penalty", "frequency_penalty"),
                # vLLM's, which are mostly null.
                *("input_messages", "output_messages", "kv_transfer_params", "metrics"),
            ),
            NUMBER,
        ),
    }
)


def split(reply: JsonObject, body: JsonObject) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what stands around the items of a reply to `body`: what passes, and what is judged.

    What the reply repeats of the request passes, because it was judged with it.
    """
    echoed = {
        key: item for key, item in reply.items() if key in _ECHOES and _echoes(item, body.get(key))
    }
    around = {key: item for key, item in reply.items() if key != "output" and key not in echoed}
    passed, beside, _ = part_around(around, _AROUND)
    return {**echoed, **passed}, beside


def _echoes(value: Any, given: Any) -> bool:
    return value in (None, given) or _WORDS.union(_said(given)).issuperset(_said(value))


def _said(value: Any) -> Iterator[Hashable]:
    """List all strings, and lists of numbers, which may be tokens."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value
            waiting += value.values()
        elif isinstance(value, list):
            numbers = tuple(item for item in value if type(item) in (int, float))
            if len(numbers) > 1:
                yield numbers
            waiting += value


def answered(reply: JsonObject, body: JsonObject) -> Contents:
    """Read a reply to `body`: its items, and what stands around them and is to be judged."""
    found = Found()
    for place, item in enumerate(reply.get("output") or ()):
        ITEM.read(item, found, f"output[{place}]")
    _AROUND.read(split(reply, body)[1], found, "")
    return found.contents()


def envelope(body: JsonObject) -> dict[str, Any]:
    """Write what stands around the items of a response that no model has given."""
    model = body.get("model")
    return {
        "id": f"resp_{uuid4().hex}",
        "object": "response",
        "created_at": int(time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model if isinstance(model, str) else "",
        "output": [],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }


def refusing(around: Mapping[str, Any], output: Sequence[Any]) -> dict[str, Any]:
    """Write a response that was stopped, of which `output` may leave."""
    return {
        **around,
        "status": "incomplete",
        "error": None,
        "incomplete_details": {"reason": FILTERED},
        "output": list(output),
    }


def refused_part(refusal: Refusal) -> dict[str, Any]:
    """Write the part of a message that says a refusal."""
    if refusal.as_content:
        return {"type": "output_text", "text": refusal.text, "annotations": [], "logprobs": []}
    return {"type": "refusal", "refusal": refusal.text}


def refused_message(refusal: Refusal) -> dict[str, Any]:
    """Write a message that says a refusal."""
    return {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "content": [refused_part(refusal)],
    }
