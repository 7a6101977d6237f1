"""What stands in OpenAI's requests beside the messages or the prompt, and is judged with them.

The rule: what the model reads is judged. `docs/coverage.md` says of every field what becomes of
it, and is held to that by a test.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shieldgate.dialects.openai_text import CONTENT, MEDIA, PREDICTION
from shieldgate.dialects.plan import Subject
from shieldgate.dialects.text import (
    Anything,
    Field,
    Known,
    Numbers,
    Object,
    Passed,
    Text,
    Unscreenable,
    are_numbers,
    is_unreadable,
    many_words,
    read,
)
from shieldgate.strands import spaced

# Templates write these into the prompt, so that only what is known of them passes.
_LEVEL = Known(frozenset(("none", "minimal", "low", "medium", "high", "xhigh")))
_PASSED, _ANYTHING = Passed(), Anything()
_BOTH: dict[str, Field] = {
    # Prompts in another form than text, as vLLM and SGLang have them, and programs.
    **dict.fromkeys(
        (
            *("prompt_embeds", "input_embeds", "prompt_token_ids", "input_ids"),
            *("chat_template", "logits_processors", "custom_logit_processor"),
        ),
        Unscreenable(),
    ),
    **MEDIA,
    # What no model reads; `docs/coverage.md` has the reasons.
    **dict.fromkeys(("model", "stop", "user"), _PASSED),
    **dict.fromkeys(("logit_bias", "stop_token_ids", "allowed_token_ids"), Numbers()),
    "stream_options": Object(
        dict.fromkeys(("include_usage", "include_obfuscation", "continuous_usage_stats"), _ANYTHING)
    ),
    "prediction": PREDICTION,
    "documents": Object(dict.fromkeys(("title", "text", "content"), Text(CONTENT))),
    # Numbers and flags.
    **dict.fromkeys(
        (
            *("n", "seed", "stream", "temperature", "top_p", "top_k", "min_p", "max_tokens"),
            *("frequency_penalty", "presence_penalty", "repetition_penalty", "logprobs"),
            *("min_tokens", "prompt_logprobs", "ignore_eos", "skip_special_tokens"),
            *("chat_template_kwargs", "suffix", "web_search_options"),
        ),
        _ANYTHING,
    ),
}
CHAT_FIELDS: dict[str, Field] = {
    **_BOTH,
    **dict.fromkeys(
        (
            *("safety_identifier", "metadata", "service_tier", "tool_choice", "function_call"),
            *("audio", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        ),
        _PASSED,
    ),
    **dict.fromkeys(("reasoning_effort", "verbosity"), _LEVEL),
    **dict.fromkeys(
        (
            *("max_completion_tokens", "parallel_tool_calls", "store", "top_logprobs"),
            *("add_generation_prompt", "continue_final_message", "include_reasoning"),
        ),
        _ANYTHING,
    ),
}
COMPLETION_FIELDS: dict[str, Field] = {**_BOTH, **dict.fromkeys(("echo", "best_of"), _ANYTHING)}


def material_beside(
    body: Mapping[str, Any], fields: Mapping[str, Field], elsewhere: Iterable[str]
) -> tuple[list[Subject], list[str]]:
    """Give the texts beside what is read `elsewhere`, and name the fields that can't be screened.

    Documents are taken one by one. A field that is not known is named `body`, because its name
    may be any text; one whose name differs from a known one in case only is refused.
    """
    subjects: list[Subject] = []
    unreadable: list[str] = []
    unknown: list[str] = []
    elsewhere = set(elsewhere)
    folded = {name.casefold() for name in (*fields, *elsewhere)}
    for name, value in body.items():
        field = fields.get(name)
        if name in elsewhere or value is None:
            continue
        if field is None:
            unknown.append(name)
            if name.casefold() in folded:
                unreadable.append(name)
            elif is_unreadable(name) and isinstance(value, (str, list, dict)) and value:
                unreadable.append("body")
                continue
        at = name if field else "body"
        items = [(at, value)]
        if name == "documents":
            items = list(field_items(body, (name,)))
            if isinstance(value, list) and are_numbers(value):
                unreadable.append(name)
        for where, item in items:
            found = read(field or _ANYTHING, item, where)
            subjects.append(Subject.of(where, found.strands))
            unreadable += [each or where for each in found.unscreenable]
    if many_words(unknown):
        subjects.append(Subject.of("body", [("other/", spaced(unknown))]))
    return subjects, unreadable


def field_items(body: Mapping[str, Any], fields: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """List the values of fields, those of lists one by one, each with its place."""
    for field in fields:
        value = body.get(field)
        if isinstance(value, list):
            yield from ((f"{field}[{place}]", item) for place, item in enumerate(value))
        elif value is not None:
            yield field, value
