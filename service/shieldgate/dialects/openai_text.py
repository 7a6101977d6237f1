"""Reads the messages and choices of OpenAI's completions: what of them is text to judge."""

from collections.abc import Mapping
from typing import Any

from shieldgate.dialects.text import (
    MOST_LEVELS,
    Contents,
    Found,
    Vocabulary,
    textless,
    walk,
    walk_object,
    words_only,
)

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "thinking", "reasoning")
_FOR_THE_SERVER = ("cache_control", "prompt_cache_breakpoint")
_ABOUT_THE_ANSWER = {
    "index",
    "finish_reason",
    "stop_reason",
    "content_filter_results",
    "content_filter_offsets",
}
_ENVELOPE = {
    "id",
    "object",
    "created",
    "model",
    "system_fingerprint",
    "service_tier",
    "usage",
    "prompt_filter_results",
    "obfuscation",
}
_CHAT = Vocabulary(
    fields=frozenset(
        (
            *("role", "content", "name", "refusal", "tool_calls", "function_call", "tool_call_id"),
            *("function", "custom", "arguments", "input", "audio", "transcript", "annotations"),
            *("reasoning", "reasoning_content", "reasoning_details", "thinking", "text", "type"),
            *("id", "index", "url_citation", "title", "url", "start_index", "end_index", "format"),
            *("signature", "finish_reason", "stop_reason", "model", "object", "usage", "citations"),
        )
    ),
    naming=frozenset(("role", "type", "id", "tool_call_id")),
    free=frozenset(("arguments", "input")),
)
_TOKENS = {"content", "refusal", "token", "logprob", "bytes", "top_logprobs"}
_TOKENS |= {"tokens", "token_logprobs", "text_offset"}


def contents(message: Any) -> Contents:
    """Read a message of a request.

    Every string counts as text, in known and in unknown fields alike, and so does every name of a
    field that is not the protocol's. Exceptions are roles, types and ids that look like such, and
    marks for the server's cache. What is no text is unscreenable: content parts of other types,
    audio, what is nested too deeply, and a message that is no object.
    """
    return Contents.of(_message(message, marks=True))


def split(reply: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what stands around the choices of a reply or chunk: what passes, and what is judged.

    Passing is what holds no text, and of the fields that every server sends those made of words.
    """
    passed: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for key, item in reply.items():
        if key != "choices":
            passes = words_only(item) if key in _ENVELOPE else textless(item)
            (passed if passes else beside)[key] = item
    return passed, beside


def answer(choice: Mapping[str, Any], beside: Mapping[str, Any]) -> Contents:
    """Read a choice of a reply or of a stream: its message or delta, and what stands around it.

    `beside` is of the reply or chunk what `split` says is to be judged. The tokens of `logprobs`
    are texts of their own, each rank of alternatives one. Left out is what tells how the answer
    came about, where it consists of words.
    """
    found: list[tuple[str, str | None]] = []
    rest = dict(choice)
    for key in ("message", "delta"):
        if said := rest.pop(key, None):
            found += _message(said, marks=False)
    tokens: dict[str, list[str]] = {}
    for field, text in _tokens(rest.pop("logprobs", None), "logprobs", 0, 0):
        if text is None:
            found.append((field, None))
        else:
            tokens.setdefault(field, []).append(text)
    found += ((field, "".join(texts)) for field, texts in tokens.items())
    if rest.get("token_ids"):
        found.append(("token_ids", None))
    rest = {k: v for k, v in rest.items() if not (k in _ABOUT_THE_ANSWER and words_only(v))}
    found += _message(rest, marks=False)
    found += walk_object(beside, "around", 0, _CHAT)
    return Contents.of(found)


def _message(message: Any, *, marks: bool) -> Found:
    if not isinstance(message, dict):
        yield "", None
        return
    rest = _unmarked(message) if marks else dict(message)
    if isinstance(rest.get("content"), list):
        for place, part in enumerate(rest.pop("content")):
            yield from _part(part, f"content[{place}]", marks)
    elif isinstance(rest.get("content"), dict):
        yield "content", None
    audio = rest.pop("audio", None)
    if audio is not None:
        yield "audio", None
    if isinstance(audio, dict):
        yield from walk(audio.get("transcript"), "audio.transcript", 0, _CHAT)
    yield from walk_object(rest, "", 0, _CHAT)


def _part(part: Any, field: str, marks: bool) -> Found:
    if isinstance(part, str):
        yield field, part
    elif isinstance(part, dict) and part.get("type") in _TEXT_PARTS:
        yield from walk_object(_unmarked(part) if marks else part, field, 0, _CHAT)
    else:
        yield field, None


def _unmarked(said: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in said.items() if key not in _FOR_THE_SERVER}


def _tokens(value: Any, field: str, level: int, lists: int) -> Found:
    """Walk `logprobs`; what follows one another in its outermost lists is one text."""
    if level > MOST_LEVELS:
        yield "", None
    elif isinstance(value, str):
        yield field, value
    elif isinstance(value, list):
        for place, item in enumerate(value):
            at = f"{field}[{place}]" if lists else field
            yield from _tokens(item, at, level + 1, lists + 1)
    elif isinstance(value, dict):
        for place, (key, item) in enumerate(value.items()):
            # The alternatives of plain completions are keys.
            if key not in _TOKENS:
                yield f"{field}.{place}:", key
            if key == "bytes" and item is not None:
                yield f"{field}.bytes", _unlike(value.get("token"), item)
            else:
                at = key if key in _TOKENS else str(place)
                yield from _tokens(item, f"{field}.{at}", level + 1, lists)


def _unlike(token: Any, given: Any) -> str | None:
    """Read the bytes of a token; nothing where they say what the token says."""
    try:
        text = bytes(given).decode(errors="ignore")
    except (TypeError, ValueError):
        return None
    return "" if text == token else text
