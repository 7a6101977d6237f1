"""What single gateways expect beyond a block: scores, severities, errors, deadlines."""

import math
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes import FakeScorer
from serving import Gateway, gateway
from test_guards import AZURE, CHAT, CONTENTS, GENERATION, PORTKEY, ask, hook, user
from test_keys import entry, written

from shieldgate.gateway.guards.guard import grade
from shieldgate.types import Exchange, Judgement, Score

CATEGORIES = ("Hate", "SelfHarm", "Sexual", "Violence")


@pytest.mark.parametrize(
    ("probability", "threshold", "placed"),
    [
        (0.0, 0.5, 0.0),
        (0.5, 0.5, 0.5),
        (1.0, 0.5, 1.0),
        (0.3, 0.3, 0.5),
        (0.15, 0.3, 0.25),
        (0.65, 0.3, 0.75),
        (0.0, 0.0, 0.5),
        (1.0, 1.0, 0.5),
        (math.nextafter(0.3, 0), 0.3, 0.5),
    ],
)
def test_half_of_a_grade_is_the_threshold(
    probability: float, threshold: float, placed: float
) -> None:
    violated = probability >= threshold
    judged = Judgement("a/b", probability, threshold, violated, True, Score(0.0))
    assert grade(judged) == pytest.approx(placed)
    assert (grade(judged) >= 0.5) == violated


async def test_a_detection_is_whole_and_in_code_points(served: Gateway) -> None:
    text = "so crude \N{OX}\N{OX}"
    first, second = await ask(served, CONTENTS, {"contents": ["kind", text]})
    assert first == []
    [found] = second
    assert found.pop("score") == pytest.approx(0.953, abs=0.001)
    assert found.pop("metadata") == {
        "probability": pytest.approx(0.9526, abs=0.0001),
        "threshold": 0.5,
        "violated": True,
        "calibrated": False,
    }
    assert found == {
        "start": 0,
        "end": 11,
        "text": text,
        "detection": "violation",
        "detection_type": "test/threat",
        "detector_id": "shieldgate",
    }


async def test_all_that_was_judged_is_told_to_whom_asks_for_it(served: Gateway) -> None:
    params = {"report": "all", "policies": ["test/spam"], "threshold": 0.1}
    [found] = await ask(served, CONTENTS, {"contents": ["so crude"], "detector_params": params})
    told = {d["detection_type"]: (d["detection"], d["score"] >= 0.5) for d in found}
    assert told == {"test/threat": ("violation", True), "test/spam": ("none", False)}


@pytest.mark.parametrize("detector", ["test/spam", "strict"])
async def test_a_detector_that_is_named_like_rules_adds_them(
    served: Gateway, detector: str
) -> None:
    body = {"messages": [user("buy")]}
    assert await ask(served, CHAT, body) == []
    assert await ask(served, CHAT, body, **{"detector-id": "whatever"}) == []
    [found] = await ask(served, CHAT, body, **{"detector-id": detector})
    assert found["detection_type"] == "test/spam"


async def test_an_answer_is_judged_with_its_prompt(served: Gateway, scorer: FakeScorer) -> None:
    await ask(served, GENERATION, {"prompt": "how?", "generated_text": "kind"})
    assert scorer.calls[-1][0] == Exchange("how?", "kind")


async def test_errors_of_detectors_have_a_code_and_a_message(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    async with gateway(scorer, keys=written(tmp_path, entry("one", "sg-one"))) as served:
        bare = await served.client.post(CONTENTS, json={"contents": ["kind"]})
        shown = {"authorization": "Bearer sg-one"}
        wrong = await served.client.post(CONTENTS, json={"contents": 3}, headers=shown)
        unknown = {"contents": ["kind"], "detector_params": {"profile": "none-such"}}
        named = await served.client.post(CONTENTS, json=unknown, headers=shown)
        healthy = await served.client.get("/health")
    for reply, code in ((bare, 401), (wrong, 422), (named, 422)):
        assert reply.status_code == code
        assert reply.json()["code"] == code
        assert reply.json()["message"]
    assert healthy.status_code == 200


def severities(found: Any) -> dict[str, int]:
    return {c["category"]: c["severity"] for c in found["categoriesAnalysis"]}


async def test_a_severity_stands_in_the_category_of_its_policy(
    served: Gateway, scorer: FakeScorer
) -> None:
    found = await ask(served, AZURE, {"text": "so crude"})
    assert severities(found) == {"Hate": 6, "SelfHarm": 0, "Sexual": 0, "Violence": 0}
    assert found["blocklistsMatch"] == []
    eight = {"text": "so crude", "outputType": "EightSeverityLevels"}
    assert severities(await ask(served, AZURE, eight))["Hate"] == 7
    scorer.margins = {("crude", "test/threat"): -0.01}  # just below its threshold
    assert severities(await ask(served, AZURE, eight))["Hate"] == 1


async def test_what_no_category_asked_for_has_stands_in_all_of_them(served: Gateway) -> None:
    found = await ask(served, f"{AZURE}&profile=strict", {"text": "buy"})
    assert severities(found) == dict.fromkeys(CATEGORIES, 6)
    [match] = found["blocklistsMatch"]
    assert match["blocklistItemId"] == "test/spam"
    some = {"text": "so crude", "categories": ["Sexual"]}
    assert severities(await ask(served, AZURE, some)) == {"Sexual": 6}


async def test_categories_for_which_no_policy_speaks_are_declared(served: Gateway) -> None:
    reply = await served.client.post(AZURE, json={"text": "kind"})
    assert reply.headers["x-shieldgate-unmapped"] == "SelfHarm, Sexual, Violence"


@pytest.mark.parametrize(
    ("body", "status", "code", "target"),
    [
        ({}, 400, "InvalidRequestBody", "text"),
        ({"text": "x" * 10_001}, 400, "InvalidRequestBody", "text"),
        ({"text": "kind", "categories": ["Rude"]}, 400, "InvalidRequestBody", "categories.0"),
        ({"text": "kind", "blocklistNames": ["mine"]}, 404, "NotFound", "blocklistNames"),
    ],
)
async def test_errors_of_azure_s(
    served: Gateway, body: Any, status: int, code: str, target: str
) -> None:
    reply = await served.client.post(AZURE, json=body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert (error["code"], error["target"]) == (code, target)


async def test_nothing_that_is_wrong_passes_portkey(scorer: FakeScorer, tmp_path: Path) -> None:
    """It passes whatever is answered with an error."""
    keys = written(tmp_path, entry("one", "sg-one"), entry("two", "sg-two", texts_per_minute=1))
    good = hook("before", {"messages": [user("kind")]})
    async with gateway(scorer, keys=keys, max_body_bytes=2000) as served:

        async def verdict(path: str, key: str = "sg-one", **body: Any) -> bool:
            shown = {"authorization": f"Bearer {key}"}
            reply = await served.client.post(path, headers=shown, **body)
            assert reply.status_code == 200
            found: bool = reply.json()["verdict"]
            return found

        assert await verdict(PORTKEY, json=good)
        assert not await verdict(PORTKEY, "sg-unknown", json=good)
        assert not await verdict(f"{PORTKEY}?profile=none-such", json=good)
        assert not await verdict(PORTKEY, json={"eventType": "another"})
        half = r'{"eventType":"beforeRequestHook","request":{"json":{"messages":["\ud800"]}}}'
        as_json = {"content-type": "application/json", "authorization": "Bearer sg-one"}
        reply = await served.client.post(PORTKEY, content=half, headers=as_json)
        assert reply.json()["verdict"] is False
        assert not await verdict(PORTKEY, json={**good, "metadata": "x" * 3000})
        assert await verdict(PORTKEY, "sg-two", json=good)
        assert not await verdict(PORTKEY, "sg-two", json=good)


async def test_who_is_late_has_failed(served: Gateway, scorer: FakeScorer) -> None:
    scorer.released.clear()
    found = await ask(
        served, f"{PORTKEY}?deadline_ms=100", hook("before", {"messages": [user("a")]})
    )
    assert found["verdict"] is False
    assert "0.1 s" in found["data"]["error"]
    labels = {"policy": "test/threat", "direction": "prompt", "result": "failed_closed"}
    assert served.metric("shieldgate_verdicts_total", **labels) == 1
    async with gateway(
        scorer, profile={"on_failure": {"prompt": "open", "response": "open"}}
    ) as other:
        body = hook("before", {"messages": [user("a")]})
        assert (await ask(other, f"{PORTKEY}?deadline_ms=100", body))["verdict"] is True


async def test_a_guard_asked_by_chat_says_safe_or_unsafe(served: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1/guards", api_key="none") as client:

        async def ask(content: str, model: str = "llama-guard") -> str | None:
            said: Any = [{"role": "user", "content": content}]
            reply = await client.chat.completions.create(model=model, messages=said)
            stream = await client.chat.completions.create(model=model, messages=said, stream=True)
            streamed = [c.choices[0].delta.content async for c in stream]
            assert streamed == [reply.choices[0].message.content]
            return streamed[0]

        assert await ask("kind") == "safe"
        assert await ask("so crude") == "unsafe\ntest/threat"
        assert await ask("buy") == "safe"
        assert await ask("crude, buy", "strict") == "unsafe\ntest/threat,test/spam"
