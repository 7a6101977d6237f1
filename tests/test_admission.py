"""Who may in, with which profile, and how much; what becomes of everybody else."""

import ast
import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fakes import BlockingEngine, FakeScorer, FixedPolicies, small_book
from redis_server import redis_server
from serving import Gateway, gateway
from structlog.testing import capture_logs
from test_keys import entry, written
from upstream import Script, delta, serving, streamed, whole

from shieldgate.gateway.middleware.admission import duration
from shieldgate.policy import Calibration
from shieldgate.redis.client import RedisClient
from shieldgate.scoring import Batched
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.upstream import Upstream

SECRET = "sg-canary-3f71"
BEARER = {"authorization": f"Bearer {SECRET}"}
CHAT = "/v1/chat/completions"
SCREEN = "/v1/screen"


@asynccontextmanager
async def guarded(
    scorer: FakeScorer, folder: Path, *, key: dict[str, Any] | None = None, **how: Any
) -> AsyncIterator[Gateway]:
    """A gateway with one key, whose client bears it."""
    file = written(folder, entry("web", SECRET, **(key or {})))
    async with gateway(scorer, keys=file, **how) as running:
        running.client.headers.update(BEARER)
        yield running


def chat(prompt: str = "bread", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], **more}


NO_KEYS: list[dict[str, Any]] = [
    {},
    {"authorization": SECRET},
    {"authorization": f"Basic {SECRET}"},
    {"authorization": "Bearer"},
    {"authorization": "Bearer sg-other"},
    {"authorization": f"Bearer {SECRET}x"},
    {"authorization": b"Bearer sg-\xff"},
]


async def test_without_a_key_of_ours_nothing_is_served_or_read(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    async with guarded(scorer, tmp_path) as served, httpx.AsyncClient() as client:
        for headers, path in product(
            NO_KEYS, (SCREEN, CHAT, "/v1/models", "/v1/policies", "/metrics", "/nowhere")
        ):
            reply = await client.post(served.url + path, json={"prompt": "x"}, headers=headers)
            assert reply.status_code == 401, (headers, path)
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.headers["x-request-id"]
            assert reply.json()["error"]["code"] == "invalid_api_key"
        for headers, path in product(NO_KEYS, ("/healthz", "/readyz", "/docs", "/openapi.json")):
            reply = await client.get(served.url + path, headers=headers)
            assert reply.status_code == 200, (headers, path)
    assert scorer.calls == []


async def test_a_key_is_what_the_official_client_gives(scorer: FakeScorer, tmp_path: Path) -> None:
    async with guarded(scorer, tmp_path) as served:
        base = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key=SECRET) as api:
            assert not (await api.moderations.create(input="bread")).results[0].flagged
        async with openai.AsyncOpenAI(base_url=base, api_key="sg-other") as api:
            with pytest.raises(openai.AuthenticationError):
                await api.moderations.create(input="bread")


async def test_a_key_is_taken_from_the_headers_of_other_clients_too(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    async with guarded(scorer, tmp_path) as served, httpx.AsyncClient() as client:
        for name, (secret, status) in product(
            ("x-api-key", "X-API-Key", "api-key"), ((SECRET, 200), ("sg-other", 401))
        ):
            for path, body in ((SCREEN, {"prompt": "x"}), ("/v1/moderations", {"input": "x"})):
                reply = await client.post(served.url + path, json=body, headers={name: secret})
                assert reply.status_code == status, name
        schema = (await client.get(f"{served.url}/openapi.json")).json()
    assert {"key", "x-api-key", "api-key"} == schema["components"]["securitySchemes"].keys()


async def test_a_key_of_ours_in_any_header_is_nothing_for_upstream(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    script = Script(whole("kind"))
    async with (
        serving(script) as url,
        guarded(scorer, tmp_path, upstream=Upstream(url, passes_account=False)) as served,
    ):
        for headers in (BEARER, {"x-api-key": SECRET}, {"api-key": SECRET}):
            given = {"authorization": "none", **headers}
            reply = await served.client.post(CHAT, json=chat(), headers=given)
            assert reply.status_code == 200
    assert SECRET not in str(script.requests)


async def test_a_callers_key_goes_on_in_the_header_that_it_came_in(scorer: FakeScorer) -> None:
    script = Script(whole("kind"))
    async with serving(script) as url, gateway(scorer, upstream=Upstream(url)) as served:
        await served.client.post(CHAT, json=chat(), headers={"api-key": "theirs"})
    assert script.requests[0]["headers"]["api-key"] == "theirs"


async def test_options_are_told_to_who_shows_no_key(scorer: FakeScorer, tmp_path: Path) -> None:
    async with guarded(scorer, tmp_path) as served, httpx.AsyncClient() as client:
        for path, allowed in ((CHAT, "POST, OPTIONS"), ("/v1/models", "GET, HEAD, OPTIONS")):
            reply = await client.options(served.url + path)
            assert (reply.status_code, reply.headers["allow"]) == (204, allowed)
        assert (await client.options(f"{served.url}/nowhere")).status_code == 404
        assert (await client.head(f"{served.url}/metrics")).status_code == 401


async def test_a_long_body_without_a_key_is_not_waited_for(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    async with guarded(scorer, tmp_path) as served:
        port = httpx.URL(served.url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {SCREEN} HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n".encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()


@pytest.mark.parametrize(("admin", "status"), [("true", 200), ("false", 403)])
async def test_the_figures_of_all_are_for_admins(
    scorer: FakeScorer, tmp_path: Path, admin: str, status: int
) -> None:
    async with guarded(scorer, tmp_path, key={"admin": admin}) as served:
        reply = await served.client.get("/metrics")
        assert reply.status_code == status
        if status == 403:
            assert reply.json()["error"]["code"] == "not_allowed"


@pytest.mark.parametrize(("admin", "shown"), [("true", {"dataset": "ours.csv"}), ("false", {})])
async def test_from_what_a_threshold_was_calibrated_is_for_admins(
    scorer: FakeScorer, tmp_path: Path, admin: str, shown: dict[str, str]
) -> None:
    book = small_book()
    fitted = Calibration(0.6, provenance={"dataset": "ours.csv"})
    threat = replace(book.policies["test/threat"], calibrations={("fake@0", "prompt"): fitted})
    policies = FixedPolicies(replace(book, policies={**book.policies, threat.id: threat}))
    async with guarded(scorer, tmp_path, key={"admin": admin}, policies=policies) as served:
        policy, _ = (await served.client.get("/v1/policies")).json()["policies"]
        assert policy["calibration"]["prompt"]["threshold"] == 0.6
        assert policy["calibration"]["prompt"]["provenance"] == shown
    async with gateway(scorer, policies=policies, keyless=admin == "false") as served:
        policy, _ = (await served.client.get("/v1/policies")).json()["policies"]
        assert policy["calibration"]["prompt"]["provenance"] == shown


async def test_a_key_brings_its_profile(scorer: FakeScorer, tmp_path: Path) -> None:
    async with guarded(scorer, tmp_path, key={"profile": "strict"}) as served:
        screened = (await served.client.post(SCREEN, json={"prompt": "buy"})).json()
        assert screened["profile"] == "strict"
        assert screened["results"][0]["violated"] == ["test/spam"]
        reply = await served.client.post("/v1/moderations", json={"input": "buy"})
        assert reply.json()["results"][0]["flagged"]


@pytest.mark.parametrize("named", ["monitor", "open", "default"])
async def test_a_profile_that_is_named_takes_nothing_from_that_of_the_key(
    scorer: FakeScorer, tmp_path: Path, named: str
) -> None:
    async with guarded(scorer, tmp_path, key={"profile": "strict"}) as served:
        asked = {"prompt": "crude buy", "profile": named}
        screened = (await served.client.post(SCREEN, json=asked)).json()
        assert screened["profile"] == f"strict+{named}"
        [result] = screened["results"]
        assert result["action"] == "blocked"
        assert set(result["violated"]) == {"test/threat", "test/spam"}
        assert result["policies"]["test/threat"]["threshold"] == 0.1
        asked = {"input": "buy", "model": named}
        assert (await served.client.post("/v1/moderations", json=asked)).json()["results"][0][
            "flagged"
        ]


async def test_a_profile_that_is_named_adds_to_that_of_the_key(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    async with guarded(scorer, tmp_path, key={"profile": "monitor"}) as served:
        alone = (await served.client.post(SCREEN, json={"prompt": "crude buy"})).json()
        assert alone["results"][0]["action"] == "would_block"
        asked = {"prompt": "crude buy", "profile": "strict"}
        both = (await served.client.post(SCREEN, json=asked)).json()
        assert both["results"][0]["action"] == "blocked"
        assert len(both["results"][0]["violated"]) == 2


async def test_a_chat_is_judged_by_the_keys_profile_and_its_key_stays_here(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    script = Script(whole("a kind answer"))
    async with serving(script) as url:
        upstream = Upstream(url, passes_account=False)
        async with guarded(
            scorer, tmp_path, key={"profile": "strict"}, upstream=upstream
        ) as served:
            served.client.headers["openai-organization"] = "org"
            blocked = await served.client.post(CHAT, json=chat("buy"))
            assert blocked.json()["error"]["code"] == "content_filter"
            assert (await served.client.post(CHAT, json=chat())).status_code == 200
            script.status = 401
            script.body = {"error": {"message": "no key", "code": "upstreams_own"}}
            refused = await served.client.post(CHAT, json=chat())
            assert refused.status_code == 502
            assert refused.json()["error"]["code"] == "upstream_refused_key"
    assert len(script.requests) == 2
    for request in script.requests:
        assert not {"authorization", "openai-organization"} & request["headers"].keys()
        assert SECRET not in str(request)


@pytest.mark.parametrize(
    ("limit", "path", "body"),
    [
        ("requests_per_minute", "/v1/models", None),
        ("requests_per_minute", SCREEN, {"prompt": "bread"}),
        ("texts_per_minute", SCREEN, {"exchanges": [{"prompt": "a"}, {"prompt": "b"}]}),
        ("texts_per_minute", "/v1/moderations", {"input": ["a", "b"]}),
        ("texts_per_minute", CHAT, chat()),
        ("texts_per_minute", CHAT, chat(stream=True)),
        ("characters_per_minute", SCREEN, {"prompt": "ab"}),
        ("characters_per_minute", SCREEN, {"prompt": "a", "response": "b"}),
        ("characters_per_minute", "/v1/moderations", {"input": ["a", "b"]}),
    ],
)
async def test_who_has_used_up_its_minute_is_told_when_to_come_again(
    scorer: FakeScorer, tmp_path: Path, limit: str, path: str, body: Any
) -> None:
    body_of = streamed("kind") if body and body.get("stream") else whole("kind")
    script = Script(body_of)
    async with serving(script) as url:
        how = {"key": {limit: 2}, "upstream": Upstream(url)}
        async with guarded(scorer, tmp_path, **how) as served:
            method = "POST" if body else "GET"
            statuses = []
            for _ in range(3):
                reply = await served.client.request(method, path, json=body)
                statuses.append(reply.status_code)
            assert statuses[0] == 200
            assert reply.status_code == 429
            error = reply.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            labels = {"route": path, "status": "429", "outcome": "limited"}
            assert served.metric("shieldgate_requests_total", **labels)


@pytest.mark.parametrize(
    ("limit", "path", "body"),
    [
        ("texts_per_minute", SCREEN, {"exchanges": [{"prompt": "a"}] * 3}),
        ("texts_per_minute", "/v1/moderations", {"input": ["a"] * 3}),
        (
            "texts_per_minute",
            CHAT,
            {
                "model": "m",
                "messages": [{"role": "system", "content": f"{n}"} for n in range(1001)],
            },
        ),
        ("characters_per_minute", SCREEN, {"prompt": "a" * 3}),
        ("characters_per_minute", "/v1/moderations", {"input": ["a", "bc"]}),
        ("characters_per_minute", CHAT, chat("a" * 3)),
        ("characters_per_minute", CHAT, chat("a" * 3, stream=True)),
    ],
)
async def test_more_than_a_minutes_worth_is_refused_for_good_and_takes_nothing(
    scorer: FakeScorer, tmp_path: Path, limit: str, path: str, body: Any
) -> None:
    async with serving(Script(whole("kind"))) as url:
        how = {"key": {limit: 2}, "upstream": Upstream(url), "max_inputs": 2000}
        async with guarded(scorer, tmp_path, **how) as served:
            for _ in range(2):
                reply = await served.client.post(path, json=body)
                assert reply.status_code == 413
                assert reply.json()["error"]["code"] == "rate_limit_too_small"
                assert "retry-after" not in reply.headers
            assert (await served.client.post(SCREEN, json={"prompt": "ok"})).status_code == 200


async def test_a_text_is_one_however_it_is_read_and_characters_count_as_they_come(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    text = "it is nót what it s e e m s"  # has further readings
    key = {"texts_per_minute": 2, "characters_per_minute": 2 * len(text)}
    async with guarded(scorer, tmp_path, key=key) as served:
        replies = [await served.client.post(SCREEN, json={"prompt": text}) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert int(replies[2].headers["retry-after"]) == 30
        assert len(scorer.calls) > 2


async def test_every_answer_tells_how_its_key_stands_as_openai_does(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    def told(reply: httpx.Response, what: str) -> list[str]:
        return [reply.headers[f"x-ratelimit-{k}-{what}"] for k in ("limit", "remaining", "reset")]

    key = {"requests_per_minute": 4, "characters_per_minute": 60}
    async with (
        serving(Script(streamed("kind"))) as url,
        guarded(scorer, tmp_path, key=key, upstream=Upstream(url)) as served,
    ):
        replies = [
            await served.client.get("/v1/models"),
            await served.client.post(CHAT, json=chat("bread", stream=True)),
            await served.client.post(SCREEN, json={"wrong": 1}),
        ]
        scorer.failure = RuntimeError("a defect")
        replies.append(await served.client.post(SCREEN, json={"prompt": "bread and butter"}))
        replies.append(await served.client.get("/v1/models"))
        statuses = [reply.status_code for reply in replies]
        assert statuses == [200, 200, 400, 500, 429]
        left = [told(reply, "requests")[:2] for reply in replies]
        assert left == [["4", "3"], ["4", "2"], ["4", "1"], ["4", "0"], ["4", "0"]]
        left = [told(reply, "characters")[1] for reply in replies[:3]]
        assert left[0] == "60"
        assert 55 <= int(left[1]) <= 56
        assert told(replies[0], "characters")[2] == "0s"
        # A quarter of a minute for each.
        assert re.fullmatch(r"14(\.\d+)?s|15s", told(replies[0], "requests")[2])
        assert "x-ratelimit-limit-texts" not in replies[0].headers
        open_to_all = await served.client.get("/healthz")
        assert "x-ratelimit-limit-requests" not in open_to_all.headers


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (1.5, "1.5s"), (59.9999, "1m0s")],
)
def test_times_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


async def test_a_stream_holds_its_place_until_its_end(scorer: FakeScorer, tmp_path: Path) -> None:
    gate = asyncio.Event()
    script = Script([delta("kind"), gate, *streamed(" words")[1:]])
    async with serving(script) as url:
        upstream = Upstream(url)
        async with guarded(scorer, tmp_path, key={"concurrent": 1}, upstream=upstream) as served:
            first = asyncio.create_task(served.client.post(CHAT, json=chat(stream=True)))
            await script.asked.wait()
            refused = await served.client.post(SCREEN, json={"prompt": "bread"})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            gate.set()
            assert (await first).text.endswith("data: [DONE]\n\n")
            assert (await served.client.post(SCREEN, json={"prompt": "x"})).status_code == 200


async def test_who_hangs_up_gives_its_place_back(scorer: FakeScorer, tmp_path: Path) -> None:
    async with guarded(scorer, tmp_path, key={"concurrent": 1}) as served:
        scorer.released.clear()
        with pytest.raises(httpx.ReadTimeout):
            await served.client.post(SCREEN, json={"prompt": "bread"}, timeout=0.3)
        await scorer.left.wait()
        scorer.released.set()
        async with asyncio.timeout(10):
            while (await served.client.get("/v1/models")).status_code != 200:
                await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/moderations", {"input": ["a", "b" * 51]}, "input"),
        (SCREEN, {"prompt": "b" * 51}, "prompt"),
        (SCREEN, {"prompt": "a", "response": "b" * 51}, "prompt"),
        (SCREEN, {"exchanges": [{"prompt": "b" * 51}]}, "exchanges"),
        (CHAT, chat("b" * 51), "messages"),
        (CHAT, chat("b" * 51, stream=True), "messages"),
        ("/v1/completions", {"model": "m", "prompt": "b" * 51}, "prompt"),
    ],
)
async def test_a_text_that_is_too_long_is_refused_before_anything_is_judged(
    scorer: FakeScorer, path: str, body: dict[str, Any], param: str
) -> None:
    async with (
        serving(Script(whole("kind"))) as url,
        gateway(scorer, upstream=Upstream(url), max_text_chars=50) as served,
    ):
        reply = await served.client.post(path, json=body)
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "text_too_long"
        assert reply.json()["error"]["param"] == param
    assert scorer.calls == []


async def test_logs_name_the_caller_and_never_its_key(scorer: FakeScorer, tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with guarded(scorer, tmp_path, key={"requests_per_minute": 1}) as served:
            await served.client.post(SCREEN, json={"prompt": "bread"})
            await served.client.post(SCREEN, json={"prompt": "bread"})
            await served.client.get("/v1/models", headers={"authorization": f"Bearer {SECRET}2"})
    assert SECRET not in str(lines)
    requests = [line for line in lines if line["event"] == "request"]
    assert [line.get("caller") for line in requests] == ["web", "web", None]


async def test_keys_are_read_again_when_their_file_changes(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    async with guarded(scorer, tmp_path) as served:
        written(tmp_path, entry("web", "sg-new"))
        new = {"authorization": "Bearer sg-new"}
        async with asyncio.timeout(10):
            while (await served.client.get("/v1/models", headers=new)).status_code != 200:
                written(tmp_path, entry("web", "sg-new"))  # the watch may not have begun
                await asyncio.sleep(0.1)
        assert (await served.client.get("/v1/models")).status_code == 401
        written(tmp_path, "web: [")
        await asyncio.sleep(0.5)
        assert (await served.client.get("/v1/models", headers=new)).status_code == 200


async def test_the_description_tells_of_keys_where_there_are_some(
    scorer: FakeScorer, served: Gateway, tmp_path: Path
) -> None:
    async with guarded(scorer, tmp_path) as locked:
        with_keys = (await locked.client.get("/openapi.json")).json()
        without = (await served.client.get("/openapi.json")).json()
    assert with_keys["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert with_keys["paths"][SCREEN]["post"]["security"] == [
        {name: []} for name in ("key", "x-api-key", "api-key")
    ]
    assert {"401", "429"} <= with_keys["paths"][SCREEN]["post"]["responses"].keys()
    assert "security" not in with_keys["paths"]["/healthz"]["get"]
    assert "securitySchemes" not in without["components"]


async def test_replicas_hold_a_key_to_one_limit_and_serve_on_when_redis_dies(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    key = {"requests_per_minute": 6}
    with redis_server(tmp_path) as server:
        shared = [RedisClient(server.url, seconds=5) for _ in range(2)]
        async with (
            guarded(scorer, tmp_path, key=key, shared=shared[0]) as one,
            guarded(scorer, tmp_path, key=key, shared=shared[1]) as other,
        ):
            statuses = [
                (await served.client.get("/v1/models")).status_code
                for _ in range(2)
                for served in (one, other)
            ]
            assert statuses == [200] * 4
            seen = (await other.client.get("/v1/models")).headers["x-ratelimit-remaining-requests"]
            assert seen == "1"
            server.kill()
            for served, left in ((one, 3), (other, 1)):  # of what it was told last
                statuses = [(await served.client.get("/v1/models")).status_code for _ in range(5)]
                assert statuses == [200] * left + [429] * (5 - left)


async def test_when_the_queue_is_full_everybody_gets_an_answer_and_it_empties_again(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    engine = BlockingEngine()
    loading = LoadingScorer(lambda: Batched(engine, max_batch_tokens=1, max_waiting=4))
    async with gateway(scorer, loading) as served:
        assert (await served.client.get("/readyz")).status_code == 200
        before = len(asyncio.all_tasks())
        calls = [
            asyncio.create_task(served.client.post(SCREEN, json={"prompt": f"text {number}"}))
            for number in range(20)
        ]
        while sum(call.done() for call in calls) < 16:
            await asyncio.sleep(0)
        engine.released.set()
        replies = [await call for call in calls]
        assert sorted(r.status_code for r in replies) == [200] * 4 + [429] * 16
        for reply in replies:
            if reply.status_code == 429:
                assert int(reply.headers["retry-after"]) >= 1
        assert (await served.client.post(SCREEN, json={"prompt": "x"})).status_code == 200
        await served.client.aclose()
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > before:
                await asyncio.sleep(0)


def test_the_digests_are_compared_in_constant_time() -> None:
    """What looks a key up compares digests by `hmac.compare_digest`, and no secret by ==."""
    source = Path(__file__).parents[1] / "service/shieldgate/access/keys.py"
    tree = ast.parse(source.read_text())
    find = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "find")
    calls = [ast.unparse(n.func) for n in ast.walk(find) if isinstance(n, ast.Call)]
    assert "hmac.compare_digest" in calls
    assert not [n for n in ast.walk(find) if isinstance(n, ast.Compare)]
