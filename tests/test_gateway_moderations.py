"""POST /v1/moderations, by the official client against a real server."""

import asyncio
import math

import openai
import pytest
from fakes import FakeScorer
from serving import Gateway, gateway

from shieldgate.errors import Overloaded, ScorerUnavailable
from shieldgate.openai.categories import CATEGORIES


def client(served: Gateway, **options: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, **options)


async def test_a_string_gives_one_result_with_all_categories_and_our_policies(
    served: Gateway,
) -> None:
    async with client(served) as api:
        reply = await api.moderations.create(input="a crude text", model="omni-moderation-latest")
    assert reply.id.startswith("modr-")
    assert reply.model == "fake@0"
    [result] = reply.results
    categories = result.categories.model_dump(by_alias=True)
    scores = result.category_scores.model_dump(by_alias=True)
    applied = result.category_applied_input_types.model_dump(by_alias=True)
    keys = {*CATEGORIES, "test/threat"}
    assert categories.keys() == scores.keys() == applied.keys() == keys
    assert len(CATEGORIES) == 13
    assert result.flagged
    spoken_for = {"harassment", "harassment/threatening", "test/threat"}
    assert {k for k, flag in categories.items() if flag} == spoken_for
    assert {k for k, types in applied.items() if types == ["text"]} == spoken_for
    assert all(types == [] for k, types in applied.items() if k not in spoken_for)
    probability = 1 / (1 + math.exp(-3))
    assert all(scores[k] == pytest.approx(probability if k in spoken_for else 0.0) for k in keys)
    assert (result.categories.model_extra or {})["test/threat"] is True


async def test_a_list_of_strings_gives_one_result_each_in_order(served: Gateway) -> None:
    async with client(served) as api:
        reply = await api.moderations.create(input=["bread", "crude", ""])
    assert [r.flagged for r in reply.results] == [False, True, False]


async def test_a_list_of_parts_is_one_input(served: Gateway, scorer: FakeScorer) -> None:
    parts = [{"type": "text", "text": "bread"}, {"type": "text", "text": "crude"}]
    async with client(served) as api:
        reply = await api.moderations.create(input=parts)
    assert [r.flagged for r in reply.results] == [True]
    assert scorer.calls[0][0].prompt == "bread\ncrude"


async def test_an_image_is_refused(served: Gateway) -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    async with client(served) as api:
        with pytest.raises(openai.BadRequestError, match="Images can't be judged") as refused:
            await api.moderations.create(input=parts)
    assert refused.value.param == "input"


async def test_the_synchronous_client_works_too(served: Gateway) -> None:
    def call() -> bool:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as api:
            return api.moderations.create(input="a crude text").results[0].flagged

    assert await asyncio.to_thread(call)


NEAR = [
    "stict",
    "Strict",
    "STRICT",
    " strict",
    "strikt",
    "srtict",
    "strict-v2",
    "defualt",
    "monitr",
]


@pytest.mark.parametrize("name", NEAR)
async def test_a_name_that_is_nearly_a_profiles_is_refused_with_it(
    served: Gateway, scorer: FakeScorer, name: str
) -> None:
    reply = await served.client.post("/v1/moderations", json={"input": "x", "model": name})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "unknown_name"
    assert "did you mean '" in reply.json()["error"]["message"]
    assert scorer.calls == []


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("omni-moderation-latest", "default"),
        ("omni-moderation-2024-09-26", "default"),
        ("text-moderation-stable", "default"),
        ("fake@0", "default"),
        ("gpt-4o-mini", "default"),
        ("llama-guard-3", "default"),
        ("", "default"),
        (None, "default"),
        ("strict", "strict"),
        ("monitor", "monitor"),
    ],
)
async def test_the_reply_says_which_profile_judged(
    served: Gateway, name: str | None, profile: str
) -> None:
    reply = await served.client.post("/v1/moderations", json={"input": "x", "model": name})
    assert (reply.status_code, reply.headers["x-shieldgate-profile"]) == (200, profile)
    screened = await served.client.post("/v1/screen", json={"prompt": "x", "profile": profile})
    assert screened.headers["x-shieldgate-profile"] == screened.json()["profile"] == profile


async def test_model_selects_a_profile_and_any_other_name_the_default(
    served: Gateway, scorer: FakeScorer
) -> None:
    async with client(served) as api:
        strict = await api.moderations.create(input="buy bread", model="strict")
        other = await api.moderations.create(input="buy bread", model="text-moderation-stable")
    assert strict.results[0].flagged
    assert not other.results[0].flagged
    assert [policies for _, policies in scorer.calls] == [
        ("test/threat", "test/spam"),
        ("test/threat",),
    ]


async def test_a_monitoring_profile_still_flags(served: Gateway) -> None:
    async with client(served) as api:
        reply = await api.moderations.create(input="crude", model="monitor")
    assert reply.results[0].flagged


async def test_a_text_that_was_not_judged_is_never_called_clean(
    served: Gateway, scorer: FakeScorer
) -> None:
    """Not even under a profile that fails open: the reply has no word for it."""
    scorer.failure = ScorerUnavailable("The scorer failed.")
    async with client(served) as api:
        for profile in ("default", "open", "monitor"):
            with pytest.raises(openai.InternalServerError) as failed:
                await api.moderations.create(input="bread", model=profile)
            assert failed.value.status_code == 503
            assert failed.value.code == "moderation_unavailable"
            assert int(failed.value.response.headers["retry-after"]) >= 1
    labels = {"policy": "test/threat", "direction": "prompt", "result": "failed_closed"}
    assert served.metric("shieldgate_verdicts_total", **labels) == 3


async def test_a_full_queue_is_a_429_that_says_when_to_return(
    served: Gateway, scorer: FakeScorer
) -> None:
    scorer.failure = Overloaded(6.2)
    async with client(served) as api:
        with pytest.raises(openai.RateLimitError) as refused:
            await api.moderations.create(input="bread")
    assert refused.value.response.headers["retry-after"] == "7"


async def test_too_many_inputs_are_refused(scorer: FakeScorer) -> None:
    async with gateway(scorer, max_inputs=2) as served, client(served) as api:
        assert len((await api.moderations.create(input=["a", "b"])).results) == 2
        with pytest.raises(openai.BadRequestError, match="at most 2 inputs"):
            await api.moderations.create(input=["a", "b", "c"])


async def test_the_inputs_of_a_request_are_judged_concurrently(scorer: FakeScorer) -> None:
    scorer.released.clear()
    async with gateway(scorer) as served, client(served) as api:
        reply = asyncio.create_task(api.moderations.create(input=["a", "b"]))
        await scorer.entered.wait()
        # A health check goes through the whole server, so both have had their turn by then.
        assert (await served.client.get("/healthz")).status_code == 200
        assert len(scorer.calls) == 2
        scorer.released.set()
        assert len((await reply).results) == 2


async def test_a_caller_who_hangs_up_frees_its_place(scorer: FakeScorer) -> None:
    scorer.released.clear()
    async with gateway(scorer) as served, client(served) as api:
        reply = asyncio.create_task(api.moderations.create(input="bread"))
        await scorer.entered.wait()
        reply.cancel()
        await asyncio.wait_for(scorer.left.wait(), 10)
        assert not scorer.released.is_set()
