"""Text in a language that the scorer is not said to know gets a warning, or is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes import FakeScorer, small_book
from front import opening
from ruamel.yaml import YAML
from serving import Gateway, gateway, read_where
from test_cli_score import score
from test_telemetry_audit import Records
from upstream import streamed, whole

from shieldgate import language
from shieldgate.errors import ConfigurationError
from shieldgate.given_settings import load
from shieldgate.language import unsupported_language
from shieldgate.moderation import judge
from shieldgate.scoring.cascade import both_languages
from shieldgate.scoring.languages import languages_of
from shieldgate.settings import ScoringSettings
from shieldgate.types import Action, Exchange, Verdict

TEXTS = YAML(typ="safe").load(
    (Path(__file__).parents[1] / "benchmarks/languages/texts.yaml").read_text("utf-8")
)
GERMAN = "Kannst du mir helfen, einen Brief an meinen Vermieter zu schreiben?"
ENGLISH = "How do I bake a loaf of bread without yeast?"


@pytest.mark.parametrize("code", TEXTS["languages"])
def test_other_languages_are_seen(code: str) -> None:
    found = [unsupported_language(text, ["en"]) for text in TEXTS["languages"][code]]
    assert found.count(code) >= 7
    known = {unsupported_language(text, ["en", code]) for text in TEXTS["languages"][code]}
    assert code not in known


@pytest.mark.parametrize("kind", TEXTS["english"])
def test_english_of_any_kind_is_not_taken_for_another_language(kind: str) -> None:
    found = {text: unsupported_language(text, ["en"]) for text in TEXTS["english"][kind]}
    wrong = {text for text, code in found.items() if code}
    # Nothing in these is English.
    assert wrong <= {"Søren Kierkegaard, Jürgen Habermas, José Saramago"}


@pytest.mark.parametrize("text", ["", " ", "\ud800", "\0", "ok", "😀" * 5000, "\u0301" * 9000])
def test_what_is_no_language_is_none(text: str) -> None:
    assert unsupported_language(text, ["en"]) is None


def knowing(*languages: str) -> FakeScorer:
    language.load()  # gateways wait for that before they are ready
    scorer = FakeScorer()
    scorer.identity = replace(scorer.identity, languages=languages)
    return scorer


async def judged(scorer: FakeScorer, exchange: Exchange, **profile: Any) -> Verdict:
    book = small_book(**profile)
    return await judge(scorer, exchange, book.rules(book.profile("default")))


async def test_languages_and_json_are_read_where_callers_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway(knowing("en")) as served:
        for name in ("unsupported_language", "whole_and_parts"):
            where = read_where(monkeypatch, name)
            await served.client.post("/v1/screen", json={"prompt": f"{ENGLISH} " * 20})
            assert {thread.rstrip("01") for thread in where} == {"read_"}


@pytest.mark.parametrize(
    ("scorer", "exchange", "warned_of"),
    [
        (knowing("en"), Exchange(GERMAN), "de"),
        (knowing("en"), Exchange(ENGLISH), None),
        (knowing("en", "de"), Exchange(GERMAN), None),
        (FakeScorer(), Exchange(GERMAN), None),
        (knowing("en"), Exchange(GERMAN, ENGLISH), None),
        (knowing("en"), Exchange(ENGLISH, GERMAN), "de"),
        (knowing("en"), Exchange(f"{ENGLISH} " * 9 + GERMAN + f" {ENGLISH}" * 9), "de"),
        (knowing("en"), Exchange(f"{ENGLISH}\n" * 900 + f"{GERMAN}\n" * 900), "de"),
    ],
)
async def test_what_is_judged_is_warned_of_where_the_scorer_is_said_to_know_others(
    scorer: FakeScorer, exchange: Exchange, warned_of: str | None
) -> None:
    verdict = await judged(scorer, exchange)
    assert (verdict.unsupported_language, verdict.action) == (warned_of, Action.ALLOWED)


async def test_a_profile_that_refuses_stops_such_text_unjudged_unless_it_only_monitors() -> None:
    scorer = knowing("en")
    refusing = {"unsupported_language": "refuse"}
    verdict = await judged(scorer, Exchange(GERMAN), **refusing)
    assert (verdict.action, verdict.unsupported_language) == (Action.FAILED_CLOSED, "de")
    assert scorer.calls == []
    assert (await judged(scorer, Exchange(ENGLISH), **refusing)).action is Action.ALLOWED
    verdict = await judged(scorer, Exchange(GERMAN), mode="monitor", **refusing)
    assert (verdict.action, verdict.unsupported_language) == (Action.ALLOWED, "de")


async def test_the_warning_stands_in_replies_records_and_metrics() -> None:
    records = Records()
    async with gateway(knowing("en"), audit=records) as served:
        body = {"exchanges": [{"prompt": GERMAN}, {"prompt": ENGLISH}]}
        reply = (await served.client.post("/v1/screen", json=body)).json()
        assert [r["unsupported_language"] for r in reply["results"]] == ["de", None]
        assert reply["scorer"]["languages"] == ["en"]
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
            german, english = (await client.moderations.create(input=[GERMAN, ENGLISH])).results
        assert german.model_extra == {"unsupported_language": "de"}
        assert english.model_extra == {}
        page = (await served.client.get("/metrics")).text
    assert 'shieldgate_unsupported_language_total{direction="prompt",language="de"} 2.0' in page
    assert [r["unsupported_language"] for r in records.written] == ["de", None] * 2


async def test_the_warning_stands_in_the_moderation_of_a_chat() -> None:
    asked = {"model": "default", "policy": {"input": None, "output": {"mode": "score"}}}
    async with opening(knowing("en"))(whole(GERMAN)) as f:
        reply = await f.answer(moderation=asked)
    [result] = reply["moderation"]["output"]["results"]
    assert result["unsupported_language"] == "de"


async def error(served: Gateway, path: str, body: dict[str, Any]) -> str:
    reply = await served.client.post(path, json=body)
    assert reply.status_code == 400, reply.text
    found: dict[str, Any] = reply.json()["error"]
    assert "(de)" in found["message"]
    code: str = found["code"]
    return code


async def test_what_is_refused_is_a_400_and_on_record() -> None:
    records = Records()
    refusing = {"unsupported_language": "refuse"}
    async with gateway(knowing("en"), audit=records, profile=refusing) as served:
        for path, body in (
            ("/v1/screen", {"prompt": GERMAN}),
            ("/v1/screen", {"prompt": ENGLISH, "response": GERMAN}),
            ("/v1/moderations", {"input": GERMAN}),
        ):
            assert await error(served, path, body) == "unsupported_language"
        # Where an error would let it pass, it is a block.
        reply = await served.client.post("/classify", json={"input": GERMAN})
        assert reply.json()["data"][0]["label"] == "unscreenable"
    assert [(r["failure"], r["action"]) for r in records.written] == [
        ("UnsupportedLanguage", "failed_closed")
    ] * 4
    async with opening(knowing("en"))(profile=refusing) as f:
        body = f.body(GERMAN)
        assert await error(f.gateway, "/v1/chat/completions", body) == "unsupported_language"
        assert f.script.requests == []


async def test_an_answer_that_is_refused_does_not_leave() -> None:
    refusing = {"unsupported_language": "refuse"}
    async with opening(knowing("en"))(whole(GERMAN), profile=refusing) as f:
        path = "/v1/chat/completions"
        assert await error(f.gateway, path, f.body("bread")) == "unsupported_language"
    async with opening(knowing("en"))(streamed(GERMAN), profile=refusing) as f:
        reply = await f.ask("bread", stream=True)
    assert reply.status_code == 400
    assert "Vermieter" not in reply.text


def test_who_says_which_languages_a_scorer_knows() -> None:
    assert languages_of("starter@1f6c2a9b03de", None) == ("en",)
    assert languages_of("google/shieldgemma-2b@1f6c2a9b03de", None) == ("en",)
    assert languages_of("my-starter@1f6c2a9b03de", None) is None
    assert languages_of("small@1f6c2a9b03de", ["en", "de"]) == ["en", "de"]
    assert load(ScoringSettings, {"languages": "en, de"}).known_languages == ("en", "de")
    with pytest.raises(ConfigurationError, match=r"^--languages 'English' is refused: languages"):
        load(ScoringSettings, {"languages": "English"})


def test_of_two_scorers_either_may_decide() -> None:
    assert both_languages(("en",), ("de", "en")) == ["en"]
    assert both_languages(None, ("en",)) == ("en",)
    assert both_languages(("en",), None) == ("en",)


@pytest.mark.usefixtures("restored_logging")
def test_score_warns_on_the_terminal(hot_checkpoint: Path, tmp_path: Path) -> None:
    knows = ("--model", hot_checkpoint, "--languages", "en")
    said = " ".join(score(GERMAN, *knows).stdout.split())
    assert "Language: de? The scorer is said to know en" in said
    assert "Language" not in score(ENGLISH, *knows).stdout
    lines = tmp_path / "lines.txt"
    lines.write_text(f"{ENGLISH}\n{GERMAN}\n")
    said = score("--lines", lines, *knows).stdout
    assert "(de?)" in said
    assert "Language: de?" in said
    found = json.loads(score(GERMAN, *knows[:3], "en,de", "--json").stdout)
    assert found["scorer"]["languages"] == ["en", "de"]
    assert found["results"][0]["unsupported_language"] is None
