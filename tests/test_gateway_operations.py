"""Health, readiness, metrics and listings against a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from fakes import BlockingEngine, FakeScorer, FixedPolicies, small_book
from serving import Gateway, gateway
from test_keys import entry, written
from upstream import Script, serving

from shieldgate.errors import ModelError
from shieldgate.policy import Calibration
from shieldgate.scoring import Batched, Scorer
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.upstream import Upstream

CANARY = "canary-19c2"


async def test_health_answers_while_a_text_is_being_scored(scorer: FakeScorer) -> None:
    engine = BlockingEngine()
    loading = LoadingScorer(lambda: Batched(engine, max_batch_tokens=8, max_waiting=8))
    async with gateway(scorer, loading) as served:
        body = {"prompt": "bread"}
        verdict = asyncio.create_task(served.client.post("/v1/screen", json=body))
        assert await asyncio.to_thread(engine.entered.wait, 30)
        assert (await served.client.get("/healthz")).json() == {"status": "ok"}
        assert not verdict.done()
        engine.released.set()
        [result] = (await verdict).json()["results"]
        assert result["action"] == "allowed"


async def test_a_gateway_that_is_reaching_its_scorer_lets_texts_wait_for_it(
    scorer: FakeScorer,
) -> None:
    loaded = asyncio.Event()

    @asynccontextmanager
    async def soon() -> AsyncIterator[Scorer]:
        await loaded.wait()
        yield scorer

    book = small_book()
    fitted = {("fake@0", "prompt"): Calibration(0.9)}
    threat = replace(book.policies["test/threat"], calibrations=fitted)
    policies = FixedPolicies(replace(book, policies={**book.policies, threat.id: threat}))
    patient = LoadingScorer(soon, patience=20)
    async with gateway(scorer, patient, policies=policies) as served:
        asked = asyncio.create_task(served.client.post("/v1/screen", json={"prompt": "bread"}))
        assert (await served.client.get("/readyz")).status_code == 503
        await asyncio.sleep(0.1)
        assert not asked.done()
        loaded.set()
        [result] = (await asked).json()["results"]
        # By what holds for the scorer that came, not for none.
        assert result["policies"]["test/threat"]["threshold"] == 0.9
    async with gateway(scorer, LoadingScorer(scorer.never_opened, patience=0.1)) as served:
        refused = await served.client.post("/v1/screen", json={"prompt": "bread"})
        assert refused.status_code == 503


async def test_it_is_ready_once_the_scorer_is_there(scorer: FakeScorer) -> None:
    loaded = asyncio.Event()
    closed = asyncio.Event()

    @asynccontextmanager
    async def slowly() -> AsyncIterator[Scorer]:
        await loaded.wait()
        try:
            yield scorer
        finally:
            closed.set()

    loading = LoadingScorer(slowly)
    async with gateway(scorer, loading) as served:
        assert (await served.client.get("/healthz")).status_code == 200
        waiting = await served.client.get("/readyz")
        assert (waiting.status_code, waiting.json()) == (503, {"status": "loading"})
        assert served.metric("shieldgate_ready") == 0
        refused = await served.client.post("/v1/moderations", json={"input": "bread"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "moderation_unavailable"
        loaded.set()
        ready = await served.client.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        assert served.metric("shieldgate_ready") == 1
        judged = await served.client.post("/v1/moderations", json={"input": "bread"})
        assert judged.status_code == 200
    assert closed.is_set()


async def test_it_is_not_ready_while_the_scorer_is_away_and_still_knows_its_name(
    scorer: FakeScorer,
) -> None:
    loading = LoadingScorer(scorer.opened, available=lambda: scorer.available)
    async with gateway(scorer, loading) as served:
        assert (await served.client.get("/readyz")).status_code == 200
        scorer.available = False
        away = await served.client.get("/readyz")
        assert (away.status_code, away.json()) == (503, {"status": "waiting for the scorer"})
        named = [model["id"] for model in (await served.client.get("/v1/models")).json()["data"]]
        assert scorer.identity.name in named
        while served.metric("shieldgate_ready") != 0:
            await asyncio.sleep(0.01)
        scorer.available = True
        assert (await served.client.get("/readyz")).status_code == 200
        while served.metric("shieldgate_ready") != 1:
            await asyncio.sleep(0.01)


async def test_a_scorer_that_cannot_be_had_stops_the_server(scorer: FakeScorer) -> None:
    gone = ModelError("The checkpoint is gone.")

    @asynccontextmanager
    async def broken() -> AsyncIterator[Scorer]:
        raise gone
        yield

    async with gateway(scorer, LoadingScorer(broken)) as served:
        assert (await served.client.get("/readyz")).status_code == 503
        assert served.stopped_by == [gone]


async def test_models_lists_the_profiles_and_the_scorer(served: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as api:
        names = [model.id async for model in api.models.list()]
    assert names == ["default", "strict", "open", "monitor", "fake@0"]


@pytest.mark.parametrize("name", ["strict", "fake@0", "google/gemma-2", "a b/ü"])
async def test_a_model_is_shown_by_its_name(scorer: FakeScorer, name: str) -> None:
    listed = {"data": [{"id": "google/gemma-2", "created": 7}, {"id": "a b/ü"}]}
    async with (
        serving(Script(listed)) as url,
        gateway(scorer, upstream=Upstream(url)) as served,
        openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as api,
    ):
        assert (await api.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError) as unknown:
            await api.models.retrieve(f"{name}-{CANARY}")
        assert unknown.value.code == "model_not_found"
        assert CANARY not in unknown.value.message


GET_ROUTES = ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/policies", "/docs"]


@pytest.mark.parametrize("path", GET_ROUTES)
async def test_head_gets_the_head_of_a_get(served: Gateway, path: str) -> None:
    got, head = await served.client.get(path), await served.client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


async def test_other_methods_are_told_which_there_are(served: Gateway) -> None:
    for path, allowed in (("/healthz", "GET, HEAD, OPTIONS"), ("/v1/screen", "POST, OPTIONS")):
        refused = await served.client.delete(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
        told = await served.client.options(path)
        assert (told.status_code, told.headers["allow"], told.content) == (204, allowed, b"")
    assert (await served.client.head("/v1/screen")).status_code == 405


@pytest.mark.parametrize("prefix", ["", "/guard", "/guard/eu"])
async def test_behind_a_prefix_all_is_found_whether_the_proxy_takes_it_away_or_not(
    scorer: FakeScorer, tmp_path: Path, prefix: str
) -> None:
    keys = written(tmp_path, entry("web", "sg-1"))
    async with gateway(scorer, root_path=prefix, keys=keys) as served:
        for before in {"", prefix}:
            assert (await served.client.get(f"{before}/healthz")).status_code == 200
            assert f"{prefix}/openapi.json" in (await served.client.get(f"{before}/docs")).text
            schema = (await served.client.get(f"{before}/openapi.json")).json()
            assert schema.get("servers", [{"url": ""}])[0]["url"] == prefix
            url = f"{before}/v1/screen"
            body = {"json": {"prompt": "bread"}}
            assert (await served.client.post(url, **body)).status_code == 401
            key = {"authorization": "Bearer sg-1"}
            assert (await served.client.post(url, **body, headers=key)).status_code == 200
        for path in ("/metrics", "/admin/figures"):  # of admins, and found nowhere else
            for before, status in (("", 403), (prefix, 403), (prefix * 2, 404 if prefix else 403)):
                reply = await served.client.get(f"{before}{path}", headers=key)
                assert reply.status_code == status, before
        assert (await served.client.get("/guardian/healthz")).status_code == 401
        route = {"route": "/healthz", "status": "200", "outcome": "answered"}
        assert served.metric("shieldgate_requests_total", **route) == len({"", prefix})


async def test_policies_shows_the_book_in_force(served: Gateway) -> None:
    book = (await served.client.get("/v1/policies")).json()
    assert book["version"] == "book-1"
    assert [p["id"] for p in book["policies"]] == ["test/threat", "test/spam"]
    assert book["policies"][0]["thresholds"] == {"prompt": 0.5, "response": 0.4}
    assert {p["name"]: p["mode"] for p in book["profiles"]}["monitor"] == "monitor"


async def test_metrics_tell_of_routes_and_verdicts_and_never_of_texts(served: Gateway) -> None:
    await served.client.post("/v1/screen", json={"prompt": f"crude {CANARY}"})
    await served.client.post("/v1/screen", json={"prompt": CANARY, "profile": CANARY})
    await served.client.get(f"/{CANARY}?{CANARY}")
    page = await served.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert CANARY not in page.text
    for line in (
        'shieldgate_requests_total{outcome="answered",route="/v1/screen",status="200"} 1.0',
        'shieldgate_requests_total{outcome="refused",route="/v1/screen",status="400"} 1.0',
        'shieldgate_requests_total{outcome="refused",route="unknown",status="404"} 1.0',
        "shieldgate_requests_in_progress 1.0",
        'shieldgate_request_seconds_count{route="/v1/screen"} 2.0',
        'shieldgate_verdicts_total{direction="prompt",policy="test/threat",result="blocked"} 1.0',
        'shieldgate_probability_count{direction="prompt",policy="test/threat"} 1.0',
        "shieldgate_ready 1.0",
    ):
        assert line in page.text.splitlines()


async def test_the_documentation_has_an_example_for_each_body(served: Gateway) -> None:
    assert (await served.client.get("/docs")).status_code == 200
    schema = (await served.client.get("/openapi.json")).json()
    assert {"/v1/moderations", "/v1/screen", "/v1/policies", "/v1/models"} <= schema["paths"].keys()
    shapes = schema["components"]["schemas"]
    assert shapes["ScreenRequest"]["examples"]
    assert shapes["ModerationRequest"]["properties"]["input"]["examples"]
    assert "HTTPValidationError" not in shapes


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models"])
async def test_every_reply_carries_a_request_id(served: Gateway, path: str) -> None:
    reply = await served.client.get(path)
    assert reply.headers["x-request-id"].startswith("req_")
