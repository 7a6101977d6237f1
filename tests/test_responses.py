"""`POST /v1/responses` before a server that speaks it, as its callers see it."""

import asyncio
from typing import Any

import openai
import pytest
from fakes import FakeScorer
from responding import (
    ROUTE,
    USAGE,
    call,
    message,
    read,
    responding,
    response,
    said,
    streamed,
    thought,
    written,
)

from shieldgate.dialects.interface import Refusal
from shieldgate.dialects.openai_responses import OpenAIResponses
from shieldgate.errors import ScorerUnavailable
from shieldgate.policy import Streaming
from shieldgate.types import Exchange

REFUSAL = "I can't help with that."
CLOSELY = {"streaming": Streaming(first=1, growth=1.0, most=1)}
FILTERED = {"reason": "content_filter"}


# Good answers


async def test_a_good_answer_passes_as_it_came(scorer: FakeScorer) -> None:
    reply = response(thought("hm"), message("a kind answer"), call('{"q": "bread"}'))
    async with responding(scorer, reply) as front:
        assert await front.answer() == reply
        [request] = front.script.requests
    assert (request["path"], request["body"]) == (ROUTE, {"model": "m", "input": "bread"})
    assert scorer.calls[0][0] == Exchange("bread")
    judged = "\n".join(e.response or "" for e, _ in scorer.calls)
    assert all(text in judged for text in ("hm", "a kind answer", '{"q": "bread"}', "look up"))


async def test_a_good_stream_passes_as_it_came(scorer: FakeScorer) -> None:
    reply = response(thought("hm, well"), message("a kind answer"), call('{"q": "bread"}'))
    async with responding(scorer, written(said(reply)), profile=CLOSELY) as front:
        events = await front.stream()
    for event in (*events, *(wanted := said(reply))):
        event.pop("obfuscation", None)
    assert events == wanted


async def test_what_a_reply_repeats_of_its_request_is_not_judged_again(scorer: FakeScorer) -> None:
    tools = [{"type": "function", "name": "f", "description": "Finds.", "parameters": {}}]
    echoes = {"instructions": "Be brief.", "tools": [{**tools[0], "strict": True}]}
    async with responding(scorer, response(message("kind"), **echoes)) as front:
        await front.answer(instructions="Be brief.", tools=tools)
    assert [e for e, _ in scorer.calls if e.response] == [Exchange("bread", "kind")]


async def test_what_a_reply_says_beside_its_items_is_judged(scorer: FakeScorer) -> None:
    async with responding(scorer, response(message("kind"), instructions="so crude")) as front:
        answer = await front.answer(instructions="Be brief.")
    assert answer["incomplete_details"] == FILTERED
    assert "crude" not in str(answer)


async def test_a_response_that_failed_is_one_still(scorer: FakeScorer) -> None:
    error = {"code": "server_error", "message": "It broke."}
    reply = response(status="failed", error=error)
    async with responding(scorer, reply) as front:
        assert await front.answer() == reply
        front.script.body = response(status="failed", error={**error, "message": "so crude"})
        assert "crude" not in str(await front.answer())


# Blocks


@pytest.mark.parametrize("stream", [False, True])
async def test_a_blocked_prompt_is_an_error(scorer: FakeScorer, stream: bool) -> None:
    async with responding(scorer) as front:
        answer = await front.ask("so crude", stream=stream)
        assert front.script.requests == []
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    assert answer.json()["error"]["code"] == "content_filter"
    assert answer.json()["error"]["param"] == "input"
    assert answer.json()["moderation"]["input"]["flagged"] is True


async def test_a_blocked_prompt_may_be_a_refusal(scorer: FakeScorer) -> None:
    async with responding(scorer, profile={"on_block": "refusal"}) as front:
        answer = await front.answer("so crude")
        events = await front.stream("so crude")
        assert front.script.requests == []
    for refused in (answer, events[-1]["response"]):
        assert (refused["status"], refused["incomplete_details"]) == ("incomplete", FILTERED)
        [item] = refused["output"]
        assert item["content"] == [{"type": "refusal", "refusal": REFUSAL}]
        assert refused["usage"]["total_tokens"] == 0


@pytest.mark.parametrize(
    "item",
    [
        message("so crude"),
        call('{"q": "so \\u0063rude"}'),
        thought("so crude"),
        call("{}", name="crude"),
    ],
)
async def test_a_blocked_answer_is_a_refusal(scorer: FakeScorer, item: dict[str, Any]) -> None:
    async with responding(scorer, response(message("kind", id="msg_1"), item)) as front:
        answer = await front.answer()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", FILTERED)
    [only] = answer["output"]
    assert only["content"] == [{"type": "refusal", "refusal": REFUSAL}]
    assert (answer["id"], answer["usage"]) == ("resp_78", USAGE)
    assert answer["moderation"]["output"]["categories"] == {"test/threat": True}
    assert answer["moderation"]["input"]["flagged"] is False


async def test_a_refusal_may_be_the_content(scorer: FakeScorer) -> None:
    shown = {"refusal_field": "content", **CLOSELY}
    events = streamed(message("kind, then crude"), piece=8)
    begun = asyncio.Event()
    async with (
        responding(scorer, response(message("so crude")), profile=shown) as front,
        front.client() as client,
    ):
        whole = await client.responses.create(model="m", input="bread")
        front.script.body = [*events[:5], begun, *events[5:]]
        async with client.responses.stream(model="m", input="bread") as stream:
            async for last in stream:
                if last.type == "response.output_text.delta":
                    assert last.logprobs == []
                    begun.set()
    assert whole.output_text == REFUSAL
    assert last.type == "response.incomplete"
    assert last.response.output_text == f"kind, th\n\n{REFUSAL}"


TEXT = "all is well, then it gets crude, and goes on"
LONG = f"{'well ' * 30}{TEXT}"
ITEMS = {
    "text": lambda text: [message(text)],
    "refusal": lambda text: [message("", content=[{"type": "refusal", "refusal": text}])],
    "reasoning": lambda text: [thought(text), message("kind")],
    "arguments": lambda text: [message("kind"), call(text)],
    "custom": lambda text: [
        {"type": "custom_tool_call", "id": "ct_1", "call_id": "c1", "name": "f", "input": text}
    ],
    "mcp": lambda text: [
        {"type": "mcp_call", "id": "mcp_1", "name": "f", "server_label": "s", "arguments": text}
    ],
    "code": lambda text: [
        {"type": "code_interpreter_call", "id": "ci_1", "code": text, "container_id": "cntr_1",
         "outputs": None, "status": "completed"}
    ],
    "second": lambda text: [message("a kind one"), message(text, id="msg_2")],
}  # fmt: skip


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 11, len(TEXT)])
@pytest.mark.parametrize("kind", ITEMS)
async def test_no_byte_of_a_blocked_span_leaves_at_any_split(
    scorer: FakeScorer, kind: str, piece: int
) -> None:
    for text, profile in ((TEXT, CLOSELY), (LONG, {})):
        events = streamed(*ITEMS[kind](text), piece=piece)
        async with responding(scorer, events, profile=profile) as front:
            answer = await front.ask(stream=True)
        assert b"crude" not in answer.content
        assert b"goes on" not in answer.content
        left = read(answer.content)
        assert_well_formed(left)
        last = left[-1]
        assert last["type"] == "response.incomplete"
        assert last["response"]["incomplete_details"] == FILTERED
        assert last["response"]["moderation"]["output"]["flagged"] is True


def assert_well_formed(events: list[dict[str, Any]]) -> None:
    """Each part and message that begins is done, and done once; all parts of it say the same."""
    assert [e["type"] for e in events[:2]] == ["response.created", "response.in_progress"]
    items: dict[int, Any] = {}
    done: dict[int, Any] = {}
    parts: dict[tuple[Any, ...], str] = {}
    for event in events:
        kind, _, state = event["type"].rpartition(".")
        place = event.get("output_index")
        if kind == "response.output_item":
            (items if state == "added" else done)[place] = event["item"]
        elif kind in ("response.content_part", "response.reasoning_summary_part"):
            at = place, event.get("content_index"), event.get("summary_index")
            if state == "added":
                assert at not in parts
                parts[at] = ""
            else:
                part = event["part"]
                assert parts.pop(at) == part.get("text", part.get("refusal"))
        elif state in ("delta", "done") and ("content_index" in event or "summary_index" in event):
            at = place, event.get("content_index"), event.get("summary_index")
            if state == "delta":
                parts[at] += event["delta"]
            else:
                assert parts[at] == event.get("text", event.get("refusal"))
    assert parts == {}
    unfinished = {place: item for place, item in items.items() if place not in done}
    assert not {i["type"] for i in unfinished.values()} & {"message", "reasoning"}
    assert events[-1]["response"]["output"] == [item for _, item in sorted(done.items())]
    assert events[-1]["response"]["id"] == events[0]["response"]["id"]


@pytest.mark.parametrize("content", ["kind", {"a": 1}, None, [None], [{"type": ["x"], "text": 1}]])
def test_what_upstream_makes_of_a_message_does_not_keep_it_from_ending(content: Any) -> None:
    stream = OpenAIResponses().stream({}, 1)
    events = said(response(message("kind and more")), piece=4)
    events[2]["item"]["content"] = content
    events[3]["part"] |= {"type": ["x"], "text": None}
    pieces = [piece for event in events[:6] for piece in stream.read("", event)]
    sent = b"".join(map(stream.release, pieces))
    left = read(sent + stream.ending(0, Refusal(REFUSAL)) + stream.closing(None))
    assert left[-1]["type"] == "response.incomplete"
    assert REFUSAL in str(left[-1]["response"]["output"])


def test_a_call_that_is_blocked_while_it_is_written_is_not_done() -> None:
    stream = OpenAIResponses().stream({}, 1)
    events = said(response(message("kind"), call('{"q": "bread"}')), piece=4)
    begun = next(i for i, e in enumerate(events) if "arguments.delta" in e["type"])
    pieces = [piece for event in events[: begun + 2] for piece in stream.read("", event)]
    sent = b"".join(map(stream.release, pieces))
    sent += stream.ending(0, Refusal(REFUSAL)) + stream.closing(None)
    left = read(sent)
    assert_well_formed(left)
    assert [e["delta"] for e in left if "arguments" in e["type"]] == ['{"q"', ': "b']
    assert [e["item"]["type"] for e in left if e["type"] == "response.output_item.done"] == [
        "message",
        "message",
    ]


async def test_padding_leaves_in_its_length_alone(scorer: FakeScorer) -> None:
    events = said(response(message("kind")))
    events[4]["obfuscation"] = "so crude"
    async with responding(scorer, written(events)) as front:
        left = await front.stream()
    assert left[4]["obfuscation"] == "x" * len("so crude")


async def test_a_block_leaves_the_model(scorer: FakeScorer) -> None:
    never = asyncio.Event()
    events = streamed(message("so crude and on and on"), piece=8)
    async with responding(scorer, [*events[:6], never], profile=CLOSELY) as front:
        left = await front.stream()
        await asyncio.wait_for(front.script.left.wait(), 5)
    assert_well_formed(left)
    assert left[-1]["response"]["usage"] is None


async def test_all_is_held_until_the_end_where_the_profile_says_so(scorer: FakeScorer) -> None:
    events = streamed(message("all is well, but in the end it is crude"))
    full = {"streaming": Streaming(mode="full")}
    async with responding(scorer, events, profile=full) as front:
        left = await front.stream()
    assert_well_formed(left)
    assert "well" not in str(left)
    assert left[-1]["response"]["usage"] == USAGE


async def test_what_is_no_count_does_not_leave_with_a_block(scorer: FakeScorer) -> None:
    events = streamed(message("so crude"), usage={"input_tokens": 3, "note": "so crude"})
    async with responding(scorer, events) as front:
        left = await front.stream()
    assert "crude" not in str(left)


async def test_what_has_left_before_its_check_is_ended_well(scorer: FakeScorer) -> None:
    at_once = {"streaming": Streaming(mode="async", first=1, growth=1.0, most=1)}
    events = streamed(message("kind, and then it gets crude, and on"), piece=3)
    async with responding(scorer, events, profile=at_once) as front:
        left = await front.stream()
    assert_well_formed(left)
    assert left[-1]["response"]["incomplete_details"] == FILTERED
    assert left[-1]["response"]["moderation"]["input"]["flagged"] is False


async def test_monitoring_passes_all_and_tells(scorer: FakeScorer) -> None:
    reply = response(message("so crude"))
    async with responding(scorer, written(said(reply)), profile={"mode": "monitor"}) as front:
        left = await front.stream(moderation={"model": "default"})
    assert left[-1]["response"].pop("moderation")["output"]["flagged"] is True
    for event in (*left, *(wanted := said(reply))):
        event.pop("obfuscation", None)
    assert left == wanted


# What differs from what was judged


@pytest.mark.parametrize(
    "at", ["output_text.done", "content_part.done", "output_item.done", "completed"]
)
async def test_an_event_that_repeats_something_else_is_judged(scorer: FakeScorer, at: str) -> None:
    events = said(response(message("a kind answer")))
    place = next(i for i, e in enumerate(events) if e["type"] == f"response.{at}")
    changed = said(response(message("a crude answer")))[place]
    events = [e if e["sequence_number"] != changed["sequence_number"] else changed for e in events]
    if at != "completed":
        assert len(said(response(message("a crude answer")))) > place
        changed |= {"type": f"response.{at}"}
    events[place] = swapped(events[place])
    async with responding(scorer, written(events), profile=CLOSELY) as front:
        answer = await front.ask(stream=True)
    assert b"crude" not in answer.content
    assert read(answer.content)[-1]["response"]["incomplete_details"] == FILTERED


def swapped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("kind", "crude")
    if isinstance(value, dict):
        return {key: swapped(item) for key, item in value.items()}
    return [swapped(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.novel.delta", "delta": "so crude"},
        {"type": "crude", "x": 1},
        {"type": "response.output_text.annotation.added", "output_index": 0, "content_index": 0,
         "annotation_index": 0, "annotation": {"type": "url_citation", "title": "crude"}},
        {"type": "response.web_search_call.searching", "item_id": "a_crude_thing"},
        {"type": "response.audio.transcript.delta", "delta": "so crude"},
        {"type": "response.output_item.added", "output_index": 1, "item":
         {"type": "web_search_call", "id": "ws_1", "action": {"query": "crude"}}},
    ],
)  # fmt: skip
async def test_what_other_events_say_is_judged(scorer: FakeScorer, event: dict[str, Any]) -> None:
    events = said(response(message("a kind answer")))
    events.insert(6, event)
    async with responding(scorer, written(events), profile=CLOSELY) as front:
        answer = await front.ask(stream=True)
    assert b"crude" not in answer.content
    assert read(answer.content)[-1]["response"]["incomplete_details"] == FILTERED


async def test_an_unknown_event_may_not_spell_what_is_not_judged(scorer: FakeScorer) -> None:
    events = said(response(message("a kind answer")))
    events[6:6] = [{"type": "response.novel", "x": piece} for piece in ("so cr", "ude")]
    async with responding(scorer, written(events), profile=CLOSELY) as front:
        left = await front.stream()
    assert left[-1]["response"]["incomplete_details"] == FILTERED


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image_generation_call", "id": "ig_1", "result": "iVBORw0KGgo"},
        {"type": "novel_call", "id": "nc_1", "x": "well"},
        {"type": "computer_call_output", "id": "co_1", "call_id": "c1",
         "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,iVBO"}},
    ],
)  # fmt: skip
async def test_what_cannot_be_screened_is_stopped_or_passed(
    scorer: FakeScorer, item: dict[str, Any]
) -> None:
    reply = response(message("kind"), item)
    async with responding(scorer, reply) as front:
        answer = await front.answer()
        front.script.body = written(said(reply))
        left = await front.stream()
    for stopped in (answer, left[-1]["response"]):
        assert item not in stopped["output"]
        assert stopped["moderation"]["output"]["code"] == "unscreenable"
    async with responding(scorer, reply, profile={"unscreenable": "pass"}) as front:
        assert item in (await front.answer())["output"]


async def test_tokens_and_their_alternatives_are_judged(scorer: FakeScorer) -> None:
    tokens = [
        {"token": t, "logprob": -1.0, "bytes": list(t.encode()), "top_logprobs": [
            {"token": a, "logprob": -2.0, "bytes": list(a.encode())}]}
        for t, a in zip(["ki", "nd"], ["cr", "ude"], strict=True)
    ]  # fmt: skip
    part = {"type": "output_text", "text": "kind", "annotations": [], "logprobs": tokens}
    reply = response(message("", content=[part]))
    # In a stream, only the deltas bring them.
    events = said(response(message("kind")), piece=2)
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    for event, token in zip(deltas, tokens, strict=True):
        event["logprobs"] = [token]
    async with responding(scorer, reply) as front:
        assert (await front.answer())["incomplete_details"] == FILTERED
        front.script.body = written(events)
        assert (await front.stream())[-1]["response"]["incomplete_details"] == FILTERED


# Failures


@pytest.mark.parametrize("stream", [False, True])
async def test_a_guard_that_failed_is_a_503(scorer: FakeScorer, stream: bool) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    async with responding(scorer) as front:
        answer = await front.ask(stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "moderation_unavailable")


async def test_a_guard_that_fails_open_says_so(scorer: FakeScorer) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    opens = {"on_failure": {"prompt": "open", "response": "open"}}
    async with responding(scorer, profile=opens) as front:
        answer = await front.answer()
        assert answer["output"] == [message("a kind answer")]
        assert answer["moderation"]["output"]["type"] == "error"
        front.script.body = streamed(message("a kind answer"))
        left = await front.stream()
    assert left[-1]["type"] == "response.completed"
    assert left[-1]["response"]["moderation"]["input"]["type"] == "error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_of_upstream_passes(scorer: FakeScorer, stream: bool) -> None:
    async with responding(scorer) as front:
        front.script.status = 404
        front.script.body = {"error": {"message": "No such model.", "code": "model_not_found"}}
        answer = await front.ask(stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("events", "code"),
    [
        (streamed(message("kind"))[:-2], "upstream_cut_off"),
        ([*streamed(message("kind"))[:-2], b'event: error\ndata: {"type": "error", "code": "oops", '
          b'"message": "It broke.", "param": null, "sequence_number": 9}\n\n'], "oops"),
        ([*streamed(message("kind"))[:-2], b'data: {"type": "error", "message": "It broke."}\n\n'],
         "upstream_error"),
        ([*streamed(message("kind"))[:-2], b'data: {"type": 7}\n\n'], "upstream_invalid"),
        ([*streamed(message("kind"))[:-2], b'data: {"type": "response.completed"}\n\n'],
         "upstream_invalid"),
    ],
)  # fmt: skip
async def test_an_upstream_that_fails_in_a_stream_ends_it_in_an_error(
    scorer: FakeScorer, events: list[bytes], code: str
) -> None:
    async with responding(scorer, events, profile=CLOSELY) as front:
        answer = await front.ask(stream=True)
        if answer.status_code == 200:
            last = read(answer.content)[-1]
            assert (last["type"], last["code"], last["error"]["code"]) == ("error", code, code)
        else:
            assert answer.json()["error"]["code"] == code
        async with front.client() as client:
            with pytest.raises(openai.APIError) as raised:
                await until_done(client)
            assert raised.value.code == code


async def until_done(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="m", input="bread") as stream:
        await stream.until_done()


async def test_a_stream_that_ends_without_a_last_event_is_incomplete(scorer: FakeScorer) -> None:
    events = [*streamed(message("kind"))[:-1], b"data: [DONE]\n\n"]
    async with responding(scorer, events) as front:
        left = await front.stream()
    assert (left[-1]["type"], left[-1]["response"]["incomplete_details"]) == (
        "response.incomplete",
        None,
    )
    assert left[-1]["response"]["output"] == [message("kind")]


async def test_a_done_after_the_last_event_changes_nothing(scorer: FakeScorer) -> None:
    late = b'data: {"type": "response.output_text.delta", "delta": "crude"}\n\n'
    events = [*streamed(message("kind")), late, b"data: [DONE]\n\n"]
    async with responding(scorer, events) as front:
        left = await front.stream()
    assert left[-1]["type"] == "response.completed"


async def test_an_upstream_with_chats_alone_is_told_apart(scorer: FakeScorer) -> None:
    async with responding(scorer, {"detail": "Not Found"}) as front:
        front.script.status = 404
        answer = await front.ask()
    assert answer.status_code == 404
    assert "/v1/chat/completions is screened" in answer.json()["error"]["message"]


async def test_a_long_input_is_taken_and_too_many_items_are_not(scorer: FakeScorer) -> None:
    async with responding(scorer) as front:
        assert (await front.ask("bread " * 3000)).status_code == 200
        answer = await front.ask([{"role": "user", "content": ""}] * 10_001)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


async def test_background_is_refused_with_the_reason(scorer: FakeScorer) -> None:
    async with responding(scorer) as front:
        answer = await front.ask(background=True)
        assert (await front.ask(background=False)).status_code == 200
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "background"
    assert "fetched later" in answer.json()["error"]["message"]


async def test_other_routes_of_responses_are_none(scorer: FakeScorer) -> None:
    async with responding(scorer) as front:
        client = front.gateway.client
        for method, path in [
            ("GET", "/v1/responses/resp_78"),
            ("DELETE", "/v1/responses/resp_78"),
            ("POST", "/v1/responses/resp_78/cancel"),
            ("GET", "/v1/responses/resp_78/input_items"),
            ("POST", "/v1/responses/compact"),
            ("POST", "/v1/conversations"),
        ]:
            assert (await client.request(method, path, json={})).status_code == 404
        assert front.script.requests == []


# The official client


async def test_the_official_client_reads_it_all(scorer: FakeScorer) -> None:
    reply = response(thought("hm"), message("a kind answer"), call('{"q": 1}'))
    async with responding(scorer, reply, profile=CLOSELY) as front, front.client() as client:
        whole = await client.responses.create(model="m", input="bread")
        assert (whole.output_text, whole.status) == ("a kind answer", "completed")
        asked = {"model": "default", "policy": {"output": {"mode": "score"}}}
        told = await client.responses.create(model="m", input="bread", moderation=asked)
        assert told.moderation.output.type == "moderation_result"
        assert told.moderation.output.flagged is False
        front.script.body = written(said(reply))
        async with client.responses.stream(model="m", input="bread") as stream:
            final = await stream.get_final_response()
        assert (final.output_text, len(final.output)) == ("a kind answer", 3)
        with pytest.raises(openai.BadRequestError) as blocked:
            await client.responses.create(model="m", input="so crude")
        assert blocked.value.code == "content_filter"
        front.script.body = streamed(message("kind, and then crude"))
        async with client.responses.stream(model="m", input="bread") as stream:
            seen = [event async for event in stream]
        assert seen[-1].type == "response.incomplete"
        assert seen[-1].response.incomplete_details.reason == "content_filter"
        assert "crude" not in str(seen)
        front.script.body = response(message("so crude"))
        whole = await client.responses.create(model="m", input="bread")
        assert whole.incomplete_details.reason == "content_filter"
        assert whole.output[0].content[0].refusal == REFUSAL
        scorer.failure = ScorerUnavailable("The scorer failed.")
        with pytest.raises(openai.InternalServerError) as failed:
            await client.responses.create(model="m", input="other bread")
        assert failed.value.code == "moderation_unavailable"
