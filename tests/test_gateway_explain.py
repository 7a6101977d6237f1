"""`explain` in POST /v1/screen: who may ask, what comes, and what of the text is logged."""

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeScorer
from serving import Gateway, gateway, read_where
from structlog.testing import capture_logs
from test_keys import SECRET, entry, written

from shieldgate.errors import ScorerUnavailable

TEXT = "You crude canary-fool."


async def ask(served: Gateway, status: int = 200, **body: Any) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {SECRET}"}
    reply = await served.client.post("/v1/screen", json={"explain": True} | body, headers=headers)
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def test_the_words_come_beside_the_verdict(served: Gateway) -> None:
    [result] = (await ask(served, prompt=TEXT))["results"]
    assert result["violated"] == ["test/threat"]
    assert result["explanation"]["error"] is None
    one = result["explanation"]["policies"]["test/threat"]
    assert {TEXT[w["start"] : w["end"]]: w["lost"] for w in one.pop("words")} == {
        "You": 0,
        "crude": 9,
        "canary-fool": 0,
    }
    assert one == {
        "start": 0,
        "end": len(TEXT),
        "reading": None,
        "margin": 3,
        "sentences": [],
        "tested": 1,
        "margin_without": -6,
        "margin_alone": 3,
    }
    [plain] = (await ask(served, prompt=TEXT, explain=False))["results"]
    assert "explanation" not in plain


async def test_a_verdict_is_counted_and_recorded_once(served: Gateway) -> None:
    with capture_logs() as logged:
        await ask(served, prompt="What is it?", response=TEXT)
    assert [line["event"] for line in logged].count("decision") == 1
    assert "canary" not in str(logged)


async def test_a_text_is_read_where_callers_take_turns(
    served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = read_where(monkeypatch)
    text = f"{TEXT} {'We bake a loaf of bread and share it. ' * 20}"
    assert (await ask(served, prompt=text))["results"][0]["explanation"]["policies"]
    assert len(where) > 1
    assert {name.rstrip("01") for name in where} == {"read_"}


async def test_it_is_a_right_of_the_key(scorer: FakeScorer, tmp_path: Path) -> None:
    async with gateway(scorer, keys=written(tmp_path, entry("web"))) as served:
        refused = (await ask(served, 403, prompt=TEXT))["error"]
        assert (refused["code"], "`explain: true`" in refused["message"]) == ("not_allowed", True)
        assert scorer.calls == []
        await ask(served, prompt=TEXT, explain=False)
    async with gateway(scorer, keys=written(tmp_path, entry("web", explain="true"))) as served:
        assert (await ask(served, prompt=TEXT))["results"][0]["explanation"]["policies"]


async def test_who_answers_anybody_explains_nothing(scorer: FakeScorer) -> None:
    async with gateway(scorer, keyless=True) as served:
        assert "--keyless" in (await ask(served, 403, prompt=TEXT))["error"]["message"]


async def test_one_exchange_is_explained_at_a_time(served: Gateway) -> None:
    texts = [{"prompt": TEXT}, {"prompt": "bread"}]
    error = (await ask(served, 400, exchanges=texts))["error"]
    assert (error["param"], error["message"]) == (
        "explain",
        "One exchange is explained at a time.",
    )
    assert (await ask(served, exchanges=texts[:1]))["results"][0]["explanation"]["policies"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_verdict_stands_where_its_explanation_fails(
    served: Gateway, scorer: FakeScorer, at_once: bool
) -> None:
    if at_once:
        scorer.failure = ScorerUnavailable("The scorer failed.")
        [result] = (await ask(served, prompt=TEXT, profile="open"))["results"]
        assert result["action"] == "failed_open"
        assert len(scorer.calls) == 1  # what fails is not asked again
    else:
        scorer.fails_on = "crude canary-fool."  # the first word left out
        [result] = (await ask(served, prompt=TEXT))["results"]
        assert result["action"] == "blocked"
    error = {"code": "moderation_unavailable", "message": "The scorer failed."}
    assert result["explanation"] == {"policies": {}, "error": error}
