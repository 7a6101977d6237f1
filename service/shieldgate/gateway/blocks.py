"""The shapes in which verdicts reach the callers of completions: OpenAI's, and Azure's.

OpenAI's are those of the field `moderation` of its chat completions. Azure's are its content
filter's: https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter-streaming.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import uuid4

import orjson

from shieldgate.conversation import Plan, plan_chat, plan_completion
from shieldgate.errors import Unscreenable
from shieldgate.gateway.errors import INVALID, UNAVAILABLE
from shieldgate.gateway.services import Judged
from shieldgate.openai.sse import DONE, Event
from shieldgate.policy import Profile
from shieldgate.types import Action, Verdict

FILTERED = "content_filter"
NOTHING_SPENT = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@dataclass(frozen=True, slots=True)
class Surface:
    """What tells chats from plain completions: where they go, and how a blocked choice looks.

    `whole` takes the choice's index and the refusal, and gives the choice of a whole reply.
    `ending` also takes whether something of the choice was sent before, and gives those of the
    last chunks of a stream.
    """

    path: str
    asks_in: str
    plan: Callable[[Mapping[str, Any], Profile], Plan]
    id: str
    objects: tuple[str, str]
    whole: Callable[[int, str], dict[str, Any]]
    ending: Callable[[int, str, bool], list[dict[str, Any]]]

    def envelope(self, model: object, *, streamed: bool) -> dict[str, Any]:
        """Write what stands around the choices of a reply that no model has given."""
        return {
            "id": f"{self.id}-{uuid4().hex}",
            "object": self.objects[streamed],
            "created": int(time()),
            "model": model if isinstance(model, str) else "",
        }


def _chat_whole(index: int, refusal: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": refusal}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": FILTERED}


def _chat_ending(index: int, refusal: str, begun: bool) -> list[dict[str, Any]]:
    # Clients join the strings of all deltas, the role's too.
    delta = {"refusal": refusal} if begun else {"role": "assistant", "refusal": refusal}
    choice = {"index": index, "logprobs": None}
    # Apart, because the official client overlooks a reason to finish in the first chunk.
    return [
        {**choice, "delta": delta, "finish_reason": None},
        {**choice, "delta": {}, "finish_reason": FILTERED},
    ]


def _text_whole(index: int, refusal: str) -> dict[str, Any]:
    return {"index": index, "text": refusal, "logprobs": None, "finish_reason": FILTERED}


def _text_ending(index: int, refusal: str, begun: bool) -> list[dict[str, Any]]:
    # What follows other text would read as its continuation.
    return [_text_whole(index, "" if begun else refusal)]


CHAT = Surface(
    path="/chat/completions",
    asks_in="messages",
    plan=plan_chat,
    id="chatcmpl",
    objects=("chat.completion", "chat.completion.chunk"),
    whole=_chat_whole,
    ending=_chat_ending,
)
COMPLETIONS = Surface(
    path="/completions",
    asks_in="prompt",
    plan=plan_completion,
    id="cmpl",
    objects=("text_completion", "text_completion"),
    whole=_text_whole,
    ending=_text_ending,
)


def event(data: object) -> bytes:
    """Write a JSON object as an event of a stream."""
    return Event(orjson.dumps(data).decode()).encode()


END = Event(DONE).encode()


def moderation(inputs: Sequence[Judged], outputs: Sequence[Judged], scorer: str) -> dict[str, Any]:
    """Write the object `moderation`; a direction in which nothing was judged has no results."""
    return {"input": _side(inputs, scorer), "output": _side(outputs, scorer)}


def prompt_error(inputs: Sequence[Judged], asks_in: str, scorer: str) -> dict[str, Any]:
    """Write the body of the 400 that says that a prompt was blocked."""
    blocking = next(j.verdict for j in inputs if j.verdict.action.stops)
    return {
        "error": {
            "message": f"The prompt was blocked. It violates: {', '.join(blocking.violated)}.",
            "type": INVALID,
            "param": asks_in,
            "code": FILTERED,
            "status": 400,
            "innererror": {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": filter_results(blocking),
            },
        },
        "moderation": moderation(inputs, (), scorer),
    }


def filter_results(verdict: Verdict) -> dict[str, Any]:
    """Write a verdict as Azure's results, keyed by policy.

    The severity is safe below the threshold; what is above is cut in three.
    """
    results = {}
    for judgement in verdict.judgements:
        severity = "safe"
        if judgement.violated:
            span = (1 - judgement.threshold) or 1
            above = (judgement.probability - judgement.threshold) / span
            severity = ("low", "medium", "high")[min(int(above * 3), 2)]
        filtered = judgement.violated and verdict.action.stops
        results[judgement.policy] = {"filtered": filtered, "severity": severity}
    return results


def _side(judged: Sequence[Judged], scorer: str) -> dict[str, Any]:
    failure = next((j.failure for j in judged if j.failure is not None), None)
    # A block stays to be told from a failure beside it; who was not judged has no categories.
    if failure is not None and not any(j.verdict.action is Action.BLOCKED for j in judged):
        code = "unscreenable" if isinstance(failure, Unscreenable) else UNAVAILABLE
        return {"type": "error", "code": code, "message": str(failure)}
    results = [_result(j.verdict, scorer) for j in judged]
    return {"type": "moderation_results", "model": scorer, "results": results}


def _result(verdict: Verdict, scorer: str) -> dict[str, Any]:
    found = verdict.judgements
    return {
        "type": "moderation_result",
        "model": scorer,
        "flagged": bool(verdict.violated),
        "categories": {j.policy: j.violated for j in found},
        "category_scores": {j.policy: j.probability for j in found},
        "category_applied_input_types": {j.policy: ["text"] for j in found},
    }
