"""`POST /v1/messages`, asked by the official client of Anthropic before a scripted model."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import pytest
from fakes import FakeScorer
from serving import Gateway, gateway
from test_keys import entry, written
from upstream import Script, serving

from shieldgate.errors import Overloaded, ScorerUnavailable
from shieldgate.policy import Streaming
from shieldgate.sse import Decoder, json_event
from shieldgate.types import Exchange
from shieldgate.upstream import Upstream

CLOSELY = {"streaming": Streaming(first=1, growth=1.0, most=1)}
REFUSAL = "I can't help with that."
ASKED: dict[str, Any] = {
    "model": "m",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "bread"}],
}
TOOL = {"name": "look", "description": "Look around.", "input_schema": {"type": "object"}}


def whole(*blocks: Any, **more: Any) -> dict[str, Any]:
    """A whole reply; a string stands for a block of text."""
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 0},
        **more,
    }


def event(kind: str, **fields: Any) -> bytes:
    return json_event({"type": kind, **fields}, kind)


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    """The events of one block."""
    return [
        event("content_block_start", index=index, content_block=start),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


def text(index: int, said: str, piece: int = 4) -> list[bytes]:
    pieces = [said[at : at + piece] for at in range(0, len(said), piece)]
    deltas = [{"type": "text_delta", "text": each} for each in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas)


def streamed(*blocks: Sequence[bytes], reason: str = "end_turn") -> list[bytes]:
    """The events of a whole reply."""
    started = {**whole(), "stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 1}}
    return [
        event("message_start", message=started),
        event("ping"),
        *(each for events in blocks for each in events),
        event(
            "message_delta",
            delta={"stop_reason": reason, "stop_sequence": None},
            usage={"output_tokens": 5},
        ),
        event("message_stop"),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "late"}),
    ]


@dataclass
class Front:
    """A gateway before a scripted model, and the official client of whoever asks."""

    gateway: Gateway
    script: Script
    client: anthropic.AsyncAnthropic

    async def stream(self, **more: Any) -> anthropic.types.Message:
        """Ask for a stream by the client's own helper, and read it to the end."""
        async with self.client.messages.stream(**{**ASKED, **more}) as stream:
            return await stream.get_final_message()

    async def events(self, **more: Any) -> tuple[bytes, list[tuple[str, Any]]]:
        """Read a stream as it comes over the wire."""
        reply = await self.gateway.client.post(
            "/v1/messages", json={**ASKED, "stream": True, **more}
        )
        assert reply.status_code == 200, reply.text
        found = [(e.name, json.loads(e.data)) for e in Decoder(10**6).feed(reply.content)]
        assert all(name == data["type"] for name, data in found)
        return reply.content, found


@asynccontextmanager
async def front(
    scorer: FakeScorer, body: Any = None, *, status: int = 200, key: str = "callers", **how: Any
) -> AsyncIterator[Front]:
    script = Script(whole("a kind answer") if body is None else body, status=status)
    script.headers = {"request-id": "req_018EeWyXxfu5"}
    async with (
        serving(script) as url,
        gateway(scorer, upstream=Upstream(url), **how) as served,
        anthropic.AsyncAnthropic(base_url=served.url, api_key=key, max_retries=0) as client,
    ):
        yield Front(served, script, client)


def said(message: anthropic.types.Message) -> str:
    return "".join(b.text for b in message.content if b.type == "text")


def policies(message: anthropic.types.Message) -> Any:
    assert message.stop_details is not None
    return message.stop_details.policies  # type: ignore[attr-defined]


# Good answers


async def test_a_good_answer_passes_as_it_came(scorer: FakeScorer) -> None:
    async with front(scorer) as f:
        answer = await f.client.messages.create(**ASKED)
        [asked] = f.script.requests
    assert (said(answer), answer.stop_reason) == ("a kind answer", "end_turn")
    assert asked["path"] == "/v1/messages"
    assert asked["body"] == ASKED
    assert asked["headers"]["authorization"] == "Bearer callers"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", asked["headers"]["anthropic-version"])
    assert answer._request_id.startswith("req_")
    assert [e for e, _ in scorer.calls] == [Exchange("bread"), Exchange("bread", "a kind answer")]


async def test_a_good_stream_passes_event_by_event(scorer: FakeScorer) -> None:
    sent = streamed(
        block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "kindly"},
            {"type": "signature_delta", "signature": "EqQBCkYIBxgCKkBbase64" * 8},
        ),
        text(1, "a kind answer"),
        block(
            2,
            {
                "type": "tool_use",
                "id": "toolu_01A09q90qw90lq917835lq9",
                "name": "look",
                "input": {},
            },
            {"type": "input_json_delta", "partial_json": '{"at": '},
            {"type": "input_json_delta", "partial_json": '"bread"}'},
        ),
        reason="tool_use",
    )
    async with front(scorer, sent, profile=CLOSELY) as f:
        raw, _ = await f.events()
        answer = await f.stream(tools=[TOOL])
    assert raw == b"".join(sent[:-1])
    assert [b.type for b in answer.content] == ["thinking", "text", "tool_use"]
    assert answer.content[2].input == {"at": "bread"}
    assert (said(answer), answer.stop_reason) == ("a kind answer", "tool_use")
    assert answer.usage.output_tokens == 5


async def test_the_operators_key_stands_in_place_of_the_callers(scorer: FakeScorer) -> None:
    script = Script(whole("kind"))
    async with (
        serving(script) as url,
        gateway(scorer, upstream=Upstream(url, key="operators")) as served,
    ):
        headers = {"x-api-key": "callers", "authorization": "Bearer b"}
        await served.client.post("/v1/messages", json=ASKED, headers=headers)
    sent = script.requests[0]["headers"]
    assert sent["authorization"] == "Bearer operators"
    assert "x-api-key" not in sent


# Blocked prompts


PLACES = [
    {"messages": [{"role": "user", "content": "I will harm you"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "harm"}]}]},
    {"system": "harm"},
    {"system": [{"type": "text", "text": "harm"}]},
    {"tools": [{**TOOL, "description": "harm"}]},
    {"output_config": {"format": {"type": "json_schema", "schema": {"title": "harm"}}}},
    {"extra_body": {"unknown": {"deep": "harm"}}},
    {
        "messages": [
            {"role": "user", "content": "look"},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "harm"}}
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "kind"}],
            },
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "look"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "content": [{"type": "text", "text": "harm"}],
                    }
                ],
            },
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "bread"},
            {"role": "assistant", "content": "I harm"},
        ]
    },
]


@pytest.mark.parametrize("more", PLACES, ids=range(len(PLACES)))
async def test_a_blocked_prompt_is_a_refusal_and_no_model_is_asked(
    scorer: FakeScorer, more: dict[str, Any]
) -> None:
    scorer.margins = {("harm", "test/threat"): 6.0}
    async with front(scorer) as f:
        answer = await f.client.messages.create(**{**ASKED, **more})
        streamed_answer = await f.stream(**more)
        assert f.script.requests == []
    for found in (answer, streamed_answer):
        assert (found.content, found.stop_reason) == ([], "refusal")
        assert found.stop_details.category == "general_harms"
        assert found.stop_details.explanation == f"{REFUSAL} It violates: test/threat."
        assert policies(found) == ["test/threat"]
        assert (found.usage.input_tokens, found.usage.output_tokens) == (0, 0)


async def test_a_blocked_prompt_is_an_error_where_the_profile_says_so(scorer: FakeScorer) -> None:
    scorer.margins = {("bread", "test/threat"): 6.0}
    async with front(scorer, profile={"on_block": "error"}) as f:
        with pytest.raises(anthropic.BadRequestError) as refused:
            await f.client.messages.create(**ASKED)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert refused.value.body["error"]["code"] == "content_filter"
    assert "test/threat" in refused.value.message


async def test_the_refusal_is_a_text_where_the_profile_says_so(scorer: FakeScorer) -> None:
    scorer.margins = {("bread", "test/threat"): 6.0}
    async with front(scorer, profile={"refusal_field": "content", "refusal": "No."}) as f:
        answer = await f.client.messages.create(**ASKED)
        streamed_answer = await f.stream()
    assert [said(found) for found in (answer, streamed_answer)] == ["No.", "No."]
    assert [found.stop_reason for found in (answer, streamed_answer)] == ["refusal"] * 2


# Blocked answers

ANSWERS: list[Any] = [
    "I will harm you",
    {"type": "thinking", "thinking": "harm", "signature": "c2lnbmF0dXJlIGluIGJhc2U2NA=="},
    {"type": "thinking", "thinking": "", "signature": "I will harm you"},
    {"type": "redacted_thinking", "data": "harm in words"},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": ["harm"]}},
    {"type": "tool_use", "id": "toolu_1", "name": "harm", "input": {}},
    {
        "type": "server_tool_use",
        "id": "srvtoolu_1",
        "name": "web_search",
        "input": {"query": "harm"},
    },
    {
        "type": "text",
        "text": "kind",
        "citations": [
            {
                "type": "char_location",
                "cited_text": "harm",
                "document_index": 0,
                "document_title": "kind",
                "start_char_index": 0,
                "end_char_index": 4,
                "file_id": None,
            }
        ],
    },
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [
            {
                "type": "web_search_result",
                "title": "harm",
                "url": "https://kind.example",
                "encrypted_content": "EqgfCioIARgBIiQ3YTAwMjY1Mi1mZjM5LTQ1NGUtODgx",
                "page_age": None,
            }
        ],
    },
    {
        "type": "web_fetch_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {
            "type": "web_fetch_result",
            "url": "https://kind.example",
            "retrieved_at": None,
            "content": {
                "type": "document",
                "title": None,
                "citations": None,
                "source": {"type": "text", "media_type": "text/plain", "data": "harm"},
            },
        },
    },
    {
        "type": "bash_code_execution_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {
            "type": "bash_code_execution_result",
            "stdout": "harm",
            "stderr": "",
            "return_code": 0,
            "content": [],
        },
    },
    {"type": "unheard_of", "words": "kind"},
    {
        "type": "bash_code_execution_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {
            "type": "bash_code_execution_result",
            "stdout": "",
            "stderr": "",
            "return_code": 0,
            "content": [{"type": "bash_code_execution_output", "file_id": "file_1"}],
        },
    },
]


@pytest.mark.parametrize("given", ANSWERS, ids=range(len(ANSWERS)))
async def test_a_blocked_answer_is_a_refusal(scorer: FakeScorer, given: Any) -> None:
    scorer.margins = {("harm", "test/threat"): 6.0}
    start = {"type": "text", "text": given} if isinstance(given, str) else given
    async with front(scorer, whole("kind", given)) as f:
        answer = await f.client.messages.create(**ASKED)
        f.script.body = streamed(text(0, "kind"), block(1, start))
        streamed_answer = await f.stream()
        raw, _ = await f.events()
    assert (answer.content, answer.stop_reason) == ([], "refusal")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 5)
    assert (streamed_answer.content, streamed_answer.stop_reason) == ([], "refusal")
    assert b"harm in" not in raw
    assert b'"harm' not in raw
    assert b"file_1" not in raw
    assert b"unheard_of" not in raw
    judged = "unheard_of" not in str(given) and "file_1" not in str(given)
    for found in (answer, streamed_answer):
        assert policies(found) == (["test/threat"] if judged else [])
        assert found.stop_details.category == ("general_harms" if judged else None)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 100])
async def test_no_byte_of_a_blocked_span_leaves_and_open_blocks_are_closed(
    scorer: FakeScorer, piece: int
) -> None:
    scorer.margins = {("harm", "test/threat"): 6.0}
    sent = streamed(text(0, "a kind beginning", piece), text(1, "and then harm to all", piece))
    async with front(scorer, sent, profile=CLOSELY) as f:
        raw, events = await f.events()
        answer = await f.stream()
    left = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
    assert "a kind beginningand then harm".startswith(left)
    assert "harm" not in left
    assert b"to all" not in raw
    opened = [data["index"] for name, data in events if name == "content_block_start"]
    closed = [data["index"] for name, data in events if name == "content_block_stop"]
    assert opened == closed == sorted(opened)
    assert [name for name, _ in events][-2:] == ["message_delta", "message_stop"]
    assert "a kind beginningand then harm".startswith(said(answer))
    assert ("harm" in said(answer), answer.stop_reason) == (False, "refusal")
    assert policies(answer) == ["test/threat"]
    assert events[-2][1]["moderation"]["output"]["results"][0]["flagged"] is True


MEDIA: list[Any] = [{"image_url": "harm"}, {"file": {"at": "harm"}}, {"input_ids": ["harm"]}]


@pytest.mark.parametrize("given", MEDIA)
async def test_what_cannot_be_screened_leaves_neither_in_a_ping_nor_beside_a_refusal(
    scorer: FakeScorer, given: dict[str, Any]
) -> None:
    sent = streamed(text(0, "kind"))
    sent[1] = event("ping", **given)
    async with front(scorer, sent, profile=CLOSELY) as f:
        raw, events = await f.events()
        f.script.body = whole("kind", model=given)
        reply = await f.gateway.client.post("/v1/messages", json=ASKED)
    assert b"harm" not in raw + reply.content
    assert events[-2][1]["delta"]["stop_reason"] == reply.json()["stop_reason"] == "refusal"


async def test_a_block_may_begin_in_the_start_of_the_message(scorer: FakeScorer) -> None:
    scorer.margins = {("harm", "test/threat"): 6.0}
    [started, *_] = streamed()
    begun = json.loads(started.partition(b"data: ")[2])["message"]
    begun["content"] = [{"type": "text", "text": "I will ha"}]
    delta = {"type": "text_delta", "text": "rm you"}
    sent = streamed([event("content_block_delta", index=0, delta=delta)])
    sent[0] = event("message_start", message=begun)
    async with front(scorer, sent) as f:
        raw, _ = await f.events()
        answer = await f.stream()
    assert b"rm you" not in raw
    assert (said(answer), answer.stop_reason) == ("", "refusal")


async def test_a_refusal_as_text_is_a_block_of_its_own(scorer: FakeScorer) -> None:
    scorer.margins = {("harm", "test/threat"): 6.0}
    sent = streamed(text(0, "kind, "), text(1, "harm"))
    profile = {**CLOSELY, "refusal_field": "content"}
    async with front(scorer, sent, profile=profile) as f:
        answer = await f.stream()
    assert [b.text for b in answer.content][-1] == REFUSAL
    assert "harm" not in said(answer)


# Failures


async def test_a_guard_that_fails_is_an_overload_that_the_client_knows(scorer: FakeScorer) -> None:
    async with front(scorer) as f:
        for failure in (ScorerUnavailable("It failed.", retry_after=3), Overloaded(2.0)):
            scorer.failure = failure
            for ask in (f.client.messages.create(**ASKED), f.stream()):
                with pytest.raises(anthropic.InternalServerError) as failed:
                    await ask
                assert failed.value.status_code == 529
                assert failed.value.body["error"]["type"] == "overloaded_error"
                assert int(failed.value.response.headers["retry-after"]) >= 2
        assert f.script.requests == []


async def test_a_guard_that_fails_on_the_way_ends_in_a_refusal_that_names_no_policy(
    scorer: FakeScorer,
) -> None:
    go_on = asyncio.Event()
    sent = streamed(text(0, "a kind answer"))
    sent[4:4] = [go_on]
    async with (
        front(scorer, sent, profile=CLOSELY) as f,
        f.client.messages.stream(**ASKED) as stream,
    ):
        assert await anext(stream.text_stream) == "a ki"
        scorer.failure = ScorerUnavailable("It failed.", retry_after=3)
        go_on.set()
        answer = await stream.get_final_message()
    assert (said(answer), answer.stop_reason) == ("a ki", "refusal")
    assert (policies(answer), answer.stop_details.category) == ([], None)


async def test_upstreams_errors_keep_their_kind(scorer: FakeScorer) -> None:
    said = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    async with front(scorer, said, status=529) as f:
        with pytest.raises(anthropic.InternalServerError) as failed:
            await f.client.messages.create(**ASKED)
        assert failed.value.status_code == 529
        assert failed.value.body["error"]["message"] == "Overloaded"
        assert failed.value.body["error"]["type"] == "overloaded_error"
        assert failed.value.response.headers["x-upstream-request-id"] == "req_018EeWyXxfu5"


async def test_an_error_of_upstream_in_a_stream_is_one_for_the_client(scorer: FakeScorer) -> None:
    fault = {"type": "error", "error": {"type": "api_error", "message": "Broken"}}
    sent = [*streamed(text(0, "kind"))[:5], json_event(fault, "error")]
    async with front(scorer, sent, profile=CLOSELY) as f:
        with pytest.raises(anthropic.APIStatusError, match="Broken"):
            await f.stream()


async def test_a_stream_that_is_cut_off_is_no_end(scorer: FakeScorer) -> None:
    async with front(scorer, streamed(text(0, "kind"))[:4], profile=CLOSELY) as f:
        with pytest.raises(anthropic.APIStatusError) as failed:
            await f.stream()
    assert failed.value.body["error"]["code"] == "upstream_cut_off"


async def test_a_key_is_shown_as_the_client_shows_it_or_once_did(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    keys = written(tmp_path, entry("app", "sg-app"))
    async with front(scorer, keys=keys, key="sg-app") as f:
        assert said(await f.client.messages.create(**ASKED)) == "a kind answer"
        older = await f.gateway.client.post(
            "/v1/messages", json=ASKED, headers={"x-api-key": "sg-app"}
        )
        assert older.status_code == 200
        other = f.client.with_options(api_key="sg-other")
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await other.messages.create(**ASKED)
        assert refused.value.body["error"]["type"] == "authentication_error"


# Beside the answers


async def test_tokens_are_counted_by_upstream_and_nothing_else_comes_back(
    scorer: FakeScorer,
) -> None:
    asked = {"model": "m", "messages": ASKED["messages"]}
    async with front(scorer, {"input_tokens": 7, "words": "harm"}) as f:
        counted = await f.client.messages.count_tokens(**asked)
        assert counted.to_dict() == {"input_tokens": 7}
        assert f.script.requests[0]["path"] == "/v1/messages/count_tokens"
        assert f.script.requests[0]["body"] == asked
        for wrong in ("harm", -7):
            f.script.body = {"input_tokens": wrong}
            with pytest.raises(anthropic.APIStatusError) as failed:
                await f.client.messages.count_tokens(**asked)
            assert failed.value.status_code == 502
            assert failed.value.body["error"]["type"] == "api_error"
        error = {"type": "not_found_error", "message": "harm", "param": "harm", "code": "harm"}
        f.script.body, f.script.status = {"type": "error", "error": error}, 404
        with pytest.raises(anthropic.NotFoundError) as missing:
            await f.client.messages.count_tokens(**asked)
        assert missing.value.body["error"]["type"] == "not_found_error"
        assert "harm" not in missing.value.response.text
    assert scorer.calls == []


async def test_any_other_route_says_in_its_own_words_what_is_screened(scorer: FakeScorer) -> None:
    async with front(scorer) as f:
        with pytest.raises(anthropic.NotFoundError) as missing:
            await f.client.messages.batches.list()
        for route in ("messages", "responses", "embeddings", "decisions", "moderations"):
            assert f"/v1/{route}" in missing.value.message
        assert missing.value.body["error"]["type"] == "not_found_error"


async def test_a_caller_may_ask_for_scores(scorer: FakeScorer) -> None:
    more = {"extra_body": {"moderation": {"model": "strict"}}}
    async with front(scorer) as f:
        answer = await f.client.messages.create(**ASKED, **more)
        f.script.body = streamed(text(0, "a kind answer"))
        _, events = await f.events(moderation={"model": "strict"})
    assert "moderation" not in f.script.requests[0]["body"]
    for found in (answer.to_dict()["moderation"], events[-1][1]["moderation"]):
        assert set(found["output"]["results"][0]["categories"]) == {"test/threat", "test/spam"}


async def test_monitoring_tells_and_stops_nothing(scorer: FakeScorer) -> None:
    scorer.margins = {("kind", "test/threat"): 6.0}
    async with front(scorer, profile={"mode": "monitor"}) as f:
        answer = await f.client.messages.create(**ASKED)
        f.script.body = streamed(text(0, "a kind answer"))
        streamed_answer = await f.stream()
    for found in (answer, streamed_answer):
        assert (said(found), found.stop_reason) == ("a kind answer", "end_turn")


async def test_what_stands_elsewhere_is_refused(scorer: FakeScorer) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://kind.example/a.png"}}
    pdf = {"type": "document", "source": {"type": "base64", "data": "JVBERi0", "media_type": "a"}}
    async with front(scorer) as f:
        for more in (
            {"messages": [{"role": "user", "content": [image]}]},
            {"messages": [{"role": "user", "content": [pdf]}]},
            {"extra_body": {"container": "container_1"}},
            {"extra_body": {"mcp_servers": [{"type": "url", "url": "https://kind.example"}]}},
            {"extra_body": {"thread": {"id": "thread_1"}}},
        ):
            with pytest.raises(anthropic.BadRequestError, match="can't be screened") as refused:
                await f.client.messages.create(**{**ASKED, **more})
            assert refused.value.body["error"]["type"] == "invalid_request_error"
        assert f.script.requests == []


async def test_a_stream_without_names_of_events_is_read_by_their_types(
    scorer: FakeScorer,
) -> None:
    sent = [re.sub(rb"^event: .*\n", b"", each) for each in streamed(text(0, "kind"))[:-1]]
    async with front(scorer, sent, profile=CLOSELY) as f:
        raw, events = await f.events()
    assert raw.count(b"event: message_stop") == 1
    assert [name for name, _ in events][-1] == "message_stop"
