"""What the outermost layer counts of each request: how it ended, and how long what took."""

import asyncio
from typing import Any

import pytest
from fakes import FakeScorer
from front import Front, Open
from serving import Gateway
from upstream import DONE, delta, streamed, whole

from shieldgate.errors import Overloaded, ScorerUnavailable
from shieldgate.policy import Streaming

CHAT = "/v1/chat/completions"
SOON = {"streaming": Streaming(first=8, growth=2.0, most=16)}


async def ended(served: Gateway, route: str, status: int, outcome: str) -> None:
    """Wait until one request of this kind was counted, and no other."""
    labels = {"route": route, "status": str(status), "outcome": outcome}
    async with asyncio.timeout(10):
        while served.metric("shieldgate_requests_in_progress"):
            await asyncio.sleep(0)
    assert served.metric("shieldgate_requests_total", **labels) == 1
    assert served.metric("shieldgate_request_seconds_count", route=route) == 1


@pytest.mark.parametrize(
    ("body", "more", "status", "outcome"),
    [
        (whole("kind"), {}, 200, "answered"),
        (streamed("kind"), {"stream": True}, 200, "answered"),
        (whole("kind"), {"prompt": "crude"}, 400, "blocked"),
        (whole("crude", "kind"), {"n": 2}, 200, "blocked"),
        (streamed("kind", "crude"), {"n": 2, "stream": True}, 200, "blocked"),
        (whole("kind"), {"n": "many"}, 400, "refused"),
        ({"choices": []}, {}, 502, "upstream_failed"),
        ([delta("kind"), RuntimeError("dies")], {"stream": True}, 502, "upstream_failed"),
    ],
)
async def test_a_chat_has_the_outcome_that_its_caller_saw(
    front: Open, body: Any, more: dict[str, Any], status: int, outcome: str
) -> None:
    async with front(body) as f:
        assert (await f.ask(**more)).status_code == status
        await ended(f.gateway, CHAT, status, outcome)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_guard_is_no_failure_of_the_gateway(
    front: Open, scorer: FakeScorer, stream: bool
) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    async with front() as f:
        assert (await f.ask(stream=stream)).status_code == 503
        await ended(f.gateway, CHAT, 503, "unjudged")


@pytest.mark.parametrize(
    ("failure", "status", "outcome"), [(Overloaded(1), 429, "limited"), (OSError(), 500, "failed")]
)
async def test_a_lack_of_room_is_told_from_a_defect(
    served: Gateway, scorer: FakeScorer, failure: Exception, status: int, outcome: str
) -> None:
    scorer.failure = failure
    reply = await served.client.post("/v1/screen", json={"prompt": "bread"})
    assert reply.status_code == status
    await ended(served, "/v1/screen", status, outcome)


async def test_a_stream_that_dies_was_cut_off(front: Open) -> None:
    gate = asyncio.Event()
    async with front([delta("x" * 8), gate, RuntimeError("dies")], profile=SOON) as f:
        async with f.streaming() as reply:
            async for _ in reply.aiter_bytes():
                gate.set()
        await ended(f.gateway, CHAT, 200, "cut_off")


async def test_a_guard_that_fails_in_mid_stream_leaves_it_unjudged(
    front: Open, scorer: FakeScorer
) -> None:
    gate = asyncio.Event()
    pieces = [delta("x" * 8), gate, delta("y" * 20), delta(finish="stop"), DONE]
    async with front(pieces, profile=SOON) as f:
        async with f.streaming() as reply:
            async for _ in reply.aiter_bytes():
                scorer.failure = ScorerUnavailable("The scorer failed.")
                gate.set()
        await ended(f.gateway, CHAT, 200, "unjudged")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_hangs_up_has_left(front: Open, stream: bool) -> None:
    never = asyncio.Event()
    async with front([delta("x" * 100), never]) as f:
        if stream:
            async with f.streaming() as reply:
                assert await anext(reply.aiter_bytes())
        else:
            f.script.waits = never
            asking = asyncio.create_task(f.ask())
            await asyncio.wait_for(f.script.asked.wait(), 10)
            assert f.gateway.metric("shieldgate_requests_in_progress") == 1
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await ended(f.gateway, CHAT, 200 if stream else 499, "left")


def phase(f: Front, name: str) -> tuple[float | None, float | None]:
    """How often a phase was measured, and how long it took in sum."""
    count, total = (
        f.gateway.metric(f"shieldgate_phase_seconds_{kind}", phase=name)
        for kind in ("count", "sum")
    )
    return count, total


async def test_a_stream_tells_its_first_byte_and_how_long_text_was_held(
    front: Open, scorer: FakeScorer
) -> None:
    loop = asyncio.get_running_loop()
    scorer.released.clear()

    async with front(streamed("a kind answer"), profile={"prompt_check": "parallel"}) as f:
        asking = asyncio.create_task(f.ask(stream=True))
        async with asyncio.timeout(10):
            while len(scorer.calls) < 2:  # the prompt, and the answer that has come whole
                await asyncio.sleep(0)
        began = loop.time()
        assert phase(f, "held") == (None, None)
        least = loop.time() - began
        scorer.released.set()
        await asking
        await ended(f.gateway, CHAT, 200, "answered")
        assert phase(f, "upstream")[0] == 1
        count, held = phase(f, "held")
        assert count == 1
        assert held is not None
        assert held > least
        first = f.gateway.metric("shieldgate_stream_first_byte_seconds_sum", route=CHAT)
        whole_time = f.gateway.metric("shieldgate_request_seconds_sum", route=CHAT)
        assert first is not None
        assert whole_time is not None
        assert held < first <= whole_time
