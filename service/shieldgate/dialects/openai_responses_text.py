"""Says of each field of the items of OpenAI's Responses what it is to the judge.

Items are what goes in and what comes out. One table has them all; what stands in none of its rows
can't be screened, and neither can a part of a message that no row knows.
"""

from dataclasses import dataclass
from typing import Any

from shieldgate.dialects.fields import (
    Anything,
    Id,
    Json,
    Object,
    Parts,
    Passed,
    Sealed,
    Text,
    Tokens,
    Typed,
    Unscreenable,
    known,
)
from shieldgate.dialects.openai_text import CONTENT, REASONING, REFUSAL, TOOLS
from shieldgate.dialects.text import OTHER, Field, Found

PASSED, ID, NUMBER = Passed(), Id(), Anything()
_SAID, _TOOLS, _OTHER, _JSON = Text(CONTENT), Text(TOOLS), Text(OTHER), Json(TOOLS)
_THOUGHT, _SEALED = Text(REASONING), Sealed(REASONING)
STATUS = known(
    *("in_progress", "completed", "incomplete", "failed", "cancelled", "queued"),
    *("searching", "interpreting", "generating", "calling"),
)
_CALLER = Object({"type": known("direct", "program"), "caller_id": ID})
_LOGPROBS = frozenset(("token", "bytes", "logprob", "top_logprobs"))
LOGPROBS = Tokens("logprobs", _LOGPROBS, frozenset(("logprob",)))

ANNOTATION = Object(
    {
        "type": known("file_citation", "url_citation", "container_file_citation", "file_path"),
        **dict.fromkeys(("file_id", "container_id"), ID),
        **dict.fromkeys(("url", "title", "filename"), _OTHER),
        **dict.fromkeys(("index", "start_index", "end_index"), NUMBER),
    }
)


def _part(**fields: Field) -> Object:
    return Object({"type": PASSED, "prompt_cache_breakpoint": PASSED, **fields})


_TEXT = _part(text=_SAID, annotations=ANNOTATION, logprobs=LOGPROBS)
PART_KINDS: dict[str, Field] = {
    **dict.fromkeys(("input_text", "output_text", "text"), _TEXT),
    "refusal": _part(refusal=Text(REFUSAL)),
    **dict.fromkeys(("summary_text", "reasoning_text"), _part(text=_THOUGHT)),
}
PART = Typed(PART_KINDS)
PARTS = Parts(PART_KINDS, _SAID)


def _item(**fields: Field) -> Object:
    """Give the fields of an item, and those that every one has."""
    given: dict[str, Field] = {
        "type": PASSED,
        "status": STATUS,
        "caller": _CALLER,
        **dict.fromkeys(("name", "namespace", "server_label"), _TOOLS),
        **fields,
    }
    ids = dict.fromkeys(("id", "call_id", "approval_request_id", "created_by"), ID)
    return Object({**ids, **given})


_ACTION = Object(
    {
        "type": known(
            *("click", "double_click", "drag", "keypress", "move", "screenshot", "scroll"),
            *("type", "wait"),
        ),
        "button": known("left", "right", "wheel", "back", "forward"),
        "text": _TOOLS,
        "keys": _JSON,
        "path": Object(dict.fromkeys(("x", "y"), NUMBER)),
        **dict.fromkeys(("x", "y", "scroll_x", "scroll_y"), NUMBER),
    }
)
_CHECKS = Object({"id": ID, "code": _OTHER, "message": _OTHER})
_SEARCH = Object(
    {
        "type": known("search", "open_page", "find_in_page"),
        **dict.fromkeys(("query", "url", "pattern"), _TOOLS),
        "queries": _JSON,
        "sources": Object({"type": known("url"), "url": _OTHER}),
    }
)
_COMMAND = Object(
    {
        "type": known("exec"),
        **dict.fromkeys(("command", "commands", "env"), _JSON),
        **dict.fromkeys(("user", "working_directory"), _TOOLS),
        **dict.fromkeys(("timeout_ms", "max_output_length"), NUMBER),
    }
)
_ENVIRONMENT = Object({"type": known("local", "container_reference"), "container_id": ID})
SHELL_OUTPUT = Object(
    {
        "outcome": Object({"type": known("exit", "timeout"), "exit_code": NUMBER}),
        **dict.fromkeys(("stdout", "stderr"), _SAID),
        "created_by": ID,
    },
    bare=_SAID,
)
_PATCH = Object(
    {
        "type": known("create_file", "delete_file", "update_file"),
        **dict.fromkeys(("path", "diff"), _TOOLS),
    }
)
_ERROR = Object(
    {
        "type": known(
            *("mcp_protocol_error", "mcp_tool_execution_error", "http_error"),
            *("image_generation_error", "image_generation_user_error"),
        ),
        "code": _OTHER,
        "message": _OTHER,
    },
    bare=_OTHER,
)
_IMAGE = _item(
    result=Unscreenable(),
    revised_prompt=_TOOLS,
    action=known("generate", "edit", "auto"),
    background=known("transparent", "opaque", "auto"),
    output_format=known("png", "webp", "jpeg", "gif", "svg"),
    quality=known("low", "medium", "high", "xhigh", "max", "auto"),
    size=known("auto", "1024x1024", "1024x1536", "1536x1024"),
    error=_ERROR,
)
_LOGS = Parts({"logs": _part(logs=_SAID)}, _SAID)
_RESULT = Object({"file_id": ID, "filename": _OTHER, "score": NUMBER, "text": _SAID})
_EXECUTION = known("server", "client")

USER, ASSISTANT, TOOL, DEVELOPER = "user", "assistant", "tool", "developer"
ROLES = (USER, ASSISTANT, "system", DEVELOPER)

MESSAGE = _item(
    role=known(*ROLES),
    phase=known("commentary", "final_answer"),
    content=PARTS,
)
# What each kind of item is, and who speaks in it: what calls and results hold together is
# judged like a result.
_ITEMS: dict[str, tuple[str, Object]] = {
    "message": (USER, MESSAGE),
    "reasoning": (
        ASSISTANT,
        _item(summary=PARTS, content=PARTS, encrypted_content=_SEALED),
    ),
    "function_call": (ASSISTANT, _item(arguments=_JSON, **{"async": NUMBER})),
    "function_call_output": (TOOL, _item(output=PARTS)),
    "custom_tool_call": (ASSISTANT, _item(input=_JSON, **{"async": NUMBER})),
    "custom_tool_call_output": (TOOL, _item(output=PARTS)),
    "mcp_list_tools": (TOOL, _item(tools=_JSON, error=_ERROR)),
    "mcp_approval_request": (ASSISTANT, _item(arguments=_JSON)),
    "mcp_approval_response": (USER, _item(approve=NUMBER, reason=_SAID)),
    "mcp_call": (TOOL, _item(arguments=_JSON, output=_SAID, error=_ERROR)),
    "shell_call": (ASSISTANT, _item(action=_COMMAND, environment=_ENVIRONMENT)),
    "shell_call_output": (TOOL, _item(output=SHELL_OUTPUT, max_output_length=NUMBER)),
    "local_shell_call": (ASSISTANT, _item(action=_COMMAND)),
    "local_shell_call_output": (TOOL, _item(output=_SAID)),
    "apply_patch_call": (ASSISTANT, _item(operation=_PATCH)),
    "apply_patch_call_output": (TOOL, _item(output=_SAID)),
    "code_interpreter_call": (TOOL, _item(code=_TOOLS, container_id=ID, outputs=_LOGS)),
    "computer_call": (
        ASSISTANT,
        _item(action=_ACTION, actions=_ACTION, pending_safety_checks=_CHECKS),
    ),
    "computer_call_output": (
        TOOL,
        _item(output=Unscreenable(), acknowledged_safety_checks=_CHECKS),
    ),
    "web_search_call": (ASSISTANT, _item(action=_SEARCH)),
    "file_search_call": (TOOL, _item(queries=_JSON, results=_RESULT)),
    "image_generation_call": (ASSISTANT, _IMAGE),
    "tool_search_call": (ASSISTANT, _item(arguments=_JSON, execution=_EXECUTION)),
    "tool_search_output": (TOOL, _item(tools=_JSON, execution=_EXECUTION)),
    "program": (ASSISTANT, _item(code=_TOOLS, fingerprint=_SEALED)),
    "program_output": (TOOL, _item(result=_SAID)),
    "additional_tools": (DEVELOPER, _item(tools=_JSON, role=known(*ROLES))),
    "configuration_update": (DEVELOPER, _item(reasoning=_JSON, text=_JSON)),
    # What of a conversation is left after it was made shorter; only its server can read it.
    "compaction": (ASSISTANT, _item(encrypted_content=_SEALED)),
    "compaction_trigger": (USER, _item()),
    "item_reference": (USER, _item()),
}


def kind_of(item: Any) -> str | None:
    """Name what an item is; types may be left out where the fields tell."""
    if not isinstance(item, dict):
        return None
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference" if set(item) == {"id"} else None
    return kind if isinstance(kind, str) and kind in _ITEMS else None


def role_of(item: Any) -> str:
    """Tell who speaks in an item; whoever isn't known is a user, whose words are always judged."""
    kind = kind_of(item)
    if kind == "message":
        return item["role"] if item.get("role") in ROLES else USER
    return _ITEMS[kind][0] if kind else USER


@dataclass(frozen=True, slots=True)
class Item:
    """An item of any kind; one of no known kind can't be screened."""

    def read(self, value: Any, found: Found, at: str) -> None:
        """Read it as what it is."""
        if kind := kind_of(value):
            _ITEMS[kind][1].read(value, found, at)
        else:
            found.refuse(at)


ITEM = Item()
