"""What stands in OpenAI's requests beside the messages or the prompt, and is judged with them.

The rule: what the model reads is judged. `docs/coverage.md` says of every field what becomes of
it, and is held to that by a test.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shieldgate.dialects.plan import Subject
from shieldgate.dialects.text import material
from shieldgate.types import Exchange

_NAMED = (
    *("prediction", "documents", "chat_template", "chat_template_kwargs", "suffix"),
    "web_search_options",
)
# Prompts in another form than text, as vLLM and SGLang have them.
_UNREADABLE = {"prompt_embeds", "input_embeds", "prompt_token_ids", "input_ids"}
# What no model reads; `docs/coverage.md` has the reasons.
_PASSED = {
    *("model", "stop", "user", "safety_identifier", "metadata", "service_tier"),
    *("tool_choice", "function_call", "audio", "modalities"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("stream_options", "logit_bias"),
}
# Templates write these into the prompt, so that only what is known of them passes.
_EFFORTS = {"none", "minimal", "low", "medium", "high", "xhigh"}
_LEVELS = {"reasoning_effort": _EFFORTS, "verbosity": _EFFORTS}


def material_beside(
    body: Mapping[str, Any], read: Iterable[str]
) -> tuple[list[Subject], list[str]]:
    """Give the texts beside what was `read`, and name the fields that can't be.

    Documents are taken one by one. A field that is not known is named `body`, because its name
    may be any text.
    """
    subjects: list[Subject] = []
    unreadable: list[str] = []
    for name, value in body.items():
        known = _LEVELS.get(name, ())
        if name in read or name in _PASSED or (isinstance(value, str) and value in known):
            continue
        if name in _UNREADABLE and value is not None:
            unreadable.append(name)
            continue
        named = name if name in (*_NAMED, *_LEVELS) else "body"
        items = field_items(body, (name,)) if name == "documents" else [(named, value)]
        for field, item in items:
            found = material(item)
            subjects.append(Subject(field, Exchange(found.text)))
            if found.unscreenable:
                unreadable.append(field)
    return subjects, unreadable


def field_items(body: Mapping[str, Any], fields: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """List the values of fields, those of lists one by one, each with its place."""
    for field in fields:
        value = body.get(field)
        if isinstance(value, list):
            yield from ((f"{field}[{place}]", item) for place, item in enumerate(value))
        elif value is not None:
            yield field, value
