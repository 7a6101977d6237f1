"""Every error is a reply in OpenAI's envelope, and none of them repeats what was sent."""

import asyncio
import io
import json
from typing import Any

import httpx
import pytest
from fakes import FakeScorer
from serving import Gateway, gateway

from shieldgate.telemetry import configure_logging

CANARY = "canary-7f3a"


def check_envelope(reply: httpx.Response) -> dict[str, str | None]:
    body = reply.json()
    assert body.keys() == {"error"}
    error: dict[str, str | None] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert reply.headers["x-request-id"].startswith("req_")
    return error


MALFORMED = (
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'"text"',
    b"{}",
    b'{"input": NaN, "prompt": NaN}',
    b'{"input": 5, "prompt": 5}',
    b'{"input": "\\ud800", "prompt": "\\ud800"}',
    b'{"input": "a", "model": "\\ud800", "prompt": "a", "profile": "\\ud800"}',
    b'{"\\ud800": "a"}',
    b"[" * 50_000,
    b'{"input": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b'{"input": 1' + b"0" * 5_000 + b"}",
    json.dumps({CANARY: CANARY, "input": {CANARY: CANARY}, "prompt": [CANARY]}).encode(),
    json.dumps({"input": [{"type": CANARY, "text": CANARY}], "prompt": 1}).encode(),
)


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/screen"])
async def test_a_body_that_is_not_what_is_asked_for_is_a_400(served: Gateway, path: str) -> None:
    headers = {"content-type": "application/json"}
    for body in MALFORMED:
        reply = await served.client.post(path, content=body, headers=headers)
        assert reply.status_code == 400, body[:80]
        assert check_envelope(reply)["type"] == "invalid_request_error", body[:80]
        assert CANARY not in reply.text


async def test_odd_but_valid_text_is_judged(served: Gateway, scorer: FakeScorer) -> None:
    odd = ["", "a\0b", "\uffff", "\u202e", "\U0001f600", " \n"]
    reply = await served.client.post("/v1/moderations", json={"input": odd})
    assert reply.status_code == 200
    assert set(odd) <= {exchange.prompt for exchange, _ in scorer.calls}


async def test_a_body_sent_as_something_else_says_which_header_to_set(served: Gateway) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    body = b'{"input": "bread"}'
    reply = await served.client.post("/v1/moderations", content=body, headers=headers)
    assert reply.status_code == 400
    assert "content-type: application/json" in (check_envelope(reply)["message"] or "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/{CANARY}", 404),
        ("POST", "/v1/moderations/", 404),
        ("GET", "/v1/moderations", 405),
        ("DELETE", "/healthz", 405),
    ],
)
async def test_an_unknown_url_or_method_has_the_envelope(
    served: Gateway, method: str, path: str, status: int
) -> None:
    reply = await served.client.request(method, path)
    assert reply.status_code == status
    check_envelope(reply)
    assert CANARY not in reply.text
    if status == 405:
        assert reply.headers["allow"]


async def test_a_body_over_the_limit_is_a_413_whether_it_says_its_length_or_not(
    scorer: FakeScorer,
) -> None:
    body = json.dumps({"input": "x" * 100}).encode()

    async def streamed() -> object:
        for start in range(0, len(body), 10):
            yield body[start : start + 10]

    headers = {"content-type": "application/json"}
    async with gateway(scorer, max_body_bytes=len(body)) as served:
        for content in (body, streamed()):
            reply = await served.client.post("/v1/moderations", content=content, headers=headers)
            assert reply.status_code == 200
    async with gateway(scorer, max_body_bytes=len(body) - 1) as served:
        for content in (body, streamed()):
            reply = await served.client.post("/v1/moderations", content=content, headers=headers)
            assert reply.status_code == 413
            assert check_envelope(reply)["code"] == "body_too_large"
            assert str(len(body) - 1) in reply.text


async def test_a_far_too_long_body_still_gets_its_answer(scorer: FakeScorer) -> None:
    """The server must not cut the connection before the caller has read the 413."""
    async with gateway(scorer, max_body_bytes=1000) as served:
        reply = await served.client.post("/v1/moderations", json={"input": "x" * 8_000_000})
    assert reply.status_code == 413


async def test_an_unknown_exception_is_a_500_with_an_id_and_its_message_goes_nowhere(
    served: Gateway, scorer: FakeScorer, restored_logging: None
) -> None:
    logs = io.StringIO()
    configure_logging("info", as_json=True, stream=logs)
    scorer.failure = RuntimeError(f"could not handle {CANARY}")
    reply = await served.client.post("/v1/screen", json={"prompt": CANARY})
    assert reply.status_code == 500
    error = check_envelope(reply)
    assert error["code"] == "internal_error"
    request_id = reply.headers["x-request-id"]
    assert request_id in (error["message"] or "")
    assert CANARY not in reply.text
    labels = {"route": "/v1/screen", "status": "500", "outcome": "failed"}
    assert served.metric("shieldgate_requests_total", **labels) == 1

    assert CANARY not in logs.getvalue()
    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    [unexpected] = [line for line in lines if line["level"] == "error"]
    assert unexpected["request_id"] == request_id
    assert "RuntimeError" in unexpected["exception"]


async def test_each_reply_has_its_own_request_id(served: Gateway) -> None:
    replies = await asyncio.gather(*(served.client.get("/healthz") for _ in range(5)))
    ids = {r.headers["x-request-id"] for r in replies}
    assert len(ids) == 5


async def test_a_path_that_is_nearly_ours_is_told_which_was_meant(served: Gateway) -> None:
    for asked, meant in (
        ("/moderations", "/v1/moderations"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/moderation", "/v1/moderations"),
    ):
        reply = await served.client.post(asked, json={})
        assert reply.status_code == 404
        assert f"Did you mean {meant}?" in reply.json()["error"]["message"]
    far = await served.client.post("/zebra", json={})
    assert "What is screened is sent to /v1/chat/completions" in far.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "said", "param"),
    [
        (
            "moderations",
            {"inputs": "x"},
            "inputs is no field here; did you mean 'input'?",
            "inputs",
        ),
        (
            "moderations",
            {"input": "x", "profile": "strict"},
            "profile is no field here; did you mean 'model'?",
            "profile",
        ),
        (
            "moderations",
            {"input": "x", "zebra": 1},
            "zebra is no field here. There are input, model.",
            "zebra",
        ),
        ("moderations", {}, "input is missing.", "input"),
        ("moderations", ["x"], "The body must be a JSON object.", None),
        ("screen", {"text": "x"}, "text is no field here; did you mean 'prompt'?", "text"),
        (
            "screen",
            {"prompt": "x", "policy": "spam"},
            "policy is no field here; did you mean 'policies'?",
            "policy",
        ),
        (
            "screen",
            {"prompt": "x", "polices": []},
            "polices is no field here; did you mean 'policies'?",
            "polices",
        ),
        ("screen", {"prompt": "x", "policies": "spam"}, "policies must be a list.", "policies"),
        ("screen", {"prompt": 3}, "prompt must be a string.", "prompt"),
        (
            "screen",
            {"exchanges": [{"prompt": "x", "answer": "y"}]},
            "exchanges.0.answer is no field here.",
            "exchanges.0.answer",
        ),
    ],
)
async def test_a_body_of_another_shape_is_refused_in_words_of_our_own(
    served: Gateway, path: str, body: Any, said: str, param: str | None
) -> None:
    reply = await served.client.post(f"/v1/{path}", json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["message"], error["param"]) == (said, param)
