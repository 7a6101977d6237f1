"""The worker over HTTP, with a real generator and the official client."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import running

from shieldgate.errors import GeneratorBusy, GeneratorFailed
from shieldgate.settings import WorkerSettings
from shieldgate.worker.app import LoadingGenerator, create_app
from shieldgate.worker.generation import GenerationRequest, SamplingParams
from shieldgate.worker.generator import GemmaGenerator, TokenSequence, load_generator
from shieldgate.worker.scheduler import Scheduler

ASK = [{"role": "user", "content": "count stars"}]
GREEDY = {"messages": ASK, "temperature": 0, "max_tokens": 20}


@dataclass
class Paced:
    """A generator whose steps wait for `go`, after they released `entered`.

    `texts` counts, for each step, those that were written at the same time.
    """

    real: GemmaGenerator
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    texts: list[int] = field(default_factory=list)
    failure: Exception | None = None

    def step(self, texts: Sequence[TokenSequence]) -> list[list[int]]:
        self.texts.append(len(texts))
        self.entered.release()
        assert self.go.acquire(timeout=20)
        if self.failure:
            raise self.failure
        return self.real.step(texts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture(scope="module")
def generator(hot_checkpoint: Path) -> GemmaGenerator:
    return load_generator(str(hot_checkpoint))


@asynccontextmanager
async def serving(
    generator: GemmaGenerator | Paced,
    *,
    stop: Callable[[Exception], None] = pytest.fail,
    **settings: object,
) -> AsyncIterator[httpx.AsyncClient]:
    limits = {"max_running": 4, "max_queued": 2} | settings
    chosen = WorkerSettings(**limits)
    ready = asyncio.Event()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Scheduler]:
        async with Scheduler(
            generator, max_running=chosen.max_running, max_queued=chosen.max_queued
        ) as scheduler:
            yield scheduler

    worker = LoadingGenerator(chosen, opened, ready.set, stop)
    async with (
        running(create_app(worker)) as url,
        httpx.AsyncClient(base_url=url, timeout=20, verify=False) as client,
    ):
        await ready.wait()
        yield client


@pytest.fixture
async def client(generator: GemmaGenerator) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(generator) as client:
        yield client


@pytest.fixture
async def api(client: httpx.AsyncClient) -> AsyncIterator[openai.AsyncOpenAI]:
    base = f"{client.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as api:
        yield api


async def chat(client: httpx.AsyncClient, **body: object) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=GREEDY | body)


async def test_a_stream_holds_the_text_of_the_whole_reply(api: openai.AsyncOpenAI) -> None:
    asked = {**GREEDY, "model": "any", "n": 3, "temperature": 1.3, "seed": 7}
    whole = await api.chat.completions.create(**asked)
    assert [c.finish_reason for c in whole.choices] == ["length"] * 3
    assert len({c.message.content for c in whole.choices}) == 3
    assert whole.usage
    assert whole.usage.completion_tokens == 60

    texts, finishes, usage = [""] * 3, {}, None
    stream = await api.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert texts == [c.message.content for c in whole.choices]
    assert finishes == {0: "length", 1: "length", 2: "length"}
    assert usage == whole.usage

    counting = {"include_usage": True, "continuous_usage_stats": True}
    stream = await api.chat.completions.create(**asked, stream=True, stream_options=counting)
    counts = [chunk.usage async for chunk in stream]
    assert [c.completion_tokens for c in counts] == sorted(c.completion_tokens for c in counts)
    assert counts[0].completion_tokens == 0
    assert counts[-1] == whole.usage


async def test_a_stream_ends_with_done(client: httpx.AsyncClient) -> None:
    reply = await chat(client, stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    first, *_, last = [json.loads(event) for event in events[:-1]]
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] == "length"
    assert not any("usage" in json.loads(event) for event in events[:-1])


async def test_no_part_of_a_stop_string_leaves(api: openai.AsyncOpenAI) -> None:
    asked = {**GREEDY, "model": "any"}
    text = (await api.chat.completions.create(**asked)).choices[0].message.content
    assert text
    assert len(text) > 12
    stop = text[8:12]
    pieces = []
    stream = await api.chat.completions.create(**asked, stop=[stop, "never there"], stream=True)
    async for chunk in stream:
        pieces.append(chunk.choices[0].delta.content or "")
        finish = chunk.choices[0].finish_reason
    assert "".join(pieces) == text[: text.index(stop)]
    assert finish == "stop"


async def test_seeds_repeat_and_their_absence_does_not(client: httpx.AsyncClient) -> None:
    async def said(**body: object) -> str:
        reply = await chat(client, temperature=1.5, **body)
        return str(reply.json()["choices"][0]["message"]["content"])

    assert await said(seed=5) == await said(seed=5)
    assert len({await said(seed=5), await said(seed=6), await said(), await said()}) == 4


async def test_simultaneous_requests_get_what_they_would_get_alone(
    client: httpx.AsyncClient,
) -> None:
    async def said(word: str) -> str:
        reply = await chat(client, messages=[{"role": "user", "content": word * 9}])
        return str(reply.json()["choices"][0]["message"]["content"])

    words = ["tea ", "bread ", "weapon ", "number "]
    alone = [await said(word) for word in words]
    assert len(set(alone)) > 1
    assert await asyncio.gather(*(said(word) for word in words)) == alone


async def test_the_context_is_a_limit_that_says_so(
    api: openai.AsyncOpenAI, generator: GemmaGenerator
) -> None:
    for body in ({"max_tokens": 8192}, {"messages": [{"role": "user", "content": "0 " * 9000}]}):
        with pytest.raises(openai.BadRequestError, match="at most 8192 tokens") as refusal:
            await api.chat.completions.create(**{**GREEDY, "model": "any", **body})
        assert refusal.value.code == "context_length_exceeded"
        assert refusal.value.param == "messages"
    assert generator.context == 8192


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, None),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0"),
        ({"temperature": 3}, "temperature"),
        ({"n": 5}, "n"),
        ({"stop": ""}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"a secret key": 1}, "(a key)"),
    ],
)
async def test_what_it_cannot_do_is_refused_by_name(
    client: httpx.AsyncClient, body: dict[str, object], param: str | None
) -> None:
    reply = await chat(client, **body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(param or "")
    assert "secret" not in reply.text


TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tools": [TOOL]}, "tools: The generator can't call tools; leave it out."),
        ({"functions": [TOOL]}, "functions: The generator can't call tools; leave it out."),
        ({"tool_choice": "required"}, "tool_choice: The generator can't call tools; leave it out."),
        ({"tool_choice": TOOL}, "tool_choice: The generator can't call tools; leave it out."),
        (
            {"presence_penalty": 1},
            "presence_penalty: The generator knows no penalties; leave it out.",
        ),
        ({"logprobs": True}, "logprobs: The generator gives no logprobs; leave it out."),
        ({"top_logprobs": 3}, "top_logprobs: The generator gives no logprobs; leave it out."),
        ({"logit_bias": {"5": 1}}, "logit_bias: The generator takes no biases; leave it out."),
        (
            {"response_format": {"type": "json_object"}},
            "response_format: The generator knows no format but text; leave it out.",
        ),
        ({"modalities": ["audio"]}, "modalities: The generator writes text only; leave it out."),
        ({"unknown": 1}, "unknown: The generator does not know this; leave it out."),
        (
            {"messages": [*ASK, {"role": "assistant", "tool_calls": [TOOL]}]},
            "messages.1.tool_calls: The generator can't call tools; leave it out.",
        ),
    ],
)
async def test_what_it_cannot_do_is_said_in_words_of_its_own(
    client: httpx.AsyncClient, body: dict[str, object], said: str
) -> None:
    reply = await chat(client, **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith(said)


@pytest.mark.parametrize("path", ["completions", "responses", "embeddings", "chat/completion"])
async def test_what_it_does_not_serve_is_said_in_the_form_of_an_error(
    client: httpx.AsyncClient, path: str
) -> None:
    reply = await client.post(f"/v1/{path}", json={"prompt": "Once"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (404, "unknown_url")
    assert error["message"] == "The generator answers chats only: POST /v1/chat/completions."


async def test_fields_that_ask_for_nothing_are_accepted(client: httpx.AsyncClient) -> None:
    nothing = {
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "logprobs": False,
        "top_logprobs": 0,
        "tool_choice": "auto",
        "modalities": ["text"],
        "metadata": {"a": "b"},
        "response_format": {"type": "text"},
        "tools": [],
        "user": "someone",
    }
    echoed = {"role": "assistant", "content": "2", "refusal": None, "tool_calls": None}
    parts = [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]
    messages = [*ASK, echoed, {"role": "user", "content": parts}]
    assert (await chat(client, **nothing, messages=messages)).status_code == 200


async def test_bodies_are_bounded_and_must_be_json(generator: GemmaGenerator) -> None:
    async with serving(generator, max_body_bytes=100) as client:
        assert (await chat(client, user="x" * 100)).status_code == 413
        reply = await client.post("/v1/chat/completions", content=b"{")
        assert reply.status_code == 400
        assert reply.headers["x-request-id"].startswith("req_")


async def test_models_and_probes(client: httpx.AsyncClient, generator: GemmaGenerator) -> None:
    models = (await client.get("/v1/models")).json()["data"]
    assert [m["id"] for m in models] == [generator.name]
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200


async def test_before_it_is_loaded_it_answers_503() -> None:
    @asynccontextmanager
    async def never() -> AsyncIterator[Scheduler]:
        await asyncio.Event().wait()
        yield  # type: ignore[misc]

    worker = LoadingGenerator(WorkerSettings(), never, pytest.fail, stop=pytest.fail)
    async with (
        running(create_app(worker)) as url,
        httpx.AsyncClient(base_url=url, verify=False) as client,
    ):
        reply = await chat(client)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "5"
        assert reply.json()["error"]["code"] == "generator_unavailable"
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200


async def test_a_failure_to_load_stops_the_server() -> None:
    failure = RuntimeError("broken")
    stopped_by: asyncio.Queue[Exception] = asyncio.Queue()

    @asynccontextmanager
    async def broken() -> AsyncIterator[Scheduler]:
        raise failure
        yield

    worker = LoadingGenerator(WorkerSettings(), broken, pytest.fail, stop=stopped_by.put_nowait)
    async with running(create_app(worker)):
        assert await asyncio.wait_for(stopped_by.get(), 10) is failure


async def entered(paced: Paced) -> None:
    assert await asyncio.to_thread(paced.entered.acquire, timeout=20)


async def streamed(client: httpx.AsyncClient, lines: asyncio.Queue[str]) -> None:
    body = GREEDY | {"stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            lines.put_nowait(line)


@pytest.mark.parametrize("stream", [True, False])
async def test_when_the_caller_hangs_up_generation_stops(
    generator: GemmaGenerator, stream: bool
) -> None:
    paced = Paced(generator)
    async with serving(paced) as client:
        left = asyncio.create_task(chat(client, stream=stream, max_tokens=4000))
        await entered(paced)
        other = asyncio.create_task(chat(client, max_tokens=4000))
        while paced.texts[-1] < 2:
            paced.go.release()
            await entered(paced)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        for _ in range(1000):
            if paced.texts[-1] == 1:
                break
            paced.go.release()
            await entered(paced)
        assert paced.texts[-1] == 1
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        paced.go.release(100)


async def test_a_full_queue_is_a_429_and_the_rest_is_served_in_turn(
    generator: GemmaGenerator,
) -> None:
    paced = Paced(generator)
    async with serving(paced, max_running=1, max_queued=1) as client:
        first = asyncio.create_task(chat(client))
        await entered(paced)
        lines: asyncio.Queue[str] = asyncio.Queue()
        second = asyncio.create_task(streamed(client, lines))
        await lines.get()  # the beginning of a stream that waits for its turn
        refused = await chat(client)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        paced.go.release(100)
        assert (await first).status_code == 200
        await second


async def test_a_failed_step_fails_those_in_it_and_no_one_after(
    generator: GemmaGenerator,
) -> None:
    paced = Paced(generator, failure=RuntimeError("canary"))
    paced.go.release(1)
    async with serving(paced) as client:
        failed = await chat(client)
        assert failed.status_code == 503
        assert "canary" not in failed.text
        paced.go.release(1)
        events = (await chat(client, stream=True)).text
        assert '"code":"generator_unavailable"' in events
        assert "[DONE]" not in events
        paced.failure = None
        paced.go.release(100)
        assert (await chat(client)).status_code == 200


async def test_when_one_step_after_another_fails_the_server_stops_to_be_replaced(
    generator: GemmaGenerator,
) -> None:
    paced = Paced(generator, failure=RuntimeError("the device is gone"))
    paced.go.release(100)
    stopped_by: asyncio.Queue[Exception] = asyncio.Queue()
    async with serving(paced, stop=stopped_by.put_nowait) as client:
        for _ in range(4):
            assert (await chat(client)).status_code == 503
        assert await asyncio.wait_for(stopped_by.get(), 10) is paced.failure
        assert (await client.get("/readyz")).status_code == 503


async def test_a_job_that_was_left_while_it_waited_makes_room_at_once(
    generator: GemmaGenerator,
) -> None:
    """Wherever it stands in the queue, and before the step under way has ended."""
    paced = Paced(generator)
    prompt = generator.encode(["count stars"])
    order = GenerationRequest(prompt, max_tokens=5, sampling=SamplingParams(temperature=0))
    async with Scheduler(paced, max_running=1, max_queued=2) as scheduler:
        scheduler.submit(order)
        await entered(paced)
        scheduler.submit(order)
        last = scheduler.submit(order)
        with pytest.raises(GeneratorBusy):
            scheduler.submit(order)
        last.cancel()
        scheduler.submit(order)
        with pytest.raises(GeneratorBusy):
            scheduler.submit(order)
        paced.go.release(100)


async def test_closing_fails_what_is_queued(generator: GemmaGenerator) -> None:
    paced = Paced(generator)
    prompt = generator.encode(["count stars"])
    order = GenerationRequest(prompt, max_tokens=5, sampling=SamplingParams(temperature=0))

    async def finish(deltas: Callable[[], AsyncIterator[object]]) -> None:
        async for _ in deltas():
            pass

    async with Scheduler(paced, max_running=1, max_queued=1) as scheduler:
        jobs = [scheduler.submit(order)]
        await entered(paced)
        jobs.append(scheduler.submit(order))
        with pytest.raises(GeneratorBusy):
            scheduler.submit(order)
        readers = [asyncio.create_task(finish(job.__aiter__)) for job in jobs]
        paced.go.release(100)
    results = await asyncio.gather(*readers, return_exceptions=True)
    assert [type(r) for r in results] == [GeneratorFailed, GeneratorFailed]
    with pytest.raises(GeneratorFailed):
        scheduler.submit(order)
