"""POST /v1/screen against a real server."""

import json
import math
from typing import Any

import pytest
from fakes import FakeScorer
from serving import Gateway, gateway

from shieldgate.errors import ConfigurationError, Overloaded, ScorerUnavailable
from shieldgate.scoring.loading import LoadingScorer


async def screen(served: Gateway, **body: Any) -> dict[str, Any]:
    reply = await served.client.post("/v1/screen", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def test_a_verdict_comes_with_all_its_reasons(served: Gateway) -> None:
    reply = await screen(served, prompt="a crude text")
    assert reply["scorer"]["name"] == "fake@0"
    assert reply["policy_book"] == "book-1"
    assert reply["profile"] == "default"
    assert reply["milliseconds"] >= 0
    [result] = reply["results"]
    assert result.pop("milliseconds") >= 0
    assert result == {
        "direction": "prompt",
        "action": "blocked",
        "violated": ["test/threat"],
        "policies": {
            "test/threat": {
                "probability": pytest.approx(1 / (1 + math.exp(-3))),
                "margin": 3.0,
                "threshold": 0.5,
                "violated": True,
                "calibrated": False,
                "windows": 1,
                "prompt_omitted": 0,
            }
        },
        "unsupported_language": None,
        "error": None,
    }


async def test_a_response_is_judged_with_its_prompt(served: Gateway, scorer: FakeScorer) -> None:
    reply = await screen(served, prompt="crude question", response="kind answer")
    [result] = reply["results"]
    assert (result["direction"], result["action"]) == ("response", "allowed")
    assert result["policies"]["test/threat"]["threshold"] == 0.4
    assert scorer.calls[0][0].prompt == "crude question"


async def test_several_exchanges_give_results_in_order(served: Gateway) -> None:
    exchanges = [{"prompt": "bread", "response": "crude"}, {"prompt": "bread"}]
    reply = await screen(served, exchanges=exchanges)
    assert [r["action"] for r in reply["results"]] == ["blocked", "allowed"]
    assert [r["direction"] for r in reply["results"]] == ["response", "prompt"]


async def test_asked_policies_are_judged_beside_the_mandatory_ones(served: Gateway) -> None:
    reply = await screen(served, prompt="buy", policies=["spam"])
    [result] = reply["results"]
    assert list(result["policies"]) == ["test/threat", "test/spam"]
    assert result["violated"] == ["test/spam"]


async def test_a_monitoring_profile_says_what_it_would_have_blocked(served: Gateway) -> None:
    reply = await screen(served, prompt="crude", profile="monitor")
    assert reply["results"][0]["action"] == "would_block"


@pytest.mark.parametrize("asked", [{"profile": "none such"}, {"policies": ["none/such"]}])
async def test_an_unknown_name_is_a_400_that_lists_the_known(
    served: Gateway, asked: dict[str, Any]
) -> None:
    reply = await served.client.post("/v1/screen", json={"prompt": "bread", **asked})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "unknown_name"
    assert "Known: " in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response": "only"},
        {"prompt": "a", "exchanges": [{"prompt": "b"}]},
        {"exchanges": []},
        {"exchanges": [{"response": "only"}]},
        {"prompt": "a", "polices": ["test/spam"]},
        {"prompt": None},
    ],
)
async def test_any_other_shape_is_refused(served: Gateway, body: dict[str, Any]) -> None:
    reply = await served.client.post("/v1/screen", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


async def test_too_many_exchanges_are_refused(scorer: FakeScorer) -> None:
    async with gateway(scorer, max_inputs=1) as served:
        body = {"exchanges": [{"prompt": "a"}, {"prompt": "b"}]}
        reply = await served.client.post("/v1/screen", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "exchanges"


async def test_a_failing_guard_does_what_the_profile_says(
    served: Gateway, scorer: FakeScorer
) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    closed = await served.client.post("/v1/screen", json={"prompt": "bread"})
    assert closed.status_code == 503
    assert closed.json()["error"]["code"] == "moderation_unavailable"
    assert "retry-after" in closed.headers

    [result] = (await screen(served, prompt="bread", profile="open"))["results"]
    assert result["action"] == "failed_open"
    assert result["policies"] == {}
    assert result["error"] == {"code": "moderation_unavailable", "message": "The scorer failed."}
    labels = {"policy": "test/threat", "direction": "prompt"}
    for outcome in ("failed_closed", "failed_open"):
        assert served.metric("shieldgate_verdicts_total", result=outcome, **labels) == 1


async def test_a_full_queue_is_a_429_where_the_profile_fails_closed(
    served: Gateway, scorer: FakeScorer
) -> None:
    scorer.failure = Overloaded(2)
    reply = await served.client.post("/v1/screen", json={"prompt": "bread"})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "2")
    [result] = (await screen(served, prompt="bread", profile="open"))["results"]
    assert result["action"] == "failed_open"


async def test_a_template_that_judges_no_responses_is_a_400(
    served: Gateway, scorer: FakeScorer
) -> None:
    scorer.failure = ConfigurationError("The template 'blog' only judges prompts.")
    reply = await served.client.post("/v1/screen", json={"prompt": "a", "response": "b"})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "unsupported"


async def test_one_failure_cancels_the_rest_of_the_request(
    served: Gateway, scorer: FakeScorer
) -> None:
    """A failing exchange fails the request; its neighbours give up their places in the queue."""
    scorer.released.clear()
    scorer.fails_on = "bad"
    body = {"exchanges": [{"prompt": "good"}, {"prompt": "bad"}]}
    reply = await served.client.post("/v1/screen", json=body)
    assert reply.status_code == 503
    assert scorer.left.is_set()
    assert not scorer.released.is_set()


async def test_while_the_scorer_loads_profiles_fail_as_they_say(scorer: FakeScorer) -> None:
    never = LoadingScorer(scorer.never_opened)
    async with gateway(scorer, never) as served:
        closed = await served.client.post("/v1/screen", json={"prompt": "bread"})
        assert closed.status_code == 503
        assert "not loaded yet" in closed.json()["error"]["message"]
        reply = await screen(served, prompt="bread", profile="open")
        assert reply["scorer"] is None
        assert reply["results"][0]["action"] == "failed_open"


@pytest.mark.parametrize("body", [{"prompt": "%"}, {"prompt": "go on", "response": "%"}])
async def test_what_json_in_a_text_says_is_judged_too(body: dict[str, str]) -> None:
    """On every route that judges, as in chats."""
    said = json.dumps([{"w": word, "n": 1} for word in "I will break your legs".split()])
    texts = {field: text.replace("%", said) for field, text in body.items()}
    async with gateway(FakeScorer({("break your legs", "test/threat"): 3.0})) as served:
        [result] = (await screen(served, **texts))["results"]
    assert result["action"] == "blocked"
