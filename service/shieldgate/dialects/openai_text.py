"""Says of each field of OpenAI's messages, choices and replies what it is to the judge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shieldgate.dialects.beside import part_around
from shieldgate.dialects.fields import (
    Anything,
    Id,
    Json,
    Measures,
    ModelName,
    Object,
    Parts,
    Passed,
    Text,
    Tokens,
    Unscreenable,
    known,
)
from shieldgate.dialects.text import OTHER, Contents, Field, Found, read

CONTENT, REFUSAL, REASONING, TOOLS = "content", "refusal", "reasoning", "tools"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_TYPE = known(
    *("text", "input_text", "output_text", "refusal", "thinking", "reasoning", "content"),
    *("function", "custom", "url_citation", "ephemeral", "summary_text", "reasoning_text"),
    *("reasoning.text", "reasoning.summary", "reasoning.encrypted"),
)
_ID = Id()
_NUMBER = Anything()
_OTHER = Text(OTHER)
_MARKS: dict[str, Field] = dict.fromkeys(("cache_control", "prompt_cache_breakpoint"), Passed())
MEDIA: dict[str, Field] = dict.fromkeys(
    (
        *("image", "images", "image_url", "audio_url", "video", "videos", "video_url"),
        *("file", "files", "input_audio", "attachments"),
    ),
    Unscreenable(),
)


@dataclass(frozen=True, slots=True)
class _Audio:
    """A sound; what is said in it can be judged."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Refuse the sound and take its transcript."""
        found.refuse(at)
        if isinstance(value, dict) and isinstance(value.get("transcript"), str):
            found.text(CONTENT, f"{at}.transcript", value["transcript"])


_CONTENT = Text(CONTENT)
_THOUGHT = Text(REASONING)
_THOUGHTS = Object({"type": _TYPE, "text": _THOUGHT, "index": _NUMBER}, bare=_THOUGHT)


def _parts(marks: Mapping[str, Field]) -> Parts:
    """Give the parts of a content, each of which may have `marks`."""

    def part(**fields: Field) -> Object:
        return Object({**MEDIA, "type": _TYPE, "id": _ID, "index": _NUMBER, **fields, **marks})

    text = part(text=_CONTENT, annotations=_OTHER)
    thought = part(thinking=_THOUGHTS, reasoning=_THOUGHTS, text=_THOUGHT, signature=_OTHER)
    kinds = {
        **dict.fromkeys(("text", "input_text", "output_text"), text),
        **dict.fromkeys(("thinking", "reasoning"), thought),
        "refusal": part(refusal=Text(REFUSAL)),
    }
    return Parts(kinds, _CONTENT)


_FUNCTION = Object({"name": Text(TOOLS), "arguments": Json(TOOLS)}, bare=Text(TOOLS))
_CITATION = Object(
    {"url": _OTHER, "title": _OTHER, "start_index": _NUMBER, "end_index": _NUMBER}, bare=_OTHER
)
_SAID: dict[str, Field] = {
    **MEDIA,
    "role": known(*ROLES),
    "name": known(),
    "tool_call_id": _ID,
    "refusal": Text(REFUSAL),
    "reasoning": _THOUGHTS,
    "reasoning_content": _THOUGHTS,
    "thinking": _THOUGHTS,
    "reasoning_details": Object(
        {
            "type": _TYPE,
            "id": _ID,
            "index": _NUMBER,
            "format": known("unknown"),
            **dict.fromkeys(("text", "summary"), _THOUGHT),
            **dict.fromkeys(("data", "signature"), _OTHER),
        },
        bare=_THOUGHT,
    ),
    "tool_calls": Object(
        {
            "index": _NUMBER,
            "id": _ID,
            "type": _TYPE,
            "function": _FUNCTION,
            "custom": Object({"name": Text(TOOLS), "input": Json(TOOLS)}, bare=Text(TOOLS)),
        },
        bare=Text(TOOLS),
    ),
    "function_call": _FUNCTION,
    "annotations": Object({"type": _TYPE, "url_citation": _CITATION}),
    "audio": _Audio(),
    **dict.fromkeys(("provider_specific_fields", "extra_content"), Anything()),
}
_MESSAGE = Object({**_SAID, **_MARKS, "content": _parts(_MARKS)})
_ANSWER = Object({**_SAID, "content": _parts({})})
PREDICTION = Object({"type": _TYPE, "content": _parts(_MARKS)})

_FINISHES = known(
    *(
        "",
        " ",
        "null",
        "none",
        "None",
        "stop",
        "length",
        "tool_calls",
        "function_call",
        "content_filter",
        "error",
    ),
    *("abort", "eos", "eos_token", "stop_sequence", "end_turn", "max_tokens", "tool_use"),
    *("STOP", "MAX_TOKENS", "SAFETY", "COMPLETE"),
)
_SEVERITY = known("safe", "low", "medium", "high")
_FILTERED = Object({"filtered": _NUMBER, "detected": _NUMBER, "severity": _SEVERITY})
_FILTERS = Object(
    dict.fromkeys(
        (
            *("hate", "self_harm", "sexual", "violence", "profanity", "jailbreak"),
            *("indirect_attack", "protected_material_text", "protected_material_code"),
        ),
        _FILTERED,
    )
)
_OFFSETS = Object(dict.fromkeys(("check_offset", "start_offset", "end_offset"), _NUMBER))
_TOKEN_FIELDS = frozenset(
    (
        *("content", "refusal", "token", "decoded_token", "logprob", "rank", "bytes"),
        *("top_logprobs", "tokens", "token_logprobs", "text_offset"),
    )
)
_TOKEN_NUMBERS = frozenset(("logprob", "rank", "token_logprobs", "text_offset"))
_CHOICE = Object(
    {
        "index": _NUMBER,
        "message": _ANSWER,
        "delta": _ANSWER,
        "text": _CONTENT,
        "finish_reason": _FINISHES,
        "native_finish_reason": _FINISHES,
        "stop_reason": _FINISHES,
        "matched_stop": _FINISHES,
        "content_filter_results": _FILTERS,
        "content_filter_offsets": _OFFSETS,
        "logprobs": Tokens("logprobs", _TOKEN_FIELDS, _TOKEN_NUMBERS),
        "prompt_logprobs": Tokens("prompt_logprobs", _TOKEN_FIELDS, _TOKEN_NUMBERS),
        **dict.fromkeys(("token_ids", "output_ids", "tokens", "hidden_states"), Unscreenable()),
    }
)
# What usage counts, as words of the names of its numbers.
COUNTED = """
accepted audio byok cache cached completion cost count creation details draft ephemeral gen
generated hit image inference input is ms n num output per predicted prediction price prompt
queries queue read reasoning rejected requests search second server text time token tokens tool
total ttl upstream usage use video web write 12h 30m
"""
MEASURES = Measures(
    words=frozenset(COUNTED.split()),
    values=frozenset(("low", "medium", "high", "default", "standard")),
)
_REPLY = Object(
    {
        "choices": Passed(),
        "id": Id(short=2),
        "object": known("chat.completion", "chat.completion.chunk", "text_completion"),
        "created": _NUMBER,
        **dict.fromkeys(("model", "provider"), ModelName()),
        "system_fingerprint": Id(frozenset(("", "fp", "fp_ollama"))),
        "service_tier": known(
            "auto", "default", "flex", "scale", "priority", "standard", "on_demand"
        ),
        **dict.fromkeys(("usage", "timings", "time_info"), MEASURES),
        "prompt_filter_results": Object(
            {"prompt_index": _NUMBER, "content_filter_results": _FILTERS}
        ),
        "x_groq": Object({"id": _ID, "usage": MEASURES}),
        "prompt_logprobs": Tokens("prompt_logprobs", _TOKEN_FIELDS, _TOKEN_NUMBERS),
        # Those of a stream that differ from its first, and names of fields in many chunks.
        **dict.fromkeys(("ids", "models", "providers", "fields"), known()),
        "kv_transfer_params": Anything(),
        **dict.fromkeys(("token_ids", "prompt_token_ids", "output_ids"), Unscreenable()),
    }
)


def contents(message: Any) -> Contents:
    """Read a message of a request; what is no object can't be screened."""
    if not isinstance(message, dict):
        return Contents((), ("",))
    return read(_MESSAGE, message)


def split(reply: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Part what stands around the choices of a reply or chunk, as `part_around` says."""
    return part_around({key: item for key, item in reply.items() if key != "choices"}, _REPLY)


def answer(choice: Mapping[str, Any], beside: Mapping[str, Any]) -> Contents:
    """Read a choice of a reply or of a stream: its message or delta, and what stands around it.

    `beside` is of the reply or chunk what `split` says is to be judged.
    """
    found = Found(pieces="delta" in choice)
    _CHOICE.read(choice, found, "")
    _REPLY.read(beside, found, "")
    return found.contents()
