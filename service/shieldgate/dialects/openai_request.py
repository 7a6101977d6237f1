"""Says of each field of OpenAI's requests, beside the messages or the prompt, what it is.

The rule: what the model reads is judged. `docs/coverage.md` says of every field what becomes of
it, and is held to that by a test.
"""

from shieldgate.dialects.fields import Anything, Numbers, Object, Passed, Text, Unscreenable, known
from shieldgate.dialects.openai_text import CONTENT, MEDIA, PREDICTION
from shieldgate.dialects.text import Field

# Templates write these into the prompt, so that only what is known of them passes.
_LEVEL = known("none", "minimal", "low", "medium", "high", "xhigh")
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
