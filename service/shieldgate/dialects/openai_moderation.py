"""The shapes in which replies tell verdicts: OpenAI's own, and Azure's.

OpenAI's are those of the field `moderation` of its chat completions and responses. Azure's are its
content filter's: https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter-streaming.
"""

from collections.abc import Sequence
from typing import Any

from shieldgate.dialects.interface import Verdicts
from shieldgate.types import Action, Judged, Verdict


def moderation(verdicts: Verdicts) -> dict[str, Any]:
    """Write the object `moderation`; a direction in which nothing was judged has no results.

    A result has `unsupported_language`, which is ours, as a warning only.
    """
    scorer = verdicts.scorer
    return {"input": _side(verdicts.inputs, scorer), "output": _side(verdicts.outputs, scorer)}


def response_moderation(verdicts: Verdicts) -> dict[str, Any]:
    """Write the object `moderation` of a response: of each direction, one result."""
    scorer = verdicts.scorer
    return {"input": _worst(verdicts.inputs, scorer), "output": _worst(verdicts.outputs, scorer)}


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
        return {"type": "error", "code": failure.code, "message": str(failure)}
    results = [_result(j.verdict, scorer) for j in judged]
    return {"type": "moderation_results", "model": scorer, "results": results}


def _worst(judged: Sequence[Judged], scorer: str) -> dict[str, Any]:
    """Make one result of all verdicts: of each policy, the highest score."""
    side = _side(judged, scorer)
    if side["type"] == "error":
        return side
    worst = _result(Verdict("prompt", Action.ALLOWED, ()), scorer)
    for found in side["results"]:
        worst["flagged"] |= found["flagged"]
        worst["category_applied_input_types"] |= found["category_applied_input_types"]
        worst |= {key: value for key, value in found.items() if key == "unsupported_language"}
        for field in ("categories", "category_scores"):
            for policy, value in found[field].items():
                worst[field][policy] = max(worst[field].get(policy, 0), value)
    return worst


def _result(verdict: Verdict, scorer: str) -> dict[str, Any]:
    found = verdict.judgements
    language = verdict.unsupported_language
    return {
        "type": "moderation_result",
        "model": scorer,
        "flagged": bool(verdict.violated),
        "categories": {j.policy: j.violated for j in found},
        "category_scores": {j.policy: j.probability for j in found},
        "category_applied_input_types": {j.policy: ["text"] for j in found},
        **({"unsupported_language": language} if language else {}),
    }
