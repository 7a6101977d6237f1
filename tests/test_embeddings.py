"""POST /v1/embeddings: what goes in is judged, and numbers come out."""

import base64
from typing import Any

import pytest
from fakes import FakeScorer
from front import Front, Open

from shieldgate.errors import ScorerUnavailable

ROUTE = "/v1/embeddings"


def embedded(*vectors: Any, **more: Any) -> dict[str, Any]:
    return {
        "object": "list",
        "model": "said by upstream",
        "data": [
            {"object": "embedding", "index": i, "embedding": v, "text": "crude"}
            for i, v in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": 3, "total_tokens": 3, "said": "crude"},
        **more,
    }


async def embed(front: Front, given: Any = "bread", **more: Any) -> Any:
    body = {"model": "e", "input": given, **more}
    return await front.gateway.client.post(ROUTE, json=body)


async def test_the_official_client_gets_the_numbers_and_no_word_of_upstream(front: Open) -> None:
    async with front(embedded([0.5, -1], [2.0, 0.25], note="crude")) as open_front:
        async with open_front.client() as api:
            reply = await api.embeddings.create(
                model="e", input=["bread", "rye"], encoding_format="float", dimensions=2
            )
        raw = (await embed(open_front, ["bread", "rye"])).text
    assert [item.embedding for item in reply.data] == [[0.5, -1], [2.0, 0.25]]
    assert (reply.model, reply.usage.total_tokens) == ("e", 3)
    assert "crude" not in raw
    assert "upstream" not in raw
    request = open_front.script.requests[0]
    assert request["path"] == ROUTE
    assert request["body"] == {
        "model": "e",
        "input": ["bread", "rye"],
        "encoding_format": "float",
        "dimensions": 2,
    }


async def test_the_client_at_its_default_gets_base64_through(front: Open) -> None:
    packed = base64.b64encode(b"\0\0\0\x3f" * 2).decode()
    async with front(embedded(packed)) as open_front, open_front.client() as api:
        reply = await api.embeddings.create(model="e", input="bread")
    assert reply.data[0].embedding == [0.5, 0.5]


@pytest.mark.parametrize("on_block", ["native", "error", "refusal"])
async def test_a_blocked_input_is_the_400_of_chats_and_reaches_nobody(
    front: Open, on_block: str
) -> None:
    async with front(embedded([1.0]), profile={"on_block": on_block}) as open_front:
        reply = await embed(open_front, ["bread", "so crude"])
        assert open_front.script.requests == []
    assert reply.status_code == 400
    assert reply.headers["x-should-retry"] == "false"
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("content_filter", "input")
    assert "test/threat" in error["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"given": [1, 2, 3]}, "input"),
        ({"given": [[1, 2], [3]]}, "input[0]"),
        ({"given": [{"image": "AAAA"}]}, "input[0]"),
        ({"Input": "bread"}, "Input"),
    ],
)
async def test_what_is_no_text_is_refused(front: Open, body: dict[str, Any], field: str) -> None:
    async with front(embedded([1.0])) as open_front:
        reply = await embed(open_front, **body)
        assert open_front.script.requests == []
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field


async def test_a_field_that_nobody_knows_is_judged(front: Open) -> None:
    async with front(embedded([1.0])) as open_front:
        reply = await embed(open_front, instruction="a crude instruction")
    assert reply.json()["error"]["code"] == "content_filter"


@pytest.mark.parametrize(
    "reply",
    [
        {"data": [{"embedding": "words"}]},
        {"data": [{"embedding": ["words"]}]},
        {"data": [{"embedding": []}]},
        {"data": [{"embedding": [True]}]},
        {"data": ["words"]},
        {"data": []},
        {},
        {"data": {"embedding": [1.0]}},
    ],
)
async def test_what_holds_no_numbers_does_not_leave(front: Open, reply: dict[str, Any]) -> None:
    async with front(reply) as open_front:
        answer = await embed(open_front)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_invalid"


async def test_a_failing_guard_closes_or_opens_as_the_profile_says(
    front: Open, scorer: FakeScorer
) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    async with front(embedded([1.0])) as open_front:
        closed = await embed(open_front)
    assert (closed.status_code, closed.json()["error"]["code"]) == (503, "moderation_unavailable")
    opens = {"on_failure": {"prompt": "open", "response": "open"}}
    async with front(embedded([1.0]), profile=opens) as open_front:
        assert (await embed(open_front)).status_code == 200


async def test_what_upstream_says_of_its_failure_is_judged(front: Open, scorer: FakeScorer) -> None:
    async with front({"error": {"message": "so crude"}}) as open_front:
        open_front.script.status = 400
        reply = await embed(open_front)
    assert reply.status_code == 400
    assert "crude" not in reply.text


async def test_each_input_gets_its_own_numbers_in_whatever_order_they_come(front: Open) -> None:
    reply = embedded([0.5], [2.0])
    reply["data"].reverse()
    async with front(reply) as open_front, open_front.client() as api:
        found = await api.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
    assert {item.index: item.embedding for item in found.data} == {0: [0.5], 1: [2.0]}


async def test_two_embeddings_of_one_input_are_none(front: Open) -> None:
    reply = embedded([0.5], [2.0])
    reply["data"][1]["index"] = 0
    async with front(reply) as open_front:
        assert (await embed(open_front, ["a", "b"])).status_code == 502
