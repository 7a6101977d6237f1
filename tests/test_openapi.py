"""What `/openapi.json` says is what comes, whatever is sent."""

import asyncio
import json
import re
from typing import Any

import pytest
import requests
import responding
import schemathesis
import test_messages
from fakes import FakeScorer
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
)
from serving import Gateway, gateway
from upstream import Script, serving, streamed, whole

from shieldgate.upstream import Upstream


class Willing(Script):
    """A model that gives the choices that were asked for, streamed or not."""

    def reply(self, request: dict[str, Any] | None) -> Any:
        asked = request or {}
        path = self.requests[-1]["path"]
        if path == "/v1/responses":
            item = responding.message("a kind answer")
            return (responding.streamed if asked.get("stream") else responding.response)(item)
        if path == "/v1/embeddings":
            return {"data": [{"embedding": [0.5, -1]}]}
        if path == "/v1/messages/count_tokens":
            return {"input_tokens": 3}
        if path == "/v1/messages":
            told = test_messages.text(0, "a kind answer")
            streams = asked.get("stream")
            return test_messages.streamed(told) if streams else test_messages.whole("kind")
        given = asked.get("prompt")
        texts = given if isinstance(given, list) else [""]
        answers = ["a kind answer"] * (asked.get("n") or 1) * max(len(texts), 1)
        return streamed(*answers) if asked.get("stream") else whole(*answers)


@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_every_reply_is_declared_and_none_is_a_500(
    scorer: FakeScorer, mode: GenerationMode
) -> None:
    async with (
        serving(Willing()) as url,
        gateway(scorer, upstream=Upstream(url), max_body_bytes=100_000) as served,
    ):
        asked = await asyncio.to_thread(ask_anything, served.url, mode)
    assert asked == {
        *("/v1/chat/completions", "/v1/completions", "/v1/moderations", "/v1/screen"),
        *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
        *("/beta/litellm_basic_guardrail_api", "/classify", "/contentsafety/text:analyze"),
        *(f"/api/v1/text/{kind}" for kind in ("contents", "chat", "generation", "context/doc")),
        *("/v1/guards/portkey", "/v1/guards/chat/completions", "/request", "/response", "/health"),
        *("/v1/embeddings", "/v1/decisions", "/v1/systemone"),
        *("/v1/policies", "/v1/models", "/v1/models/{model}", "/healthz", "/readyz", "/metrics"),
        *(
            f"/admin/{what}"
            for what in ("figures", "decisions", "shadow", "policies/files", "policies/draft")
        ),
        *(f"/admin/review/{what}" for what in ("next", "label", "leave", "labels")),
    }


async def test_what_the_description_refers_to_is_in_it(served: Gateway) -> None:
    """Schemathesis takes what a reference to nothing describes for anything."""
    text = (await served.client.get("/openapi.json")).text
    named = {*re.findall(r'"#/components/schemas/(\w+)"', text)}
    assert named >= {"ErrorEnvelope", "MessagesError", "DetectorError", "AzureError"}
    assert named == json.loads(text)["components"]["schemas"].keys()


def ask_anything(url: str, mode: GenerationMode) -> set[str]:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    with requests.Session() as session:
        for operation in operations:
            # Without a body there is nothing to get wrong.
            if operation.body or mode is GenerationMode.POSITIVE:
                ask(operation, mode, session)
    return {operation.path for operation in operations}


def ask(operation: Any, mode: GenerationMode, session: requests.Session) -> None:
    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def answers(case: Any) -> None:
        reply = case.call(session=session)
        # What is valid by the schema can still be too much, or name what there is not.
        excluded = [positive_data_acceptance]
        # A refusal, too, though Schemathesis knows it as none; and one that is no error by design.
        if reply.status_code == 413 or operation.path == "/v1/guards/portkey":
            excluded.append(negative_data_rejection)
        case.validate_response(reply, excluded_checks=excluded)
        assert reply.headers["x-request-id"]

    answers()
