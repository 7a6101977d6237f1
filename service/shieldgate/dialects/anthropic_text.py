"""Says of each field of Anthropic's messages, blocks and events what it is to the judge.

Read off the types of the package anthropic, 2.14.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shieldgate.dialects.fields import (
    Anything,
    Id,
    Json,
    Known,
    Measures,
    ModelName,
    Object,
    Parts,
    Passed,
    Sealed,
    Text,
    Typed,
    known,
)
from shieldgate.dialects.openai_text import CONTENT, COUNTED, REASONING, REFUSAL, TOOLS
from shieldgate.dialects.text import OTHER, Contents, Field, Found, read

# Long and not the speaker's own words: a voice of its own, so that it hides nothing beside it.
DOCUMENTS = "documents"

ROLES = ("user", "assistant", "system")
_RESULTS = (
    *("tool_result", "mcp_tool_result", "web_search_tool_result", "web_fetch_tool_result"),
    *("code_execution_tool_result", "bash_code_execution_tool_result"),
    *("text_editor_code_execution_tool_result", "tool_search_tool_result"),
)
_INNER = (
    *("text", "content", "direct", "ephemeral", "tool_reference", "web_search_result"),
    *("web_fetch_result", "code_execution_result", "bash_code_execution_result"),
    *("code_execution_output", "bash_code_execution_output", "encrypted_code_execution_result"),
    *("text_editor_code_execution_view_result", "text_editor_code_execution_create_result"),
    *("text_editor_code_execution_str_replace_result", "tool_search_tool_search_result"),
    *(f"{result}_error" for result in _RESULTS),
    *("char_location", "page_location", "content_block_location"),
    *("web_search_result_location", "search_result_location"),
    *("code_execution_20250825", "code_execution_20260120", "code_execution_20260521"),
)
_INNER_TYPE = Known(frozenset(_INNER))
_NUMBER = Anything()
_ID = Id()
_OTHER = Text(OTHER)
_DOCUMENT = Text(DOCUMENTS)
_TOOLS = Text(TOOLS)
_ERROR_CODE = known(
    *("invalid_tool_input", "unavailable", "max_uses_exceeded", "too_many_requests"),
    *("query_too_long", "request_too_large", "url_too_long", "url_not_allowed"),
    *("url_not_accessible", "unsupported_content_type", "execution_time_exceeded"),
    *("output_file_too_large", "file_not_found"),
)
_MARKS: dict[str, Field] = {"cache_control": Passed()}


_CITED = ("cited_text", "title", "document_title", "source", "url")
_PLACES = (
    *("document_index", "start_char_index", "end_char_index", "start_page_number"),
    *("end_page_number", "start_block_index", "end_block_index", "search_result_index"),
)
_CITATION = Object(
    {
        "type": _INNER_TYPE,
        **dict.fromkeys(_CITED, _OTHER),
        **dict.fromkeys(_PLACES, _NUMBER),
        "encrypted_index": Sealed(OTHER),
        "file_id": _ID,
    }
)


@dataclass(frozen=True, slots=True)
class _Produced:
    """What a server's tool gives: a text, a document that was fetched, or files, in a list."""

    document: Field

    def read(self, value: Any, found: Found, at: str) -> None:
        """Take the text, and refuse files."""
        (self.document if isinstance(value, dict) else _FILES).read(value, found, at)


_FILES = Parts({}, _TOOLS)


def _blocks(marks: Mapping[str, Field]) -> dict[str, Field]:
    """Give the blocks of a content, each of which may have `marks`."""

    def block(**fields: Field) -> Object:
        # Its type is known: by that it was found.
        return Object({"type": Passed(), **fields, **marks})

    def text(voice: str) -> Field:
        return block(text=Text(voice), citations=_CITATION)

    enabled = Object({"enabled": _NUMBER})
    quoted = Parts({"text": text(DOCUMENTS)}, _DOCUMENT)
    plain = Object({"type": _INNER_TYPE, "media_type": known("text/plain"), "data": _DOCUMENT})
    document = block(
        source=Typed({"text": plain, "content": Object({"type": _INNER_TYPE, "content": quoted})}),
        **dict.fromkeys(("title", "context"), _DOCUMENT),
        citations=enabled,
    )
    found = block(source=_DOCUMENT, title=_DOCUMENT, content=quoted, citations=enabled)
    reference = Object({"type": _INNER_TYPE, "tool_name": _TOOLS, **marks})
    caller = Object({"type": _INNER_TYPE, "tool_id": _ID})
    used: dict[str, Field] = {"id": _ID, "name": _TOOLS, "input": Json(TOOLS), "caller": caller}
    named: dict[str, Field] = dict.fromkeys(("toolset_name", "server_name"), _TOOLS)
    readable: dict[str, Field] = {
        "document": document,
        "search_result": found,
        "tool_reference": reference,
    }
    result: dict[str, Field] = {
        "tool_use_id": _ID,
        "is_error": _NUMBER,
        "caller": caller,
        "toolset_name": _TOOLS,
    }
    results = Parts({"text": text(TOOLS), **readable}, _TOOLS)
    of_server = Object(
        {
            "type": _INNER_TYPE,
            "error_code": _ERROR_CODE,
            **dict.fromkeys(("title", "url", "page_age", "stdout", "stderr", "lines"), _TOOLS),
            **dict.fromkeys(("error_message", "retrieved_at"), _TOOLS),
            **dict.fromkeys(("encrypted_content", "encrypted_stdout"), Sealed(TOOLS)),
            "return_code": _NUMBER,
            "tool_references": reference,
            "content": _Produced(Typed({"document": document})),
            "file_type": known("text"),
            **dict.fromkeys(("num_lines", "start_line", "total_lines"), _NUMBER),
            **dict.fromkeys(("old_start", "old_lines", "new_start", "new_lines"), _NUMBER),
            "is_file_update": _NUMBER,
        }
    )
    return {
        "text": text(CONTENT),
        "thinking": block(thinking=Text(REASONING), signature=Sealed(OTHER)),
        "redacted_thinking": block(data=Sealed(OTHER)),
        "compaction": block(
            content=_OTHER, encrypted_content=Sealed(OTHER), signature=Sealed(OTHER)
        ),
        **{
            kind: block(**used, **named) for kind in ("tool_use", "server_tool_use", "mcp_tool_use")
        },
        **{kind: block(**result, content=results) for kind in ("tool_result", "mcp_tool_result")},
        **{kind: block(**result, content=of_server) for kind in _RESULTS[2:]},
        **readable,
    }


_ASKED, _SAID = _blocks(_MARKS), _blocks({})
_CONTENT = Text(CONTENT)
_MESSAGE = Object({"role": known(*ROLES), "content": Parts(_ASKED, _CONTENT)})
_SYSTEM = Object({"system": Parts({"text": _ASKED["text"]}, _CONTENT)})

_STOPPED: dict[str, Field] = {
    "stop_reason": known(
        *("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal"),
        "model_context_window_exceeded",
    ),
    "stop_sequence": _OTHER,
    "stop_details": Object(
        {
            "type": known("refusal"),
            "category": known(
                "cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms"
            ),
            "explanation": Text(REFUSAL),
        }
    ),
    "container": Object({"id": _ID, "expires_at": _ID}),
}
_USAGE = Measures(
    words=frozenset((*COUNTED.split(), "1h", "5m", "fetch", "geo", "inference", "speed")),
    values=frozenset(("standard", "priority", "batch", "fast", "us", "global", "not_available")),
)
REPLY = Object(
    {
        "id": _ID,
        "type": known("message"),
        "role": known("assistant"),
        "model": ModelName(),
        "content": Parts(_SAID, _CONTENT),
        "usage": _USAGE,
        **_STOPPED,
    }
)
_BLOCK = Typed(_SAID)
_DELTA = Typed(
    {
        "text_delta": Object({"type": Passed(), "text": _CONTENT}),
        "thinking_delta": Object({"type": Passed(), "thinking": Text(REASONING)}),
        "input_json_delta": Object({"type": Passed(), "partial_json": _TOOLS}),
        "signature_delta": Object({"type": Passed(), "signature": Sealed(OTHER)}),
        "citations_delta": Object({"type": Passed(), "citation": _CITATION}),
        "compaction_delta": Object(
            {"type": Passed(), "content": _OTHER, "encrypted_content": Sealed(OTHER)}
        ),
    }
)
EVENTS = frozenset(
    (
        *("message_start", "message_delta", "message_stop", "ping"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
    )
)
_EVENT = Object(
    {
        "type": Known(EVENTS),
        "index": _NUMBER,
        "message": REPLY,
        "delta": Object(_STOPPED),
        "usage": _USAGE,
    }
)


def message(given: Any) -> Contents:
    """Read a message of a request; what is no object can't be screened."""
    return read(_MESSAGE, given) if isinstance(given, dict) else Contents((), ("",))


def system(given: Any) -> Contents:
    """Read the field `system`."""
    return read(_SYSTEM, {"system": given})


def only_results(given: Any) -> bool:
    """Tell whether a message brings nothing but what tools gave."""
    content = given.get("content") if isinstance(given, dict) else None
    return (
        bool(content)
        and isinstance(content, list)
        and all(isinstance(block, dict) and block.get("type") in _RESULTS for block in content)
    )


def event(data: Mapping[str, Any], number: int) -> Contents:
    """Read an event of a stream, the one of this `number`; blocks are named by their index."""
    found = Found(pieces=True)
    rest = dict(data)
    index = rest.get("index")
    at = f"content[{index if type(index) is int else 0}]"
    if rest.get("type") == "content_block_start":
        _BLOCK.read(rest.pop("content_block", None), found, at)
    elif rest.get("type") == "content_block_delta":
        delta = rest.pop("delta", None)
        # Citations follow one another, and don't continue one another.
        cites = isinstance(delta, dict) and delta.get("type") == "citations_delta"
        _DELTA.read(delta, found, f"{at}.citations[{number}]" if cites else at)
    elif rest.get("type") == "message_start" and isinstance(rest.get("message"), dict):
        # Deltas may go on with the blocks that it holds.
        REPLY.read(rest.pop("message"), found, "")
    _EVENT.read(rest, found, "")
    return found.contents()
