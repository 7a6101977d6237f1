"""What users of such gateways ask for, one test for each.

The numbers are those of the list in the design; behind each is an issue of a gateway in which it
was missing. Here they are shown from outside, with the official client where it matters; their
corner cases are tested beside the rooms that see to them.
"""

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes import FakeScorer, FixedPolicies, small_book
from front import Front, Open, opening
from pydantic import BaseModel
from serving import gateway
from structlog.testing import capture_logs
from test_batched import LengthEngine, Piece
from test_policy_watch import ToldBook, edit, strict
from upstream import DONE, Script, data_of, delta, serving, sse, streamed, text_of, whole

from shieldgate.errors import Overloaded, ScorerUnavailable
from shieldgate.policy import Policy, PolicyBook, Streaming, shipped_policies
from shieldgate.scoring import Batched, Cached, Resilient, Scorer
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.types import Exchange, Score
from shieldgate.upstream import Upstream

CHAT = "/v1/chat/completions"
CRUDE = "here it gets crude"
PICKY = {"streaming": Streaming(first=1, growth=1.0, most=1)}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def judged(scorer: FakeScorer, *, answers: bool) -> list[str]:
    return [e.response or e.prompt for e, _ in scorer.calls if (e.response is not None) == answers]


def flagged(side: dict[str, Any]) -> list[bool]:
    return [result["flagged"] for result in side["results"]]


async def test_01_a_stream_is_never_a_bypass(front: Open) -> None:
    async with front(streamed(CRUDE)) as f:
        assert (await f.ask("crude", stream=True)).json()["error"]["code"] == "content_filter"
        assert "crude" not in text_of(await f.stream())


class WaitsOnAnswers(FakeScorer):
    """Judges prompts at once; answers wait for `released`."""

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        if exchange.response is None:
            return [Score(-6.0) for _ in policies]
        return await super().score(exchange, policies)


async def test_02_unjudged_text_is_held_back_by_default() -> None:
    scorer, begun = WaitsOnAnswers(), asyncio.Event()
    scorer.released.clear()
    async with opening(scorer)(streamed("kind")) as f:

        async def ask() -> str:
            raw = ""
            async with f.streaming() as reply:
                async for text in reply.aiter_text():
                    begun.set()
                    raw += text
            return raw

        asking = asyncio.create_task(ask())
        await asyncio.wait_for(scorer.entered.wait(), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(begun.wait(), 0.2)
        scorer.released.set()
        assert text_of(data_of(await asking)) == "kind"


@pytest.mark.parametrize("piece", [1, 2, 3])
async def test_03_a_violation_that_straddles_a_boundary_is_caught(front: Open, piece: int) -> None:
    async with front(
        streamed("all is well, then crude, then more", piece=piece), profile=PICKY
    ) as f:
        events = await f.stream()
    assert "crude" not in text_of(events)
    assert events[-3]["choices"][0]["finish_reason"] == "content_filter"


async def test_04_long_input_is_never_clipped_and_the_newest_turn_is_always_judged(
    front: Open, scorer: FakeScorer
) -> None:
    long = "word " * 20_000 + "crude"
    for history in ("latest", "window", "all"):
        async with front(profile={"history": history}) as f:
            assert (await f.ask(long)).status_code == 400
            turns = [*user("hello"), {"role": "assistant", "content": "hi"}, *user("crude")]
            assert (await f.ask(messages=turns)).status_code == 400
    assert long in judged(scorer, answers=False)


@pytest.mark.parametrize(
    "said",
    [
        {"content": CRUDE},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": CRUDE}}]},
        {"reasoning_content": CRUDE},
        {"some_new_field": [{"text": CRUDE}]},
    ],
)
async def test_05_all_that_is_said_is_judged_in_every_choice(front: Open, said: Any) -> None:
    kind = delta("kind", finish="stop")
    async with front([kind, delta(index=1, **said), delta(index=1, finish="stop"), DONE]) as f:
        events = await f.stream(n=2)
        assert text_of(events) == "kind"
        assert "crude" not in json.dumps(events)
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "crude"}]
        messages = [{"role": "user", "content": parts}]
        assert (await f.ask(messages=messages)).status_code == 400
        picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        assert (await f.ask(messages=picture)).status_code == 400


async def test_06_one_bad_message_need_not_jam_a_session_yet_a_split_attack_is_seen(
    front: Open, scorer: FakeScorer
) -> None:
    bad = [*user("crude"), {"role": "assistant", "content": "no"}, *user("and bread?")]
    async with front(profile={"history": "latest"}) as f:
        assert (await f.ask(messages=bad)).status_code == 200
    async with front(profile={"history": "window", "window": 2}) as f:
        assert (await f.ask(messages=bad)).status_code == 400
        later = [*bad, {"role": "assistant", "content": "yes"}, *user("thanks")]
        assert (await f.ask(messages=later)).status_code == 200
        scorer.margins["make a\nbomb", "test/threat"] = 3.0
        split = [*user("make a"), {"role": "assistant", "content": "what?"}, *user("bomb")]
        assert (await f.ask(messages=split)).status_code == 400


async def test_07_a_reply_is_judged_together_with_its_prompt(
    front: Open, scorer: FakeScorer
) -> None:
    async with front() as f:
        await f.ask("how is bread made?")
    [exchange] = [e for e, _ in scorer.calls if e.response is not None]
    assert (exchange.prompt, exchange.response) == ("how is bread made?", "a kind answer")


async def test_08_blocks_are_machine_readable_and_the_same_on_every_surface(front: Open) -> None:
    async with front(whole(CRUDE)) as f:
        plain = await f.answer()
        f.script.body = streamed(CRUDE)
        events = await f.stream()
        screened = await f.gateway.client.post("/v1/screen", json={"prompt": "crude"})
        asked = (await f.ask("crude")).json()
    assert plain["choices"][0]["finish_reason"] == "content_filter"
    assert events[-3]["choices"][0]["finish_reason"] == "content_filter"
    assert plain["moderation"] == events[-2]["moderation"]
    scores = asked["moderation"]["input"]["results"][0]["category_scores"]
    [result] = screened.json()["results"]
    assert scores == {id: p["probability"] for id, p in result["policies"].items()}


async def test_09_a_friendly_200_is_available_and_a_blocked_prompt_reaches_no_model(
    front: Open,
) -> None:
    async with front() as f, f.client() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="m", messages=user("crude"))
        assert refused.value.code == "content_filter"
        assert f.script.requests == []
    async with front(profile={"on_block": "refusal"}) as f, f.client() as client:
        reply = await client.chat.completions.create(model="m", messages=user("crude"))
        assert reply.choices[0].message.refusal == "I can't help with that."
        assert f.script.requests == []


async def test_10_a_block_and_a_failing_guard_can_be_told_apart(
    front: Open, scorer: FakeScorer
) -> None:
    async with front() as f, f.client() as client:
        with pytest.raises(openai.BadRequestError) as blocked:
            await client.chat.completions.create(model="m", messages=user("crude"))
        scorer.failure = ScorerUnavailable("The scorer failed.")
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="m", messages=user("bread"))
    assert (blocked.value.code, failed.value.code) == ("content_filter", "moderation_unavailable")


@pytest.mark.parametrize("failure", [ScorerUnavailable("It failed."), Overloaded(1)])
@pytest.mark.parametrize("stream", [False, True])
async def test_11_each_direction_fails_open_or_closed(
    front: Open, scorer: FakeScorer, failure: Exception, stream: bool
) -> None:
    scorer.failure = failure
    body = streamed("kind") if stream else whole("kind")
    for prompt, response in (("open", "closed"), ("closed", "open"), ("open", "open")):
        both = {"prompt": prompt, "response": response}
        async with front(body, profile={"on_failure": both}) as f:
            status = (await f.ask(stream=stream)).status_code
            assert (status == 200) == (both == {"prompt": "open", "response": "open"})
            assert bool(f.script.requests) == (prompt == "open")


async def test_12_monitoring_blocks_nothing_and_counts_would_blocks(front: Open) -> None:
    for stream in (False, True):
        body = streamed(CRUDE) if stream else whole(CRUDE)
        async with front(body, profile={"mode": "monitor"}) as f:
            reply = await f.ask("crude", stream=stream)
            assert reply.status_code == 200
            if stream:
                assert data_of(reply.text) == data_of(b"".join(body).decode())
            else:
                assert reply.json() == body
            for direction in ("prompt", "response"):
                labels = {"policy": "test/threat", "direction": direction}
                count = f.gateway.metric(
                    "shieldgate_verdicts_total", result="would_block", **labels
                )
                assert count == 1


async def test_13_the_prompt_check_runs_beside_the_model_call(
    front: Open, scorer: FakeScorer
) -> None:
    scorer.released.clear()
    async with front(profile={"prompt_check": "parallel"}) as f:
        asking = asyncio.create_task(f.ask())
        await asyncio.wait_for(f.script.asked.wait(), 5)
        assert not asking.done()
        scorer.released.set()
        assert (await asking).status_code == 200


class KindEngine(LengthEngine):
    """Finds nothing in any text; `asked` has the number of policies of each piece."""

    asked: list[int]

    def forward(self, work: Sequence[Piece]) -> list[list[float]]:
        self.asked = [piece.policies for piece in work]
        super().forward(work)
        return [[-6.0] * piece.policies for piece in work]


def loading(scorer: Scorer) -> LoadingScorer:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Scorer]:
        yield scorer

    return LoadingScorer(opened)


async def test_14_policies_run_together_under_one_deadline(scorer: FakeScorer) -> None:
    """In the composition that is served: one pass has them all, and one time-out ends them all."""
    engine = KindEngine()
    both = ("test/threat", "test/spam")

    def failed(f: Front, action: str) -> list[float | None]:
        labels = {"direction": "prompt", "result": action}
        metric = "shieldgate_verdicts_total"
        return [f.gateway.metric(metric, policy=id, **labels) for id in both]

    async with Batched(engine, max_batch_tokens=1000, max_waiting=10) as batched:
        guarded = Resilient(batched, seconds=0.5)
        whole_guard = Cached(guarded, secret=b"0" * 16, max_entries=10)
        for on_failure, status in (("closed", 503), ("open", 200)):
            fails = {"prompt": on_failure, "response": "closed"}
            profile = {"policies": both, "on_failure": fails}
            async with opening(scorer)(profile=profile, loading=loading(whole_guard)) as f:
                assert (await f.ask(f"kind-{on_failure}")).status_code == 200
                assert engine.asked == [2]
                passes = len(engine.batches)
                f.script.asked.clear()
                with engine.held():
                    asking = asyncio.create_task(f.ask(f"slow-{on_failure}"))
                    if on_failure == "open":
                        await asyncio.wait_for(f.script.asked.wait(), 5)
                        engine.released.set()
                    assert (await asking).status_code == status
                assert len(engine.batches) == passes + (2 if status == 200 else 1)
                assert failed(f, f"failed_{on_failure}") == [1, 1]


async def test_15_concurrent_streams_never_mix(front: Open) -> None:
    """200 at once, each with a secret word of its own, some of them blocked."""
    async with front([]) as f:

        def says(word: str) -> str:
            return f"the word is {word}, nothing else" + ", crude" * word.startswith("barred")

        f.script.reply = lambda request: streamed(  # type: ignore[method-assign]
            says(request["messages"][0]["content"])
        )

        async def ask(n: int) -> None:
            word = f"{'secret' if n % 4 else 'barred'}-{n * 7919}"
            events = await f.stream(word)
            if n % 4:
                assert text_of(events) == says(word)
            else:
                assert events[-3]["choices"][0]["finish_reason"] == "content_filter"
                assert says(word).startswith(text_of(events))
                assert "crude" not in text_of(events)

        await asyncio.gather(*(ask(n) for n in range(200)))


async def test_16_a_block_or_a_disconnect_ends_the_call_to_the_model(front: Open) -> None:
    never = asyncio.Event()
    async with front([delta(CRUDE), never], profile=PICKY) as f:
        await f.stream()
        await asyncio.wait_for(f.script.left.wait(), 5)
    async with front([delta("kind"), never], profile=PICKY) as f:
        async with f.streaming() as reply:
            await anext(reply.aiter_text())
        await asyncio.wait_for(f.script.left.wait(), 5)


async def test_17_verdicts_are_kept_under_the_policys_text_and_the_models_revision(
    scorer: FakeScorer,
) -> None:
    cached = Cached(scorer, secret=b"0" * 16, max_entries=100)
    policies = FixedPolicies(small_book())

    async def blocks(f: Front) -> tuple[bool, int]:
        before = len(judged(scorer, answers=False))
        status = (await f.ask("so crude")).status_code
        return status == 400, len(judged(scorer, answers=False)) - before

    def edited(**changes: Any) -> PolicyBook:
        book = policies.current
        threat = replace(book.policies["test/threat"], **changes)
        return replace(book, policies={**book.policies, threat.id: threat})

    async with opening(scorer)(policies=policies, loading=loading(cached)) as f:
        assert await blocks(f) == (True, 1)
        assert await blocks(f) == (True, 0), "it is known"
        policies.current = edited(thresholds={"prompt": 0.99, "response": 0.99})
        assert await blocks(f) == (False, 0), "a threshold changes the verdict, not the score"
        policies.current = edited(guidelines={"prompt": "No rye.", "response": "No rye."})
        assert await blocks(f) == (False, 1), "another text is another question"
        cached.identity = replace(cached.identity, weights="1")
        assert await blocks(f) == (False, 1), "other weights are another judge"


async def test_18_callers_cannot_weaken_what_the_operator_demands(front: Open) -> None:
    weak = {"model": "monitor", "policy": {"input": {"mode": "score"}, "output": None}}
    for moderation in (weak, {"model": "open"}, {"model": "monitor"}):
        async with front(whole(CRUDE)) as f:
            assert (await f.ask("crude", moderation=moderation)).status_code == 400
            reply = await f.answer(moderation=moderation)
            assert reply["choices"][0]["finish_reason"] == "content_filter"
            assert "moderation" not in f.script.requests[-1]["body"]


async def test_19_policies_change_at_once_on_every_server_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers follow the same files; what is under way ends under the book it began with."""
    directory = shutil.copytree(shipped_policies(), tmp_path / "policies")
    file, hate = directory / "profiles.yaml", "shieldgemma/hate"
    scorer = FakeScorer({("crude", hate): -0.3})  # a probability of 0.43
    books = [ToldBook(directory), ToldBook(directory)]
    monkeypatch.setenv("SHIELDGATE_PROFILE", "strict")
    asking = {"model": "m", "messages": user("crude")}

    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(Script(whole("crude too"))))
        clients = []
        for book in books:
            served = gateway(scorer, upstream=Upstream(url), policies=book)
            clients.append((await stack.enter_async_context(served)).client)

        async def statuses() -> list[int]:
            replies = [await client.post(CHAT, json=asking) for client in clients]
            return [reply.status_code for reply in replies]

        async def change(old: str, new: str, holds: Callable[[ToldBook], bool]) -> None:
            edit(file, f"{hate}: {old}", f"{hate}: {new}")
            for book in books:
                await book.until(lambda book=book: holds(book))

        assert await statuses() == [400, 400]
        scorer.released.clear()
        scorer.entered.clear()
        begun = asyncio.create_task(clients[0].post(CHAT, json=asking))
        await scorer.entered.wait()
        await change("0.3", "0.8", lambda book: strict(book) == 0.8)
        scorer.released.set()
        assert (await begun).status_code == 400
        assert await statuses() == [200, 200]
        await change("0.8", "8", lambda book: book.last_error is not None)
        assert await statuses() == [200, 200]
        await change("8", "0.4", lambda book: book.last_error is None)
        assert await statuses() == [400, 400]


async def test_20_no_text_and_no_key_in_logs_or_metrics(
    front: Open, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "shieldgate")
    async with front(whole(f"canary-answer {CRUDE}")) as f, f.client() as client:
        with capture_logs() as lines:
            ask = client.chat.completions.create
            await ask(model="canary-model", messages=user("canary-prompt"))
            f.script.status = 400
            f.script.body = {"error": {"message": "canary-upstream"}}
            with pytest.raises(openai.BadRequestError):
                await ask(model="m", messages=user("canary-prompt"))
        assert f.script.requests[0]["headers"]["authorization"] == "Bearer caller"
        metrics = (await f.gateway.client.get("/metrics")).text
    assert [line["status"] for line in lines if line["event"] == "request"] == [200, 400]
    said = repr(lines) + caplog.text + "".join(capsys.readouterr()) + metrics
    assert "canary" not in said
    assert "Bearer" not in said


async def test_an_answer_that_the_caller_has_begun_is_judged_from_there(front: Open) -> None:
    """A model may be asked to go on with the last message; what straddles the seam is seen."""
    messages = [*user("bread"), {"role": "assistant", "content": "all is well, then cr"}]
    for stream in (False, True):
        async with front(streamed("ude") if stream else whole("ude")) as f:
            reply = await f.ask(messages=messages, stream=stream)
            assert "content_filter" in reply.text
            assert "ude" not in reply.text
            assert len(f.script.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_words_of_an_error_are_judged_like_an_answer(
    front: Open, scorer: FakeScorer, stream: bool
) -> None:
    """Servers quote what the model wrote when they can't make sense of it."""
    async with front() as f:
        f.script.status = 500
        for message, told in (("no parse: kind", True), ("no parse: crude", False)):
            f.script.body = {"error": {"message": message, "code": "parse", "param": "x"}}
            reply = await f.ask(stream=stream)
            assert reply.status_code == 500
            assert reply.headers["x-upstream-request-id"] == "up-1"
            assert (message in reply.text) == told
            assert ("parse" in reply.text) == told
        scorer.failure = None
        scorer.margins["no parse", "test/threat"] = 3.0
        f.script.body["error"]["message"] = "no parse: kind"
        assert "no parse" not in (await f.ask(stream=stream)).text


async def test_words_of_an_error_in_mid_stream_are_judged_too(front: Open) -> None:
    gate = asyncio.Event()
    broken = sse({"error": {"message": "crude", "code": "so_crude"}})
    async with front([delta("kind"), gate, broken], profile=PICKY) as f, f.streaming() as reply:
        raw = ""
        async for text in reply.aiter_text():
            raw += text
            gate.set()
    assert text_of(data_of(raw)[:-1]) == "kind"
    assert data_of(raw)[-1]["error"]["code"] == "upstream_error"
    assert "crude" not in raw


class Loaf(BaseModel):
    name: str


async def test_the_official_client_understands_every_ending(front: Open) -> None:
    """`.parse()` and `.stream()` raise on a block; each loop ends; nothing needs a new client."""
    async with front(whole('{"name": "rye"}')) as f, f.client() as client:
        create = client.chat.completions
        parsed = await create.parse(model="m", messages=user("x"), response_format=Loaf)
        assert parsed.choices[0].message.parsed == Loaf(name="rye")
        f.script.body = whole(CRUDE)
        with pytest.raises(openai.ContentFilterFinishReasonError):
            await create.parse(model="m", messages=user("x"), response_format=Loaf)
        f.script.body = streamed("kind words")
        async with create.stream(model="m", messages=user("x")) as stream:
            assert (await stream.get_final_completion()).choices[0].message.content == "kind words"
        f.script.body = streamed(CRUDE)
        with pytest.raises(openai.ContentFilterFinishReasonError):
            async with create.stream(model="m", messages=user("x"), response_format=Loaf) as stream:
                await stream.until_done()
        with pytest.raises(openai.ContentFilterFinishReasonError) as blocked:
            async with create.stream(model="m", messages=user("x")) as stream:
                await stream.get_final_completion()
        message = blocked.value.completion.choices[0].message
        assert (message.role, message.content) == ("assistant", None)
        assert message.refusal == "I can't help with that."
        f.script.body = [delta("x" * 200), RuntimeError("dies")]
        with pytest.raises(openai.APIError):
            async for _ in await create.create(model="m", messages=user("x"), stream=True):
                pass


async def test_the_official_client_works_without_async_too(front: Open) -> None:
    """Chunks, `.parse()` and `.stream()`, allowed and blocked."""
    async with front(streamed("kind words")) as f:
        client = openai.OpenAI(base_url=f"{f.gateway.url}/v1", api_key="k", max_retries=0)
        chat, asked = client.chat.completions, {"model": "m", "messages": user("x")}

        def chunks() -> str:
            found: Sequence[Any] = list(chat.create(**asked, stream=True))
            return "".join(c.delta.content or "" for chunk in found for c in chunk.choices)

        def parsed(**more: Any) -> Loaf | None:
            reply = chat.parse(**{**asked, **more}, response_format=Loaf)
            return reply.choices[0].message.parsed

        def held(**more: Any) -> str | None:
            with chat.stream(**{**asked, **more}) as stream:
                said = "".join(event.delta for event in stream if event.type == "content.delta")
                assert "crude" not in said
                return stream.get_final_completion().choices[0].message.content

        def use() -> None:
            with client:
                assert chunks() == "kind words"
                assert held() == held(moderation={"model": "strict"}) == "kind words"
                f.script.body = streamed('{"name": "rye"}')
                assert held(response_format=Loaf) == '{"name": "rye"}'
                f.script.body = streamed(CRUDE)
                assert "crude" not in chunks()
                with pytest.raises(openai.ContentFilterFinishReasonError):
                    held()
                f.script.body = whole('{"name": "rye"}')
                assert parsed() == Loaf(name="rye")
                f.script.body = whole(CRUDE)
                with pytest.raises(openai.ContentFilterFinishReasonError):
                    parsed()
                for ask in (parsed, held):
                    with pytest.raises(openai.BadRequestError) as refused:
                        ask(messages=user("crude"))
                    assert refused.value.code == "content_filter"

        await asyncio.to_thread(use)
