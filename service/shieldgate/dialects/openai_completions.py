"""`POST /v1/completions`."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from shieldgate.dialects.beside import material_beside
from shieldgate.dialects.interface import Endpoint, JsonObject, Refusal
from shieldgate.dialects.openai import ACCOUNT, BEARER, FILTERED
from shieldgate.dialects.openai_choices import ChoicesRoute
from shieldgate.dialects.openai_request import COMPLETION_FIELDS
from shieldgate.dialects.plan import Plan, Subject, distinct
from shieldgate.dialects.text import material
from shieldgate.openai.chat import CompletionRequest
from shieldgate.policy import Profile


class OpenAICompletions(ChoicesRoute):
    """OpenAI's plain completions."""

    name = "complete"
    description = "Continue a text with the upstream model, screened like a chat."
    route = "/v1/completions"
    request_model: type[BaseModel] = CompletionRequest
    endpoint = Endpoint("/completions", BEARER, ACCOUNT)
    prompt_param = "prompt"

    _id = "cmpl"
    _objects = ("text_completion", "text_completion")

    def plan(self, body: JsonObject, profile: Profile) -> Plan:
        """Say what is judged of a completion; nothing of it depends on the profile."""
        return plan_completion(body)

    def stopped_choice(self, index: int, refusal: Refusal) -> dict[str, Any]:
        """Write a choice whose text refuses."""
        return {"index": index, "text": refusal.text, "logprobs": None, "finish_reason": FILTERED}

    def last_choices(self, index: int, refusal: Refusal, *, begun: bool) -> list[dict[str, Any]]:
        """Write the refusal and the reason."""
        # What follows other text would read as its continuation.
        return [self.stopped_choice(index, Refusal("") if begun else refusal)]


def plan_completion(body: JsonObject) -> Plan:
    """Say what is judged of a body that was read as a CompletionRequest.

    Each prompt of a list is judged by itself, and has `n` choices. A `suffix` is judged by itself
    too, and as one text with each prompt, which the answers between them are judged with. Tokens
    are unscreenable.
    """
    given = body.get("prompt")
    if isinstance(given, list) and not all(isinstance(item, int) for item in given):
        prompts = {f"prompt[{place}]": item for place, item in enumerate(given)}
    else:
        prompts = {"prompt": given or ""}
    texts = {field: item if isinstance(item, str) else "" for field, item in prompts.items()}
    unscreenable = [field for field, item in prompts.items() if not isinstance(item, str)]
    suffix = material(body.get("suffix")).texts[0]
    around = {field: "\n".join(filter(None, (text, suffix))) for field, text in texts.items()}
    material_texts, unreadable = material_beside(body, COMPLETION_FIELDS, ("prompt",))
    subjects = [
        *_prompts(texts),
        *material_texts,
        *_prompts(around),
    ]
    contexts = tuple(around.values()) or ("",)
    unscreenable += unreadable
    return Plan(distinct(subjects), tuple(unscreenable), contexts, body.get("n") or 1)


def _prompts(texts: Mapping[str, str]) -> list[Subject]:
    return [Subject.of(field, [("content/", text)]) for field, text in texts.items()]
