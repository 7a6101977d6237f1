"""POST /v1/systemone, by its contract, against a real server."""

import json
import math
from typing import Any

import pytest
from fakes import FakeScorer
from serving import Gateway, gateway

from shieldgate.errors import ScorerUnavailable
from shieldgate.types import Exchange

ROUTE = "/v1/systemone"
SURE = 1 / (1 + math.exp(-3))
NOUL = {"type": "noul"}
IMAGE = f"data:image/png;base64,{'iVBORw0KGgo' * 8}"


async def post(served: Gateway, status: int = 200, **body: Any) -> Any:
    asked = {"state": "a crude text", "questions": {"threat": NOUL}, **body}
    # Escaped, because no UTF-8 has half of a surrogate pair.
    headers = {"content-type": "application/json"}
    reply = await served.client.post(ROUTE, content=json.dumps(asked), headers=headers)
    assert reply.status_code == status, reply.text
    return reply.json()


async def test_a_noul_is_a_number_with_its_evidence_beside_it(served: Gateway) -> None:
    reply = await post(served)
    assert reply["model"] == "fake@0"
    assert reply["usage"] == {"input_tokens": 0, "output_tokens": 0}
    assert reply["answers"] == {
        "threat": {
            "type": "noul",
            "noul": pytest.approx(SURE),
            "raw_probability": pytest.approx(SURE),
            "calibrated": False,
            "policy": "test/threat",
            "threshold": 0.5,
            "violated": True,
        }
    }
    assert reply["verdict"]["action"] == "blocked"


async def test_answers_bear_the_ids_of_their_questions_in_order(served: Gateway) -> None:
    ids = ["z", "test/spam", "a"]
    reply = await post(served, questions={id: {**NOUL, "instructions": id} for id in ids})
    assert list(reply["answers"]) == ids


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"instructions": "Is it crude?"}, ["Is it crude?"]),
        ({"instructions": {"ask": "crude"}}, ['{"ask":"crude"}']),
        ({"criteria": {"true": "crude", "false": None}}, ["Answer true when: crude"]),
        (
            {"instructions": "Well?", "criteria": {"true": "crude", "false": ["kind"]}},
            ["Well?", "Answer true when: crude", 'Answer false when: ["kind"]'],
        ),
    ],
)
async def test_a_question_is_asked_with_its_criteria_after_what_all_share(
    given: dict[str, Any], words: list[str]
) -> None:
    from shieldgate.decisions.systemone import SystemOneRequest

    body = {"state": "", "questions": {"q": {**NOUL, **given}}, "instructions": "Be strict."}
    [question] = SystemOneRequest.model_validate(body).asked()
    assert question.instructions.split("\n") == ["Be strict.", *words]


async def test_a_state_of_json_is_judged_as_json(served: Gateway, scorer: FakeScorer) -> None:
    await post(served, state={"order": [1, "crude"], "stars": [4, 5, 3]})
    assert scorer.calls[0][0] == Exchange('{"order":[1,"crude"],"stars":[4,5,3]}')


async def test_a_choice_of_yes_and_no_is_a_noul(scorer: FakeScorer) -> None:
    scorer.margins[("crude", "questions[0]")] = 3.0
    question = {"type": "choice", "instructions": "?", "criteria": {"yes": None, "no": "kind"}}
    async with gateway(scorer) as served:
        answer = (await post(served, questions={"q": question}))["answers"]["q"]
    assert (answer["choice"], answer["confidence"]) == ("yes", pytest.approx(SURE))
    assert answer["probabilities"] == {
        "yes": pytest.approx(SURE),
        "no": pytest.approx(1 - SURE),
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"questions": {"q": {"type": "score", "criteria": ["low", "high"]}}}, "questions.q"),
        (
            {"questions": {"q": {"type": "choice", "criteria": {"a": None, "b": None}}}},
            "questions.q",
        ),
        ({"questions": {"q": NOUL}}, "questions.q"),
        ({"questions": {}}, "questions"),
        (
            {"questions": {"q": {**NOUL, "criteria": {"maybe": 1}}}},
            "questions.q.noul.criteria.maybe",
        ),
        ({"images": [IMAGE]}, "images"),
        ({"audio": ["data:audio/wav;base64,AAAA"]}, "audio"),
        ({"assets": {"a": {"format": "png", "data_base64": "AAAA"}}}, "assets"),
        ({"state": [{"photo": IMAGE}]}, "state"),
        ({"state": {"deep": "\ud800"}}, "state"),
        ({"joint": True}, "joint"),
    ],
)
async def test_what_cant_be_asked_or_read_is_refused(
    served: Gateway, scorer: FakeScorer, body: dict[str, Any], param: str
) -> None:
    error = (await post(served, 400, **body))["error"]
    assert error["param"] == param
    assert scorer.calls == []


async def test_what_tunes_other_engines_is_taken(served: Gateway) -> None:
    await post(served, cache_salt="s", priority=1, request_id="r", images=[], model="any")


async def test_a_failing_guard_is_a_503(served: Gateway, scorer: FakeScorer) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    error = (await post(served, 503, model="open"))["error"]
    assert error["code"] == "moderation_unavailable"
