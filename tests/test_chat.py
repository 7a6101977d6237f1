"""Chats that are not streamed, through a real gateway to a real, scripted model."""

import asyncio
import json
from typing import Any

import pytest
from fakes import FakeScorer
from front import Front, Open, opening
from serving import Gateway, gateway
from structlog.testing import capture_logs
from upstream import DONE, Script, data_of, delta, serving, streamed, text_of, whole

from shieldgate.errors import Overloaded, ScorerUnavailable
from shieldgate.policy import Streaming
from shieldgate.upstream import Upstream

REFUSAL = "I can't help with that."


def moderation(*results: dict[str, Any]) -> dict[str, Any]:
    return {"type": "moderation_results", "model": "fake@0", "results": list(results)}


def result(flagged: bool, probability: float) -> dict[str, Any]:
    return {
        "type": "moderation_result",
        "model": "fake@0",
        "flagged": flagged,
        "categories": {"test/threat": flagged},
        "category_scores": {"test/threat": pytest.approx(probability)},
        "category_applied_input_types": {"test/threat": ["text"]},
    }


BAD, GOOD = 0.9525741268224334, 0.0024726231566347743


async def test_what_is_allowed_passes_untouched_both_ways(front: Open) -> None:
    reply = whole("a kind answer", unknown={"deep": 1}) | {"system_fingerprint": "fp"}
    sent = {"temperature": 0.5, "unknown": [1, {"x": None}], "stop": ["\n"], "user": "u"}
    async with front(reply) as f:
        answer = await f.ask("bread", **sent)
        assert answer.json() == reply
        assert answer.headers["x-upstream-request-id"] == "up-1"
        assert answer.headers["x-request-id"].startswith("req_")
        [request] = f.script.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["body"] == {
        "model": "m",
        "messages": [{"role": "user", "content": "bread"}],
        **sent,
    }


async def test_a_blocked_prompt_is_exactly_this_400_and_reaches_no_model(front: Open) -> None:
    async with front() as f:
        reply = await f.ask("a crude question")
        assert f.script.requests == []
    assert reply.status_code == 400
    assert reply.headers["x-should-retry"] == "false"
    assert reply.json() == {
        "error": {
            "message": "The prompt was blocked. It violates: test/threat.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "content_filter",
            "status": 400,
            "innererror": {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": {"test/threat": {"filtered": True, "severity": "high"}},
            },
        },
        "moderation": {"input": moderation(result(True, BAD)), "output": moderation()},
    }


async def test_a_blocked_prompt_may_be_a_friendly_200(front: Open) -> None:
    async with front(profile={"on_block": "refusal", "refusal": "Not here."}) as f:
        reply = await f.answer("a crude question", n=2)
        assert f.script.requests == []
    assert reply.pop("id").startswith("chatcmpl-")
    assert reply.pop("created") > 0
    assert reply == {
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": None, "refusal": "Not here."},
                "logprobs": None,
                "finish_reason": "content_filter",
            }
            for i in range(2)
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        "moderation": {"input": moderation(result(True, BAD)), "output": moderation()},
    }


async def test_a_blocked_choice_is_replaced_and_the_others_stay(front: Open) -> None:
    body = whole("a kind answer", "a crude answer", reasoning_content="hm")
    async with front(body) as f:
        reply = await f.answer(n=2)
    assert reply["usage"] == body["usage"]
    assert reply["choices"] == [
        body["choices"][0],
        {
            "index": 1,
            "message": {"role": "assistant", "content": None, "refusal": REFUSAL},
            "logprobs": None,
            "finish_reason": "content_filter",
        },
    ]
    assert reply["moderation"] == {
        "input": moderation(result(False, GOOD)),
        "output": moderation(result(False, GOOD), result(True, BAD)),
    }


@pytest.mark.parametrize(
    "message",
    [
        {"content": "crude"},
        {"content": None, "refusal": "crude"},
        {"content": "kind", "reasoning_content": "crude"},
        {
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a":"crude"}'}}],
        },
    ],
)
async def test_all_that_an_answer_says_is_judged(front: Open, message: dict[str, Any]) -> None:
    body = whole("x")
    body["choices"][0]["message"] = {"role": "assistant", **message}
    async with front(body) as f:
        [choice] = (await f.answer())["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert "crude" not in str(choice)


@pytest.mark.parametrize(
    "beside",
    [
        {"logprobs": {"content": [{"token": "cru"}, {"token": "de"}]}},
        {"finish_reason": "because it is crude"},
    ],
)
async def test_what_stands_in_a_choice_is_judged(front: Open, beside: dict[str, Any]) -> None:
    body = whole("kind")
    body["choices"][0] |= beside
    async with front(body) as f:
        reply = await f.answer()
    assert reply["choices"][0]["finish_reason"] == "content_filter"
    assert "cru" not in str(reply)


async def test_what_stands_around_the_choices_is_judged_with_them(front: Open) -> None:
    fine = whole("kind") | {"citations": ["http://a.b"]}
    async with front(fine) as f:
        assert await f.answer() == fine
        f.script.body = whole("kind") | {"citations": ["crude"]}
        reply = await f.answer()
        assert reply["choices"][0]["finish_reason"] == "content_filter"
        assert "crude" not in str(reply)
        assert reply["usage"] == fine["usage"]


async def test_monitoring_judges_all_and_changes_nothing(front: Open) -> None:
    body = whole("a crude answer")
    async with front(body, profile={"mode": "monitor"}) as f:
        assert await f.answer("a crude question") == body
        for direction in ("prompt", "response"):
            labels = {"policy": "test/threat", "direction": direction, "result": "would_block"}
            assert f.gateway.metric("shieldgate_verdicts_total", **labels) == 1


async def test_an_answer_that_cannot_be_screened_ends_like_a_blocked_one(front: Open) -> None:
    body = whole("kind", audio={"id": "a", "data": "AAAA"})
    async with front(body) as f:
        reply = await f.answer()
    assert reply["choices"][0]["finish_reason"] == "content_filter"
    assert reply["moderation"]["output"]["code"] == "unscreenable"
    async with front(body, profile={"unscreenable": "pass"}) as f:
        reply = await f.answer()
    assert reply["choices"] == body["choices"]
    assert reply["moderation"]["output"]["code"] == "unscreenable"


async def test_a_prompt_that_cannot_be_screened_is_refused_or_passed_aloud(front: Open) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]}]
    async with front() as f:
        reply = await f.ask(messages=messages)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "messages[0].content[1]"
        assert f.script.requests == []
    async with front(profile={"unscreenable": "pass"}) as f:
        reply = await f.ask(messages=messages)
        assert reply.status_code == 200
        assert reply.headers["x-shieldgate-unscreened"] == "1"


@pytest.mark.parametrize("direction", ["prompt", "response"])
@pytest.mark.parametrize("order", ["before", "parallel"])
async def test_a_failing_guard_does_what_the_profile_says_for_each_direction(
    front: Open, scorer: FakeScorer, direction: str, order: str
) -> None:
    class Fails(FakeScorer):
        async def score(self, exchange: Any, policies: Any) -> Any:
            if exchange.direction == direction:
                raise ScorerUnavailable("The scorer failed.")
            return await super().score(exchange, policies)

    scorer.__class__ = Fails
    other = "response" if direction == "prompt" else "prompt"
    both = {"prompt_check": order}
    async with front(profile={"on_failure": {direction: "closed", other: "open"}, **both}) as f:
        reply = await f.ask()
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "moderation_unavailable"
        assert int(reply.headers["retry-after"]) > 0
    async with front(profile={"on_failure": {direction: "open", other: "closed"}, **both}) as f:
        body = await f.answer()
        assert body["choices"] == f.script.body["choices"]
        side = "input" if direction == "prompt" else "output"
        assert body["moderation"][side] == {
            "type": "error",
            "code": "moderation_unavailable",
            "message": "The scorer failed.",
        }
        labels = {"policy": "test/threat", "direction": direction, "result": "failed_open"}
        assert f.gateway.metric("shieldgate_verdicts_total", **labels) == 1


@pytest.mark.parametrize("direction", ["prompt", "response"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_guard_without_room_is_told_from_a_model_without_room(
    front: Open, scorer: FakeScorer, direction: str, stream: bool
) -> None:
    class Full(FakeScorer):
        async def score(self, exchange: Any, policies: Any) -> Any:
            if exchange.direction == direction:
                raise Overloaded(2)
            return await super().score(exchange, policies)

    scorer.__class__ = Full
    async with front(streamed("kind") if stream else whole("kind")) as f:
        reply = await f.ask(stream=stream)
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "moderation_unavailable"
    assert int(reply.headers["retry-after"]) > 0


async def test_without_a_model_a_chat_is_a_503_that_says_how_to_get_one(served: Gateway) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "bread"}]}),
        ("/v1/completions", {"prompt": "bread"}),
    ):
        reply = await served.client.post(path, json={"model": "m", **body})
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "no_upstream"
        assert "--upstream" in reply.json()["error"]["message"]
        assert "--generator" in reply.json()["error"]["message"]


@pytest.mark.parametrize("order", ["before", "parallel"])
@pytest.mark.parametrize("stream", [False, True])
async def test_upstreams_errors_keep_their_status_their_words_and_their_id(
    front: Open, stream: bool, order: str
) -> None:
    said = {"message": "too long", "type": "invalid_request_error", "param": "messages"}
    async with front({"error": {**said, "code": "too_long"}}, profile={"prompt_check": order}) as f:
        for status in (400, 401, 429, 500, 503):
            f.script.status = status
            f.script.headers = {"retry-after": "7"}
            with capture_logs() as lines:
                reply = await f.ask(stream=stream)
            assert reply.status_code == status
            assert reply.json()["error"] == {**said, "code": "too_long"}
            assert reply.headers["x-upstream-request-id"] == "up-1"
            assert reply.headers["retry-after"] == "7"
            [line] = [line for line in lines if line["event"] == "upstream failed"]
            assert line["status"] == status
            assert line["log_level"] == ("warning" if status >= 500 else "info")
            assert "too" not in str(lines), "its words may quote the caller"


@pytest.mark.parametrize(
    "error",
    [
        {"message": "I will break your legs"},
        {"message": json.dumps([{"w": word} for word in "I will break your legs".split()])},
        {"message": '{"q": "I will \\u0062reak your legs"}'},
        {"message": "no", "code": "I will break your legs"},
        {"message": "no", "type": "I_will", "param": "br3ak-your", "code": "legs:now"},
    ],
)
async def test_an_error_says_nothing_that_an_answer_may_not(error: dict[str, str]) -> None:
    scorer = FakeScorer({("break your legs", "test/threat"): 3.0})
    async with opening(scorer)({"error": error}) as f:
        f.script.status = 400
        reply = await f.ask()
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "Upstream answered with an error (400)."
    assert "legs" not in reply.text


@pytest.mark.parametrize(
    "id", ["I_will_find_you_and_break_your_legs", "br3ak_y0ur_l3gs", "x" * 65, "a b"]
)
async def test_an_id_of_upstreams_that_could_be_words_is_left_out(front: Open, id: str) -> None:
    async with front(whole("fine")) as f:
        f.script.headers = {"x-request-id": id}
        assert "x-upstream-request-id" not in (await f.ask()).headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": "x"}, {"choices": [1]}, [b"x"]])
async def test_a_reply_that_makes_no_sense_is_a_502(front: Open, body: Any, stream: bool) -> None:
    async with front(body) as f:
        reply = await f.ask(stream=stream)
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] in ("upstream_invalid", "upstream_cut_off")


async def test_an_unreachable_upstream_is_a_502_and_a_silent_one_a_504(scorer: FakeScorer) -> None:
    async with gateway(scorer, upstream=Upstream("http://127.0.0.1:1/v1")) as served:
        reply = await Front(served, Script()).ask()
        assert reply.status_code == 502
        assert reply.json()["error"]["code"] == "upstream_unreachable"
    silent = Script(whole("x"), waits=asyncio.Event())
    async with (
        serving(silent) as url,
        gateway(scorer, upstream=Upstream(url, silence_seconds=0.05)) as served,
    ):
        reply = await Front(served, silent).ask()
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "upstream_timeout"


async def test_in_parallel_the_model_is_asked_before_the_verdict_and_left_on_a_block(
    front: Open, scorer: FakeScorer
) -> None:
    for stream in (False, True):
        scorer.released.clear()
        async with front(profile={"prompt_check": "parallel"}) as f:
            f.script.waits = asyncio.Event()
            asking = asyncio.create_task(f.ask("a crude question", stream=stream))
            await asyncio.wait_for(f.script.asked.wait(), 5)
            assert not asking.done()
            scorer.released.set()
            assert (await asking).status_code == 400
            await asyncio.wait_for(f.script.left.wait(), 5)


async def test_in_parallel_upstreams_error_waits_for_the_verdict(
    front: Open, scorer: FakeScorer
) -> None:
    for stream in (False, True):
        scorer.released.clear()
        async with front({"error": "x"}, profile={"prompt_check": "parallel"}) as f:
            f.script.status = 500
            asking = asyncio.create_task(f.ask("a crude question", stream=stream))
            await asyncio.wait_for(f.script.asked.wait(), 5)
            await asyncio.sleep(0)
            assert not asking.done()
            scorer.released.set()
            assert (await asking).json()["error"]["code"] == "content_filter"


async def test_whoever_hangs_up_ends_the_call_to_the_model_at_once(front: Open) -> None:
    async with front() as f:
        f.script.waits = asyncio.Event()
        asking = asyncio.create_task(f.ask())
        await asyncio.wait_for(f.script.asked.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(f.script.left.wait(), 5)


async def test_a_plain_completion_is_screened_too(front: Open, scorer: FakeScorer) -> None:
    choice = {"index": 0, "text": " kind", "logprobs": None, "finish_reason": "stop"}
    body = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    texts = [" kind", " crude", " kind", " kind"]
    body |= {"choices": [{**choice, "index": i, "text": t} for i, t in enumerate(texts)]}
    async with front(body) as f:
        post = f.gateway.client.post
        blocked = await post("/v1/completions", json={"model": "m", "prompt": "crude"})
        assert blocked.json()["error"]["param"] == "prompt"
        sent = {"model": "m", "prompt": ["one", "two"], "n": 2, "unknown": 1}
        reply = (await post("/v1/completions", json=sent)).json()
        assert [r["body"] for r in f.script.requests] == [sent]
        assert f.script.requests[0]["path"] == "/v1/completions"
    assert [c["text"] for c in reply["choices"]] == [" kind", REFUSAL, " kind", " kind"]
    assert reply["choices"][1] == {
        "index": 1,
        "text": REFUSAL,
        "logprobs": None,
        "finish_reason": "content_filter",
    }
    judged = [exchange.prompt for exchange, _ in scorer.calls if exchange.response is not None]
    assert judged == ["one", "one", "two", "two"]


async def test_a_small_body_can_not_ask_for_much_work(front: Open) -> None:
    """Neither by prompts, nor by choices, nor by what is judged; the field is named."""
    turns = [{"role": "user", "content": f"crude {i}"} for i in range(1025)]
    talk = [turn for user in turns for turn in (user, {"role": "assistant", "content": "kind"})]
    async with front(profile={"on_block": "refusal", "history": "all"}) as f:
        for path, body, param in (
            ("/v1/completions", {"prompt": ["crude"] * 33}, "prompt"),
            ("/v1/completions", {"prompt": ["x"] * 260_000, "n": 128}, "prompt"),
            ("/v1/completions", {"prompt": ["crude"] * 2, "n": 65}, "n"),
            ("/v1/chat/completions", {"messages": talk}, "messages"),
        ):
            for stream in (False, True):
                reply = await f.gateway.client.post(path, json={**body, "stream": stream})
                assert reply.status_code == 400
                assert reply.json()["error"]["param"] == param
        assert f.script.requests == []
        assert len((await f.answer("crude", n=128))["choices"]) == 128


async def test_upstreams_models_are_listed_with_ours(front: Open) -> None:
    listed = {"object": "list", "data": [{"id": "gemma", "owned_by": "google", "context": 8192}]}
    async with front(listed) as f:
        reply = (await f.gateway.client.get("/v1/models")).json()
        assert [m["id"] for m in reply["data"]][:2] == ["gemma", "default"]
        assert reply["data"][0]["owned_by"] == "google"
        f.script.status = 500
        reply = (await f.gateway.client.get("/v1/models")).json()
        assert reply["data"][0]["id"] == "default"


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("blocks", ["prompt", "answer"])
async def test_a_refusal_can_stand_where_every_client_shows_it(
    front: Open, streams: bool, blocks: str
) -> None:
    prompt, said = ("crude", "kind") if blocks == "prompt" else ("bread", "so crude")
    profile = {"on_block": "refusal", "refusal": "No.", "refusal_field": "content"}
    async with (
        front(streamed(said) if streams else whole(said), profile=profile) as f,
        f.client() as api,
    ):
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
        if streams:
            chunks = await api.chat.completions.create(**asked, stream=True)
            choices = [choice async for chunk in chunks for choice in chunk.choices]
            shown = "".join(choice.delta.content or "" for choice in choices)
            refused = [choice.delta.refusal for choice in choices if choice.delta.refusal]
            finish = choices[-1].finish_reason
        else:
            [choice] = (await api.chat.completions.create(**asked)).choices
            shown, finish = choice.message.content or "", choice.finish_reason
            refused = [choice.message.refusal] * bool(choice.message.refusal)
    assert (shown.strip(), refused, finish) == ("No.", [], "content_filter")


async def test_such_a_refusal_stands_apart_from_what_has_left(front: Open) -> None:
    profile = {
        "streaming": Streaming("hold", first=4, growth=1.0, most=4),
        "refusal_field": "content",
    }
    seen = asyncio.Event()
    pieces = [delta("kind"), seen, delta(" crude"), DONE]
    async with front(pieces, profile=profile) as f, f.streaming() as reply:
        raw = ""
        async for text in reply.aiter_text():
            raw += text
            seen.set()
    assert text_of(data_of(raw)) == "kind\n\nI can't help with that."
