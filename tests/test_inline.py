"""Inline moderation: a caller may ask for more screening than the profile demands, never less."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from fakes import FakeScorer, small_book
from front import Open
from openai.types.chat import ChatCompletion
from upstream import streamed, text_of, whole

from shieldgate.dialects.openai import added_screening
from shieldgate.errors import ScorerUnavailable
from shieldgate.openai.chat import InlineModeration
from shieldgate.policy import Passages, Profile, Streaming, decide, screening_rules
from shieldgate.types import DIRECTIONS, Score


def asking(model: str, input: str | None = None, output: str | None = None) -> dict[str, Any]:
    sides = {"input": input, "output": output}
    policy = {side: {"mode": mode} if mode else None for side, mode in sides.items()}
    return {"model": model, "policy": policy}


CRUDE = "all is well, then it gets crude"
MODES = ("score", "block", None)


@pytest.mark.parametrize("base", ["default", "strict", "open", "monitor"])
@pytest.mark.parametrize("asked", ["default", "strict", "open", "monitor", "unknown"])
def test_whatever_is_asked_no_text_passes_that_the_profile_would_stop(
    base: str, asked: str
) -> None:
    book = small_book()
    profile = book.profiles[base]
    for modes in product(MODES, MODES):
        inline = InlineModeration.model_validate(asking(asked, *modes))
        found = screening_rules(profile, added_screening(inline), book, "fake@0")
        for direction, margin in product(DIRECTIONS, (-6.0, -2.0, -0.3, 0.0, 3.0)):
            joined = found.rules[direction].profile
            assert set(joined.policies) >= set(profile.policies)

            def action(of: Profile, margin: float = margin, direction: Any = direction) -> Any:
                scores = [(book.policies[id], Score(margin)) for id in of.policies]
                return decide(of, scores, direction, "fake@0").action

            if action(profile).stops:
                assert action(joined).stops
            if profile.mode == "enforce" and profile.on_failure[direction] == "closed":
                assert joined.on_failure[direction] == "closed"


def bases() -> list[Profile]:
    """Profiles that differ in all that stops text."""
    held = Streaming("hold", growth=1.5, most=300)
    streams = [Streaming("async"), Streaming("full", first=9), held]
    words = product(
        ("enforce", "monitor"), ("refuse", "pass"), ("before", "parallel"), ("open", "closed")
    )
    return [
        Profile(
            f"p{n}",
            ("test/threat",),
            mode=mode,
            unscreenable=unscreenable,
            references=("resolve", "refuse")[n % 5 == 1],
            prompt_check=check,
            on_failure=dict.fromkeys(DIRECTIONS, on_failure),
            history=("latest", "window", "all")[n % 3],
            window=2 + n % 4,
            instructions=("judge", "trust")[n % 2],
            normalise=n % 3 == 0,
            unsupported_language=("warn", "refuse")[n % 3 == 2],
            passages=(None, Passages(200, 1.0), Passages(300, 0.5, ("a@*",)))[n % 3],
            streaming=streams[n % 3],
            on_block=("error", "refusal")[n % 2],
            refusal=f"no {n}",
        )
        for n, (mode, unscreenable, check, on_failure) in enumerate(words)
    ]


def test_blocking_takes_the_stricter_word_of_those_who_enforce() -> None:
    held = ("async", "hold", "full")
    book = replace(small_book(), profiles={p.name: p for p in bases()})
    for base, named in product(book.profiles.values(), repeat=2):
        asked = InlineModeration.model_validate(asking(named.name, "block", "block"))
        found = screening_rules(base, added_screening(asked), book, "fake@0")
        for direction in DIRECTIONS:
            joined = found.rules[direction].profile
            assert joined.mode == "enforce"
            for profile in [named] + [base] * (base.mode == "enforce"):
                assert joined.unscreenable == "refuse" or profile.unscreenable == "pass"
                assert joined.references == "refuse" or profile.references == "resolve"
                assert joined.normalise or not profile.normalise
                assert (joined.unsupported_language == "refuse") or (
                    profile.unsupported_language == "warn"
                )
                if cut := profile.passages:
                    assert joined.passages is not None
                    assert joined.passages.size <= cut.size
                    assert joined.passages.handicap <= cut.handicap
                    assert {*joined.passages.scorers} >= {*cut.scorers}
                assert joined.prompt_check == "before" or profile.prompt_check == "parallel"
                assert (joined.on_failure[direction] == "closed") or (
                    profile.on_failure[direction] == "open"
                )
                assert held.index(joined.streaming.mode) >= held.index(profile.streaming.mode)
                for covered in (0, 50, 500, 5000):
                    due = joined.streaming.next_check(covered)
                    assert due <= profile.streaming.next_check(covered)
            assert (joined.on_block, joined.refusal) == (base.on_block, base.refusal)
        assert list(found.plans) == [base, named]


@pytest.mark.parametrize("input", ["score", None])
def test_scores_change_nothing_that_stops_text(input: str | None) -> None:
    book = replace(small_book(), profiles={p.name: p for p in bases()})
    for base, named in product(book.profiles.values(), repeat=2):
        asked = InlineModeration.model_validate(asking(named.name, input, input))
        found = screening_rules(base, added_screening(asked), book, "fake@0")
        for joined in (rules.profile for rules in found.rules.values()):
            same = {"policies": base.policies, "thresholds": {}, "monitored": frozenset()}
            assert replace(joined, **same) == base
        assert list(found.plans) == [base]


async def test_asked_to_block_it_judges_what_either_profile_judges(
    front: Open, scorer: FakeScorer
) -> None:
    """`strict` of the small book looks back by three user turns, and at instructions."""
    messages = [
        {"role": "system", "content": "be crude"},
        {"role": "user", "content": "make a"},
        {"role": "assistant", "content": "what?"},
        {"role": "user", "content": "bomb"},
    ]
    lax = {"history": "latest", "instructions": "trust"}
    async with front(profile=lax) as f:
        assert (await f.ask(messages=messages)).status_code == 200
        scored = asking("strict", "score", "block")
        assert (await f.ask(messages=messages, moderation=scored)).status_code == 200
        blocking = asking("strict", "block", None)
        assert (await f.ask(messages=messages, moderation=blocking)).status_code == 400
        assert (await f.ask(messages=messages[1:], moderation=blocking)).status_code == 200
        scorer.margins["make a\nbomb", "test/threat"] = 3.0
        assert (await f.ask(messages=messages[1:])).status_code == 200
        assert (await f.ask(messages=messages[1:], moderation=blocking)).status_code == 400


async def test_asked_to_block_it_holds_what_the_profile_would_let_leave(front: Open) -> None:
    async with front(streamed(CRUDE), profile={"streaming": Streaming("async")}) as f:
        assert "crude" in text_of(await f.stream())
        assert "crude" not in text_of(await f.stream(moderation=asking("strict", None, "block")))


def test_scoring_never_blocks_what_the_profile_lets_pass() -> None:
    """`strict` has a lower threshold and one policy more; asked for as scores, it only reports."""
    book = small_book()
    base = book.profiles["default"]
    inline = InlineModeration.model_validate(asking("strict", "score", "score"))
    joined = screening_rules(base, added_screening(inline), book, "fake@0").rules["prompt"].profile
    scores = [(book.policies[id], Score(-1.0)) for id in joined.policies]
    assert not decide(joined, scores, "prompt", "fake@0").violated
    scores = [(book.policies["test/threat"], Score(-6)), (book.policies["test/spam"], Score(3))]
    verdict = decide(joined, scores, "prompt", "fake@0")
    assert verdict.violated == ("test/spam",)
    assert verdict.action == "would_block"


def test_blocking_takes_the_lower_of_two_thresholds() -> None:
    book = small_book()
    inline = InlineModeration.model_validate(asking("strict", "block", None))
    found = screening_rules(book.profiles["default"], added_screening(inline), book, "fake@0")
    thresholds = found.rules["prompt"].profile.thresholds
    assert thresholds["test/threat", "prompt"] == 0.1
    assert thresholds["test/spam", "prompt"] == 0.5
    assert found.rules["response"].profile == book.profiles["default"]
    lax = replace(book.profiles["strict"], thresholds={("test/threat", "prompt"): 0.9})
    book = replace(book, profiles={**book.profiles, "lax": lax})
    inline = InlineModeration.model_validate(asking("lax", "block", None))
    found = screening_rules(book.profiles["default"], added_screening(inline), book, "fake@0")
    assert found.rules["prompt"].profile.thresholds["test/threat", "prompt"] == 0.5


async def test_the_official_client_reads_scores_as_its_own_types(front: Open) -> None:
    async with front(whole("a kind answer, buy it")) as f, f.client() as client:
        reply = await client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "bread"}],
            moderation={"model": "strict"},
        )
        assert "moderation" not in f.script.requests[0]["body"]
    assert isinstance(reply, ChatCompletion)
    assert reply.choices[0].message.content == "a kind answer, buy it"
    assert reply.moderation is not None
    ours, theirs = reply.moderation.input, reply.moderation.output
    assert ours.type == "moderation_results"
    assert theirs.type == "moderation_results"
    assert not ours.results[0].flagged
    [found] = theirs.results
    assert found.flagged
    assert found.model == "fake@0"
    assert found.categories == {"test/threat": False, "test/spam": True}
    assert found.category_scores["test/spam"] == pytest.approx(0.8807970779778823)
    assert found.category_applied_input_types["test/spam"] == ["text"]


async def test_asked_to_block_it_blocks_more_than_the_profile(front: Open) -> None:
    async with front(whole("so buy it"), profile={"mode": "monitor"}) as f:
        assert (await f.answer("crude"))["choices"] == f.script.body["choices"]
        blocked = await f.ask("crude", moderation=asking("strict", "block", None))
        assert blocked.status_code == 400
        reply = await f.answer(moderation=asking("strict", None, "block"))
        assert reply["choices"][0]["finish_reason"] == "content_filter"


async def test_in_a_stream_the_verdict_rides_on_a_chunk_without_choices(front: Open) -> None:
    async with front(streamed("kind")) as f, f.client() as client:
        stream = await client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "bread"}],
            stream=True,
            moderation={"model": "omni-moderation-latest"},
        )
        chunks = [chunk async for chunk in stream]
    last = chunks[-1]
    assert last.choices == []
    assert last.moderation is not None
    assert last.moderation.output.type == "moderation_results"
    assert not last.moderation.output.results[0].flagged


async def test_a_guard_that_did_not_run_is_an_error_and_no_verdict(
    front: Open, scorer: FakeScorer
) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    opens = {"on_failure": {"prompt": "open", "response": "open"}}
    async with front(profile=opens) as f, f.client() as client:
        reply = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "bread"}], moderation={"model": "x"}
        )
        assert reply.moderation is not None
        assert reply.moderation.output.type == "error"
        assert reply.moderation.output.code == "moderation_unavailable"


async def test_a_block_is_told_although_the_guard_failed_on_another_choice(
    front: Open, scorer: FakeScorer
) -> None:
    class Fails(FakeScorer):
        async def score(self, exchange: Any, policies: Any) -> Any:
            if exchange.response == "kind":
                raise ScorerUnavailable("The scorer failed.")
            return await super().score(exchange, policies)

    scorer.__class__ = Fails
    opens = {"on_failure": {"prompt": "open", "response": "open"}}
    async with front(whole("kind", "crude"), profile=opens) as f:
        reply = await f.answer(n=2)
    assert [c["finish_reason"] for c in reply["choices"]] == ["stop", "content_filter"]
    results = reply["moderation"]["output"]["results"]
    assert [r["categories"] for r in results] == [{}, {"test/threat": True}]


@pytest.mark.parametrize(
    "moderation",
    [
        {},
        {"model": 5},
        {"model": "m", "policy": {"input": {"mode": "off"}}},
        {"model": "m", "x": 1},
    ],
)
async def test_a_field_that_is_not_understood_is_refused(front: Open, moderation: Any) -> None:
    async with front() as f:
        reply = await f.ask(moderation=moderation)
        assert reply.status_code == 400
        assert f.script.requests == []


@pytest.mark.parametrize("name", ["stict", "Strict", "defualt"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_name_that_is_nearly_a_profiles_is_refused(
    front: Open, name: str, streamed: bool
) -> None:
    async with front() as f:
        reply = await f.ask(moderation={"model": name}, stream=streamed)
        assert f.script.requests == []
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unknown_name")


@pytest.mark.parametrize(
    ("asked", "profile"),
    [
        ({}, "default"),
        ({"moderation": {"model": "omni-moderation-latest"}}, "default"),
        ({"moderation": {"model": "default"}}, "default"),
        ({"moderation": {"model": "strict"}}, "default+strict"),
        ({"stream": True}, "default"),
    ],
)
@pytest.mark.parametrize("prompt", ["bread", "crude"])
async def test_a_reply_says_which_profiles_judged(
    front: Open, asked: dict[str, Any], profile: str, prompt: str
) -> None:
    async with front(streamed("kind") if "stream" in asked else None) as f:
        reply = await f.ask(prompt, **asked)
    assert reply.status_code == (200 if prompt == "bread" else 400)
    assert reply.headers["x-shieldgate-profile"] == profile
