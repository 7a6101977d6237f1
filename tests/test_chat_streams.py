"""Streamed chats, through a real gateway from a real, scripted model."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import FakeScorer
from front import Open, opening
from structlog.testing import capture_logs
from upstream import DONE, data_of, delta, sse, streamed, text_of, usage, whole

from shieldgate.errors import ScorerUnavailable
from shieldgate.policy import Policy, Streaming
from shieldgate.types import Exchange, Score

REFUSAL = "I can't help with that."
ENDING = [
    {
        "index": 0,
        "delta": {"role": "assistant", "refusal": REFUSAL},
        "logprobs": None,
        "finish_reason": None,
    },
    {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "content_filter"},
]
SOON = {"streaming": Streaming(first=8, growth=2.0, most=16)}


def finish(events: Sequence[Any], index: int = 0) -> str | None:
    """The last reason to finish that one choice gives; there must not be two."""
    reasons = [
        choice["finish_reason"]
        for event in events
        if event != "[DONE]"
        for choice in event.get("choices", ())
        if choice["index"] == index and choice["finish_reason"]
    ]
    assert len(reasons) <= 1
    return reasons[0] if reasons else None


async def test_an_allowed_stream_passes_untouched(front: Open) -> None:
    pieces = [*streamed("a kind answer")[:-1], usage(), DONE]
    async with front(pieces, profile=SOON) as f:
        options = {"stream_options": {"include_usage": True}, "unknown": {"x": 1}}
        events = await f.stream(**options)
        assert f.script.requests[0]["body"] == f.body("bread", stream=True, **options)
    assert events == data_of(b"".join(pieces).decode())


async def test_bytes_may_be_split_anywhere(front: Open) -> None:
    choice = {"index": 0, "delta": {"content": "ß 🙂"}, "finish_reason": "stop"}
    event = json.dumps({"choices": [choice]}, ensure_ascii=False)
    whole = f"data: {event}\n\n".encode() + DONE
    expected = data_of(whole.decode())
    async with front([]) as f:
        for cut in range(1, len(whole)):
            f.script.body = [whole[:cut], whole[cut:]]
            assert await f.stream() == expected
        f.script.body = [whole[i : i + 1] for i in range(len(whole))]
        assert await f.stream() == expected
        f.script.body = [b"\xef\xbb\xbf: hello\r\n\r\n" + whole.replace(b"\n", b"\r\n")]
        assert await f.stream() == expected


async def test_a_server_that_sends_no_done_is_given_one(front: Open) -> None:
    async with front(streamed("kind")[:-1]) as f:
        assert (await f.stream())[-1] == "[DONE]"


async def test_a_blocked_answer_ends_in_exactly_this_way(front: Open) -> None:
    """Nothing unjudged is released; the ending, the verdict, the end."""
    async with front([delta("all is well. "), delta("then crude"), *streamed("x")]) as f:
        events = await f.stream()
    envelope = {"id": "chatcmpl-1", "created": 7, "model": "scripted"}
    envelope["object"] = "chat.completion.chunk"
    probability = 0.9525741268224334
    assert events == [
        *({**envelope, "choices": [choice]} for choice in ENDING),
        {
            **envelope,
            "choices": [],
            "moderation": {
                "input": {
                    "type": "moderation_results",
                    "model": "fake@0",
                    "results": [
                        {
                            "type": "moderation_result",
                            "model": "fake@0",
                            "flagged": False,
                            "categories": {"test/threat": False},
                            "category_scores": {"test/threat": pytest.approx(0.0024726231566)},
                            "category_applied_input_types": {"test/threat": ["text"]},
                        }
                    ],
                },
                "output": {
                    "type": "moderation_results",
                    "model": "fake@0",
                    "results": [
                        {
                            "type": "moderation_result",
                            "model": "fake@0",
                            "flagged": True,
                            "categories": {"test/threat": True},
                            "category_scores": {"test/threat": pytest.approx(probability)},
                            "category_applied_input_types": {"test/threat": ["text"]},
                        }
                    ],
                },
            },
        },
        "[DONE]",
    ]


async def test_a_block_in_mid_stream_keeps_what_was_judged_and_leaves_the_model(
    front: Open,
) -> None:
    never = asyncio.Event()
    pieces = [delta("all is well. "), delta("then crude"), never, *streamed("more")]
    async with front(pieces, profile={"streaming": Streaming(first=1, growth=1.0, most=1)}) as f:
        events = await f.stream()
        await asyncio.wait_for(f.script.left.wait(), 5)
        labels = {"policy": "test/threat", "direction": "response", "result": "blocked"}
        assert f.gateway.metric("shieldgate_verdicts_total", **labels) == 1
    assert text_of(events) in ("all is well. ", "")
    assert finish(events) == "content_filter"
    assert events[-1] == "[DONE]"


async def test_choices_that_share_a_chunk_are_held_apart(front: Open) -> None:
    def both(*texts: str, finish: str | None = None) -> bytes:
        choices = [
            {"index": i, "delta": {"content": text}, "finish_reason": finish}
            for i, text in enumerate(texts)
        ]
        return sse({"id": "chatcmpl-1", "unknown": [1], "choices": choices})

    async with front([both("kind", "cr"), both(" too", "ude", finish="stop"), DONE]) as f:
        events = await f.stream(n=2)
    assert [finish(events, i) for i in range(2)] == ["stop", "content_filter"]
    assert [text_of(events, i) for i in range(2)] == ["kind too", ""]
    assert events[0]["unknown"] == [1]


async def test_a_choice_that_was_blocked_need_not_be_finished_by_the_model(front: Open) -> None:
    async with front([delta("crude " * 20), delta("kind", index=1, finish="stop"), DONE]) as f:
        events = await f.stream(n=2)
    assert [finish(events, i) for i in range(2)] == ["content_filter", "stop"]
    assert events[-1] == "[DONE]"


async def test_usage_follows_the_verdict_when_the_model_has_sent_it(front: Open) -> None:
    pieces = [delta("kind"), delta("crude", finish="stop", index=1), delta(finish="stop"), usage()]
    async with front([*pieces, DONE]) as f:
        events = await f.stream(n=2)
    assert "moderation" in events[-3]
    assert events[-2]["usage"]["completion_tokens"] == 5
    assert events[-1] == "[DONE]"


async def test_usage_that_is_counted_on_the_way_is_told_when_the_model_is_left(front: Open) -> None:
    counts = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    choice = {"index": 0, "delta": {"content": "crude " * 20}, "finish_reason": None}
    counted = sse({"id": "chatcmpl-1", "choices": [choice], "usage": counts})
    async with front([counted, asyncio.Event()]) as f:
        events = await f.stream(stream_options={"include_usage": True})
        assert "moderation" in events[-3]
        assert (events[-2]["choices"], events[-2]["usage"]) == ([], counts)
        events = await f.stream()
        assert "moderation" in events[-2]


@dataclass
class OurWorker:
    ready: bool = True

    async def run(self) -> None:
        await asyncio.Event().wait()


async def test_our_worker_is_asked_to_count_on_the_way_and_the_caller_sees_one_count(
    front: Open,
) -> None:
    counts = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    choice = {"index": 0, "delta": {"content": "kind, "}, "finish_reason": None}
    counted = sse({"id": "chatcmpl-1", "choices": [choice], "usage": counts})
    async with front([counted, delta("crude " * 20), asyncio.Event()], worker=OurWorker()) as f:
        for options in ({"include_usage": True}, {"include_usage": False}, None):
            events = await f.stream(stream_options=options)
            asked = f.script.requests[-1]["body"]["stream_options"]
            found = [event["usage"] for event in events[:-1] if "usage" in event]
            if options and options["include_usage"]:
                assert asked == {"include_usage": True, "continuous_usage_stats": True}
                assert found == [counts]
                assert events[-2]["usage"] == counts
            else:
                assert asked == options


@pytest.mark.parametrize("stream", [False, True])
async def test_while_our_worker_is_down_a_chat_is_told_so_at_once(
    front: Open, stream: bool
) -> None:
    worker = OurWorker(ready=False)
    async with front(streamed("kind") if stream else whole("kind"), worker=worker) as f:
        reply = await f.ask(stream=stream)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "5"
        assert reply.json()["error"]["code"] == "generator_unavailable"
        assert f.script.requests == []
        worker.ready = True
        assert (await f.ask(stream=stream)).status_code == 200


async def test_each_choice_ends_on_its_own(front: Open) -> None:
    texts = ["a kind answer, and a long one", "here it gets crude soon enough", "kind as well"]
    async with front(streamed(*texts, piece=3), profile=SOON) as f:
        events = await f.stream(n=3)
    assert [finish(events, i) for i in range(3)] == ["stop", "content_filter", "stop"]
    assert text_of(events, 0) == texts[0]
    assert text_of(events, 2) == texts[2]
    assert texts[1].startswith(text_of(events, 1))
    assert "crude" not in text_of(events, 1)
    [outputs] = [e["moderation"]["output"] for e in events[:-1] if "moderation" in e]
    assert [r["flagged"] for r in outputs["results"]] == [False, True, False]


async def test_when_every_choice_is_blocked_the_model_is_left(front: Open) -> None:
    never = asyncio.Event()
    pieces = [delta("crude " * 20, index=0), delta("crude " * 20, index=1), never]
    async with front(pieces) as f:
        events = await f.stream(n=2)
        await asyncio.wait_for(f.script.left.wait(), 5)
    assert [finish(events, i) for i in range(2)] == ["content_filter"] * 2


@pytest.mark.parametrize("first", ["blocked", "finished"])
async def test_when_only_blocked_and_finished_choices_are_left_so_is_the_model(
    front: Open, first: str
) -> None:
    """Whichever of the two happens first."""
    never = asyncio.Event()
    pieces = [delta("crude " * 20), delta("kind", index=1), delta(index=1, finish="stop")]
    order = pieces if first == "blocked" else [*pieces[1:], pieces[0]]
    async with front([*order, never]) as f:
        events = await asyncio.wait_for(f.stream(n=2), 5)
        await asyncio.wait_for(f.script.left.wait(), 5)
    assert [finish(events, i) for i in range(2)] == ["content_filter", "stop"]
    assert text_of(events, 1) == "kind"
    assert events[-1] == "[DONE]"


async def test_a_model_that_gives_fewer_choices_than_asked_for_is_no_failure(front: Open) -> None:
    async with front(streamed("crude")) as f:
        events = await f.stream(n=2)
    assert finish(events) == "content_filter"
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize("mode", ["hold", "full"])
async def test_tool_calls_and_reasoning_are_held_and_judged(front: Open, mode: str) -> None:
    def call(index: int, part: str) -> bytes:
        return delta(tool_calls=[{"index": index, "function": {"arguments": part}}])

    mixed = [call(0, '{"a": "cr'), call(1, '{"b":'), call(0, 'ude"}'), call(1, " 1}")]
    thinking = [delta(reasoning_content="cr"), delta(reasoning_content="ude")]
    for pieces in (mixed, thinking, [sse({"choices": [{"index": 0, "text": "crude"}]})]):
        profile = {"streaming": Streaming(mode, first=1, growth=1.0, most=1)}
        ending = [delta(finish="tool_calls"), DONE]
        async with front([*pieces, *ending], profile=profile) as f:
            events = await f.stream()
        assert finish(events) == "content_filter"
        assert "ude" not in json.dumps(events[0])


@pytest.mark.parametrize("mode", ["hold", "full"])
@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"index": 0, "logprobs": {"content": [{"token": "crude"}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "it is crude"}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}}], "citations": ["crude"]},
        {"choices": [{"index": 0, "delta": {"content": "x"}}], "id": "so crude"},
        {"choices": [], "citations": ["crude"]},
        {"note": "crude"},
    ],
)
async def test_nothing_unjudged_leaves_beside_the_text(front: Open, mode: str, said: Any) -> None:
    profile = {"streaming": Streaming(mode, first=1, growth=1.0, most=1)}
    pieces = [delta("kind"), sse(said), delta(finish="stop"), usage(), DONE]
    async with front(pieces, profile=profile) as f:
        events = await f.stream()
    assert "crude" not in json.dumps(events)
    blocked = bool(said.get("choices"))
    assert finish(events) == ("content_filter" if blocked else "stop")


async def test_before_the_first_release_no_byte_is_sent(front: Open, scorer: FakeScorer) -> None:
    """So that a failing guard can still be a 503: not even a comment to keep the line alive."""
    more = asyncio.Event()
    async with front([delta(role="assistant"), delta("kind"), more], ping_seconds=0.01) as f:
        head = asyncio.create_task(f.ask(stream=True))
        await asyncio.wait_for(f.script.asked.wait(), 5)
        await asyncio.sleep(0.05)
        assert not head.done()
        scorer.failure = ScorerUnavailable("The scorer failed.")
        f.script.body += [delta(finish="stop"), DONE]
        more.set()
        reply = await head
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "moderation_unavailable"


async def test_while_text_is_held_comments_keep_the_line_alive(front: Open) -> None:
    more = asyncio.Event()
    pieces = [delta("x" * 100), delta("held"), more, delta(finish="stop"), DONE]
    async with front(pieces, ping_seconds=0.01) as f, f.streaming() as reply:
        raw = ""
        async for text in reply.aiter_text():
            raw += text
            if raw.count(": ping\n\n") == 3:
                more.set()
    assert text_of(data_of(raw)) == "x" * 100 + "held"
    assert raw.endswith("data: [DONE]\n\n")


@dataclass
class FailsLater(FakeScorer):
    """Judges prompts and the first `good` answers, then fails."""

    good: int = 1

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        if exchange.response is not None:
            self.good -= 1
            if self.good < 0:
                raise ScorerUnavailable("The scorer failed.")
        return await super().score(exchange, policies)


LATER = [delta("x" * 8), delta("y" * 20), delta(finish="stop"), DONE]
FAILED = {"type": "error", "code": "moderation_unavailable", "message": "The scorer failed."}


async def test_a_guard_that_fails_in_mid_stream_ends_a_closed_answer() -> None:
    gate = asyncio.Event()
    pieces = [LATER[0], gate, *LATER[1:]]
    async with opening(FailsLater())(pieces, profile=SOON) as f, f.streaming() as reply:
        raw = ""
        async for text in reply.aiter_text():
            raw += text
            gate.set()
    events = data_of(raw)
    assert text_of(events) == "x" * 8
    assert finish(events) == "content_filter"
    assert events[-2]["moderation"]["output"] == FAILED
    assert events[-1] == "[DONE]"


async def test_a_guard_that_fails_lets_an_open_answer_pass_and_says_so() -> None:
    opens = {"on_failure": {"prompt": "closed", "response": "open"}}
    async with opening(FailsLater(good=0))(LATER, profile={**SOON, **opens}) as f:
        events = await f.stream()
    assert text_of(events) == "x" * 8 + "y" * 20
    assert finish(events) == "stop"
    assert events[-2]["moderation"]["output"] == FAILED
    assert events[-1] == "[DONE]"


async def test_an_upstream_that_dies_early_is_its_error(front: Open) -> None:
    async with front([delta("kind"), RuntimeError("dies")]) as f:
        reply = await f.ask(stream=True)
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "upstream_cut_off"


@pytest.mark.parametrize(
    ("death", "code"),
    [
        (RuntimeError("dies"), "upstream_cut_off"),
        (b"data: {]\n\n", "upstream_invalid"),
        (sse({"choices": ["x"]}), "upstream_invalid"),
        (sse({"error": {"message": "out of memory", "code": "oom"}}), "oom"),
    ],
)
async def test_an_upstream_that_dies_later_leaves_what_was_judged_and_an_error(
    front: Open, death: Any, code: str
) -> None:
    gate = asyncio.Event()
    pieces = [delta("x" * 8), gate, delta("held"), death]
    async with front(pieces, profile=SOON) as f, f.streaming() as reply:
        raw = ""
        with capture_logs() as lines:
            async for text in reply.aiter_text():
                raw += text
                gate.set()
    assert [line["event"] for line in lines].count("upstream failed") == 1
    events = data_of(raw)
    assert text_of(events) == "x" * 8
    assert events[-1].keys() == {"error"}
    assert events[-1]["error"]["code"] == code
    assert isinstance(events[-1]["error"]["message"], str)


@pytest.mark.parametrize("index", [5, -1, None, "0"])
async def test_of_several_choices_only_those_that_were_asked_for_are_taken(
    front: Open, index: Any
) -> None:
    async with front([delta("kind", index=index), DONE]) as f:
        reply = await f.ask(stream=True, n=2)
    assert reply.json()["error"]["code"] == "upstream_invalid"


@pytest.mark.parametrize("indices", [[None], [0, 1, 2, 3], [1], [-1], ["0"], [0.0], [True]])
@pytest.mark.parametrize("said", [("a ki", "nd ans", "wer", ""), ("all cr", "ude", " it is", "")])
async def test_the_one_choice_that_was_asked_for_is_known_whatever_its_index(
    front: Open, said: tuple[str, ...], indices: list[Any]
) -> None:
    def event(text: str, place: int) -> bytes:
        choice = {"delta": {"content": text}, "finish_reason": None if text else "stop"}
        index = indices[place % len(indices)]
        return sse({"choices": [choice if index is None else {"index": index, **choice}]})

    async with front([*map(event, said, range(4)), DONE], profile=SOON) as f:
        events = await f.stream()
    assert finish(events) == ("stop" if "wer" in said else "content_filter")
    assert text_of(events) in (("a kind answer",) if "wer" in said else ("", "all cr"))


@pytest.mark.parametrize("none", ["", " ", "null", "None", None, False, 0, {}, []])
async def test_a_reason_that_is_none_finishes_no_choice(
    front: Open, scorer: FakeScorer, none: Any
) -> None:
    texts = [delta("kind ", finish=none) for _ in range(40)]
    async with front([*texts, delta(finish="stop"), DONE]) as f:
        events = await f.stream()
        assert text_of(events) == "kind " * 40
        answers = [exchange for exchange, _ in scorer.calls if exchange.response is not None]
        assert len(answers) <= 3, "one for 200 characters, one for the end"
    async with front(texts) as f:  # which ends in good form, and says nothing of an end
        assert (await f.stream())[-1]["error"]["code"] == "upstream_cut_off"


@pytest.mark.parametrize("reason", ["stop", "length", "eos_token", {"type": "stop"}])
async def test_any_other_reason_finishes_it(front: Open, reason: Any) -> None:
    async with front([delta("kind"), delta(finish=reason)]) as f:
        assert text_of(await f.stream()) == "kind"


@pytest.mark.parametrize("mode", ["hold", "full", "async"])
async def test_the_end_of_the_stream_ends_choices_that_gave_no_reason(
    front: Open, mode: str
) -> None:
    profile = {"streaming": Streaming(mode, first=4, growth=2.0, most=1000)}
    async with front([delta("kind"), delta(" and long"), DONE], profile=profile) as f:
        events = await f.stream()
    assert text_of(events) == "kind and long"
    assert (finish(events), events[-1]) == (None, "[DONE]")


async def test_what_came_before_that_end_is_judged_first(front: Open) -> None:
    async with front([delta("kind"), delta(" and cru"), delta("de"), DONE], profile=SOON) as f:
        events = await f.stream()
    assert "cru" not in text_of(events)
    assert finish(events) == "content_filter"


async def test_an_end_without_any_choice_is_none(front: Open) -> None:
    async with front([usage(), DONE]) as f:
        assert (await f.ask(stream=True)).status_code == 502


FILTER_RESULTS = sse({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]})
NOTE = sse({"choices": [], "note": 1})


@pytest.mark.parametrize("mode", ["hold", "full", "async"])
async def test_events_without_choices_stay_in_their_place(front: Open, mode: str) -> None:
    pieces = [FILTER_RESULTS, delta("kind"), NOTE, delta(" and "), delta("long", finish="stop")]
    profile = {"streaming": Streaming(mode, first=4, growth=2.0, most=1000)}
    async with front([*pieces, usage(), DONE], profile=profile) as f:
        events = await f.stream()
    own = [e for e in events if "content_filter_offsets" not in json.dumps(e)]
    if mode == "async":
        own = own[1:]  # what was found in the prompt
    assert own == data_of(b"".join([*pieces, usage(), DONE]).decode())


@pytest.mark.parametrize("index", [0, 1])
async def test_events_without_choices_overtake_no_text_and_survive_a_block(
    front: Open, index: int
) -> None:
    pieces = [FILTER_RESULTS, delta("so crude " * 9, index=index), NOTE, delta("x", index=index)]
    pieces += [delta("kind", index=1 - index), delta(index=1 - index, finish="stop"), usage(), DONE]
    async with front(pieces, profile=SOON) as f:
        events = await f.stream(n=2)
    beside = [key for e in events[:-1] for key in e if not e["choices"]]
    assert [k for k in beside if k in ("prompt_filter_results", "note", "usage")] == [
        *("prompt_filter_results", "note", "usage")
    ]
    assert "crude" not in text_of(events, index)


async def test_an_upstream_that_stalls_is_waited_for_with_comments_and_then_left(
    front: Open,
) -> None:
    gate = asyncio.Event()
    pieces = [delta("x" * 8), gate, delta("held"), asyncio.Event()]
    async with front(pieces, profile=SOON, ping_seconds=0.02, silence=1.0) as f:
        async with f.streaming() as reply:
            raw = ""
            async for text in reply.aiter_text():
                raw += text
                gate.set()
        await asyncio.wait_for(f.script.left.wait(), 5)
    assert raw.count(": ping\n\n") > 1
    *events, last = data_of(raw)
    assert text_of(events) == "x" * 8
    assert finish(events) is None
    assert last["error"]["code"] == "upstream_timeout"


async def test_an_upstream_that_stalls_before_anything_was_sent_is_a_504(front: Open) -> None:
    async with front([delta("held"), asyncio.Event()], silence=0.5) as f:
        reply = await f.ask(stream=True)
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "upstream_timeout"


async def test_whoever_hangs_up_in_mid_stream_ends_the_call_to_the_model(
    front: Open, scorer: FakeScorer
) -> None:
    """Also when nothing was sent yet, and while a judgement is under way."""
    never = asyncio.Event()
    async with front([delta("x" * 100), never]) as f:
        async with f.streaming() as reply:
            assert await anext(reply.aiter_text())
        await asyncio.wait_for(f.script.left.wait(), 5)
    async with front([delta("x"), never]) as f:
        asking = asyncio.create_task(f.ask(stream=True))
        await asyncio.wait_for(f.script.asked.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(f.script.left.wait(), 5)
    async with front([delta("x" * 100), never], profile={"prompt_check": "parallel"}) as f:
        scorer.released.clear()
        scorer.left.clear()
        asking = asyncio.create_task(f.ask(stream=True))
        await asyncio.wait_for(f.script.asked.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(f.script.left.wait(), 5)
        await asyncio.wait_for(scorer.left.wait(), 5)


async def test_a_slow_reader_makes_the_model_wait(front: Open) -> None:
    """What the gateway keeps of a stream is bounded, however long the stream is."""
    sent = 0

    class Counted(list[bytes]):
        def __iter__(self) -> Any:
            nonlocal sent
            for _ in range(300):
                sent += 1
                yield delta("x" * 100_000)
            yield delta(finish="stop")

    # Reading millions of letters in further ways takes a minute.
    profile = {"mode": "monitor", "streaming": Streaming("full"), "normalise": False}
    async with front(Counted(), profile=profile) as f:
        async with f.streaming() as reply:
            pieces = reply.aiter_bytes()
            await anext(pieces)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 250
            total = 0
            async for piece in pieces:
                total += len(piece)
        assert sent == 300
        assert total > 290 * 100_000


async def test_monitoring_holds_nothing_back_and_counts_an_answer_once(
    front: Open, scorer: FakeScorer
) -> None:
    more = asyncio.Event()
    texts = [delta("crude " * 30), delta("then kind"), more, delta(finish="stop")]
    texts += [sse({"choices": [], "citations": ["a crude one"]}), DONE]
    async with front(texts, profile={"mode": "monitor", **SOON}) as f:
        async with f.streaming() as reply:
            raw = ""
            async for text in reply.aiter_text():
                raw += text
                if "then kind" in raw:
                    more.set()
        labels = {"policy": "test/threat", "direction": "response", "result": "would_block"}
        assert f.gateway.metric("shieldgate_verdicts_total", **labels) == 1
    assert data_of(raw) == data_of(b"".join(p for p in texts if isinstance(p, bytes)).decode())


async def test_async_streams_leave_at_once_and_are_annotated_with_offsets(front: Open) -> None:
    more = [asyncio.Event(), asyncio.Event()]
    pieces = [delta("x" * 10), more[0], delta("y" * 10), more[1], delta(finish="stop"), DONE]
    profile = {"streaming": Streaming("async", first=10, growth=2.0, most=10)}
    async with front(pieces, profile=profile) as f, f.streaming() as reply:
        raw = ""
        async for text in reply.aiter_text():
            raw += text
            for event, seen in zip(more, ('"check_offset":10', '"check_offset":20'), strict=True):
                if seen in raw:
                    event.set()
    events = data_of(raw)
    safe = {"test/threat": {"filtered": False, "severity": "safe"}}
    assert events[0]["choices"] == []
    assert events[0]["prompt_filter_results"] == [
        {"prompt_index": 0, "content_filter_results": safe}
    ]
    marks = [c for e in events[:-1] for c in e["choices"] if "content_filter_offsets" in c]
    assert [m["content_filter_offsets"] for m in marks] == [
        {"check_offset": 10, "start_offset": 0, "end_offset": 10},
        {"check_offset": 20, "start_offset": 10, "end_offset": 20},
    ]
    assert all(m["content_filter_results"] == safe for m in marks)
    assert text_of(events) == "x" * 10 + "y" * 10


async def test_async_streams_end_when_a_violation_is_found(front: Open) -> None:
    never = asyncio.Event()
    profile = {"streaming": Streaming("async", first=1, growth=1.0, most=1)}
    async with front([delta("so crude"), never], profile=profile) as f:
        events = await f.stream()
        await asyncio.wait_for(f.script.left.wait(), 5)
    assert text_of(events) == "so crude"
    assert finish(events) == "content_filter"
    [mark] = [c for e in events[:-1] for c in e["choices"] if "content_filter_offsets" in c]
    assert mark["content_filter_results"]["test/threat"] == {"filtered": True, "severity": "high"}


async def test_async_streams_give_one_reason_to_finish(front: Open) -> None:
    pieces = [delta("kind so far, "), delta("then crude"), delta(finish="stop"), DONE]
    async with front(pieces, profile={"streaming": Streaming("async")}) as f:
        assert finish(await f.stream()) == "content_filter"
        f.script.body = streamed("kind")
        assert finish(await f.stream()) == "stop"


async def test_in_parallel_no_byte_leaves_before_the_prompts_verdict(
    front: Open, scorer: FakeScorer
) -> None:
    profile = {"prompt_check": "parallel", "streaming": Streaming("async")}
    scorer.released.clear()
    async with front(streamed("kind"), profile=profile) as f:
        asking = asyncio.create_task(f.stream())
        await asyncio.wait_for(f.script.asked.wait(), 5)
        await asyncio.sleep(0.05)
        assert not asking.done()
        scorer.released.set()
        assert text_of(await asking) == "kind"


@pytest.mark.parametrize("mode", ["hold", "async"])
async def test_in_parallel_a_guard_that_fails_before_the_prompts_verdict_is_a_503(
    mode: str,
) -> None:
    """Although text was let pass by then: none of it was sent."""

    @dataclass
    class SlowOnPrompts(FailsLater):
        passed: asyncio.Event = field(default_factory=asyncio.Event)
        prompts: asyncio.Event = field(default_factory=asyncio.Event)

        async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
            if exchange.response is None:
                await self.prompts.wait()
            scores = await super().score(exchange, policies)
            self.passed.set()
            return scores

    scorer, never = SlowOnPrompts(), asyncio.Event()
    pieces = [LATER[0], scorer.passed, LATER[1], never]
    profile = {"prompt_check": "parallel", "streaming": Streaming(mode, first=8, growth=2, most=16)}
    async with opening(scorer)(pieces, profile=profile) as f:
        asking = asyncio.create_task(f.ask(stream=True))
        await asyncio.wait_for(f.script.left.wait(), 5)
        scorer.prompts.set()
        reply = await asking
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "moderation_unavailable"


async def test_a_blocked_prompt_may_be_a_friendly_stream(front: Open) -> None:
    async with front(profile={"on_block": "refusal"}) as f:
        events = await f.stream("a crude question")
        counted = await f.stream("crude", stream_options={"include_usage": True})
        assert f.script.requests == []
    assert events[0]["object"] == "chat.completion.chunk"
    assert [event["choices"] for event in events[:3]] == [[ENDING[0]], [ENDING[1]], []]
    assert events[2]["moderation"]["input"]["results"][0]["flagged"]
    assert events[3:] == ["[DONE]"]
    assert counted[3]["usage"]["total_tokens"] == 0
    assert counted[4:] == ["[DONE]"]


async def test_a_streamed_plain_completion_is_screened_too(front: Open, scorer: FakeScorer) -> None:
    def piece(index: int, text: str, finish: str | None = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        return sse({"id": "c", "object": "text_completion", "choices": [choice]})

    pieces = [piece(0, " cr"), piece(1, " kind"), piece(0, "ude", "stop"), piece(1, "", "stop")]
    async with front([*pieces, DONE]) as f:
        body = {"model": "m", "prompt": ["bread", "cake"], "stream": True}
        reply = await f.gateway.client.post("/v1/completions", json=body)
    choices = [event["choices"] for event in data_of(reply.text)[:-2]]
    blocked = {"index": 0, "text": REFUSAL, "logprobs": None, "finish_reason": "content_filter"}
    assert [blocked] in choices
    assert [c for [c] in choices if c["index"] == 1] == [
        {"index": 1, "text": " kind", "logprobs": None, "finish_reason": None},
        {"index": 1, "text": "", "logprobs": None, "finish_reason": "stop"},
    ]
    assert {e for e, _ in scorer.calls if e.response is not None} == {
        Exchange("bread", " crude"),
        Exchange("cake", " kind"),
    }


@dataclass
class Gated(FakeScorer):
    """Gives one verdict on an answer for each permit, and remembers what it let pass."""

    permits: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    passed: list[str] = field(default_factory=list)

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        scores = await super().score(exchange, policies)
        if exchange.response is not None:
            await self.permits.acquire()
            if scores[0].margin < 0:
                self.passed.append(exchange.response)
        return scores


@pytest.mark.parametrize("mode", ["hold", "full"])
@pytest.mark.parametrize("ending", ["kind to the end", "crude in the end"])
async def test_every_released_prefix_is_covered_by_a_judgement(mode: str, ending: str) -> None:
    """What has reached the caller lies at each moment within what the judge has let pass."""
    text = "all is well so far, and it goes on for a while, and gets " + ending
    profile = {"streaming": Streaming(mode, first=5, growth=1.2, most=10)}
    waits = [asyncio.Event() for _ in range(len(text) // 3 + 1)]
    events = streamed(text, piece=3)
    pieces = [
        p
        for pair in zip(events, [*waits, waits[0], waits[0], waits[0]], strict=False)
        for p in pair
    ]
    gated = Gated({("crude", "test/threat"): 3.0})
    async with opening(gated)(pieces, profile=profile) as f:

        async def let_on() -> None:
            for wait in waits:
                wait.set()
                gated.permits.release()
                await asyncio.sleep(0)
            for _ in waits:
                gated.permits.release()

        letting = asyncio.create_task(let_on())
        raw = ""
        async with f.streaming() as reply:
            async for part in reply.aiter_text():
                raw += part
                covered = max(gated.passed, key=len, default="")
                received = text_of(data_of(raw[: raw.rfind("\n\n") + 2]))
                assert covered.startswith(received)
        await letting
    assert text_of(data_of(raw)) == (text if "kind" in ending else covered)
    assert ("crude" in text) == (finish(data_of(raw)) == "content_filter")


async def test_a_body_is_refused_as_everywhere(front: Open) -> None:
    async with front() as f:
        for body in ({}, {"messages": 5}, {"messages": [], "n": 0}, {"messages": [], "stream": 1}):
            reply = await f.gateway.client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 400
            assert reply.json()["error"]["type"] == "invalid_request_error"
