"""A candidate judges live traffic beside what is in force: it decides, delays and fails nothing."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeScorer, small_book
from front import Open
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from serving import Gateway, gateway, read_where
from structlog.testing import capture_logs
from test_cli_serve import screened, serving
from test_keys import entry, written
from test_telemetry_audit import Records
from upstream import streamed

from shieldgate import language
from shieldgate.cli.shadow_serving import hold_candidate, prepare_shadow
from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.given_settings import load
from shieldgate.moderation import judge
from shieldgate.policy import LiveBook, Policy, PolicyBook, Profile, Streaming
from shieldgate.scoring import Identity, turn
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.scoring.precedence import Precedence
from shieldgate.settings import ServeSettings
from shieldgate.shadow import shadow as shadow_module
from shieldgate.shadow.candidate import Candidate, Judged
from shieldgate.shadow.records import ShadowRecord
from shieldgate.shadow.report import report
from shieldgate.shadow.shadow import Shadow
from shieldgate.telemetry import ShadowTelemetry, Telemetry
from shieldgate.telemetry.shadow import shadow_in_short
from shieldgate.types import Exchange, Score

CANARY = "canary-3b71 nobody else would send"
DOCUMENT = Path(__file__).parents[1] / "docs" / "shadow.md"


@dataclass
class OtherScorer(FakeScorer):
    """A scorer that notes on whose behalf it was asked, and what it is told it takes."""

    identity = Identity("other@1", "1", "float32", "chat", "none")
    callers: list[str] = field(default_factory=list)

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        self.callers.append(turn.caller.get())
        turn.count(100, 0.25)
        return await super().score(exchange, policies)


@dataclass
class Rig:
    """A shadow, what it has on record, and its metrics."""

    shadow: Shadow
    telemetry: Telemetry
    records: Records

    def metric(self, name: str, **labels: str) -> float:
        name = f"shieldgate_shadow_{name}"
        return self.telemetry.registry.get_sample_value(name, labels) or 0.0

    async def until(self, **outcomes: int) -> None:
        async with asyncio.timeout(10):
            while any(self.metric("texts_total", outcome=o) != n for o, n in outcomes.items()):
                await asyncio.sleep(0.005)


def rig(
    book: PolicyBook | None = None,
    *,
    profile: str | None = None,
    in_force: PolicyBook | None = None,
    **how: Any,
) -> Rig:
    telemetry, records = Telemetry(CollectorRegistry()), Records()
    now = in_force or small_book()
    candidate = Candidate(lambda: book or now, lambda: now, profile)
    how = {"share": 1.0, **how}
    shadow = Shadow(candidate, telemetry=ShadowTelemetry(telemetry.registry, records), **how)
    return Rig(shadow, telemetry, records)


@asynccontextmanager
async def shadowed(
    made: Rig, scorer: FakeScorer, candidate: FakeScorer, **how: Any
) -> AsyncIterator[Gateway]:
    with made.shadow.judging_by(candidate):
        async with gateway(scorer, shadow=made.shadow, telemetry=made.telemetry, **how) as served:
            yield served


def changed(book: PolicyBook, policy: str, **changes: Any) -> PolicyBook:
    other = replace(book.policies[policy], **changes)
    return replace(book, policies={**book.policies, policy: other}, version="book-2")


STRICT = changed(small_book(), "test/threat", thresholds={"prompt": 0.001, "response": 0.4})
REWORDED = changed(small_book(), "test/threat", guidelines={"prompt": "None.", "response": "None."})


async def screen(served: Gateway, prompt: str, **more: Any) -> httpx.Response:
    reply = await served.client.post("/v1/screen", json={"prompt": prompt, **more})
    assert reply.status_code == 200, reply.text
    return reply


def reading(threshold: float) -> dict[str, Any]:
    probability = pytest.approx(0.00247, abs=1e-5)
    return {"probability": probability, "margin": -6.0, "threshold": threshold}


async def test_another_scorer_judges_beside_and_decides_nothing(scorer: FakeScorer) -> None:
    made, other = rig(), OtherScorer({("bread", "test/threat"): 3.0})
    async with shadowed(made, scorer, other) as served:
        passed = await screen(served, "bread")
        blocked = await screen(served, "crude")
        await made.until(judged=2)
    assert [r.json()["results"][0]["action"] for r in (passed, blocked)] == ["allowed", "blocked"]
    first, second = made.records.written
    assert (first["in_force"]["action"], first["candidate"]["action"]) == ("allowed", "blocked")
    assert (second["in_force"]["action"], second["candidate"]["action"]) == ("blocked", "allowed")
    assert first["request_id"] == passed.headers["x-request-id"]
    for before, after in (("allowed", "blocked"), ("blocked", "allowed")):
        at = {"direction": "prompt", "in_force": before, "candidate": after}
        assert made.metric("decisions_total", **at) == 1
    for flip in ("newly_violated", "no_longer_violated"):
        at = {"policy": "test/threat", "direction": "prompt", "flip": flip}
        assert made.metric("flips_total", **at) == 1
    assert (made.metric("tokens_total"), made.metric("seconds_total")) == (200, 0.5)
    assert set(other.callers) == {turn.BACKGROUND}
    # What is in force counts as ever.
    verdicts = {"policy": "test/threat", "direction": "prompt", "result": "blocked"}
    assert served.metric("shieldgate_verdicts_total", **verdicts) == 1


async def test_a_record_says_all_that_a_report_needs_and_no_text(scorer: FakeScorer) -> None:
    made = rig(STRICT, share=0.5, draw=lambda: 0.4)
    with capture_logs() as lines:
        async with shadowed(made, scorer, scorer) as served:
            reply = await screen(served, CANARY, policies=["spam"])
            await made.until(judged=1)
    [record] = made.records.written
    assert ShadowRecord.model_validate(record).share == 0.5
    decision = next(line for line in lines if line["event"] == "decision")
    assert record.pop("id") == decision["id"]
    assert record == {
        "request_id": reply.headers["x-request-id"],
        "direction": "prompt",
        "in_force": {
            "action": "allowed",
            "violated": [],
            "profile": "default",
            "policy_book": "book-1",
            "scorer": "fake@0",
        },
        "candidate": {
            "action": "blocked",
            "violated": ["test/threat"],
            "profile": "default",
            "policy_book": "book-2",
            "scorer": "fake@0",
        },
        "policies": {
            "test/threat": {"in_force": reading(0.5), "candidate": reading(0.001)},
            "test/spam": {"in_force": reading(0.5), "candidate": reading(0.5)},
        },
        "share": 0.5,
        "tokens": 0,
        "seconds": 0.0,
    }
    assert CANARY not in str(lines) + str(made.records.written)


async def test_where_only_thresholds_or_the_profile_differ_nothing_is_scored_twice(
    scorer: FakeScorer,
) -> None:
    lax = {"thresholds": {("test/threat", "prompt"): 0.99}}
    for made in (rig(STRICT), rig(small_book(**lax)), rig(profile="monitor")):
        scorer.calls.clear()
        async with shadowed(made, scorer, scorer) as served:
            await screen(served, "crude")
            await made.until(judged=1)
        assert len(scorer.calls) == 1, "by the one in force"
    assert made.records.written[0]["candidate"]["action"] == "would_block"


async def test_only_what_is_worded_otherwise_is_scored(scorer: FakeScorer) -> None:
    made = rig(REWORDED)
    async with shadowed(made, scorer, scorer) as served:
        await screen(served, "bread", policies=["spam"])
        await made.until(judged=1)
    assert [policies for _, policies in scorer.calls] == [
        ("test/threat", "test/spam"),
        ("test/threat",),
    ]


@pytest.mark.parametrize("own", [False, True], ids=["same scorer", "another"])
async def test_a_candidate_refuses_a_text_for_its_language(scorer: FakeScorer, own: bool) -> None:
    language.load()  # gateways wait for that before they are ready
    scorer.identity = replace(scorer.identity, languages=("en",))
    candidate = OtherScorer() if own else scorer
    candidate.identity = replace(candidate.identity, languages=("en",))
    book = small_book()
    profile = replace(book.profiles["default"], unsupported_language="refuse")
    made = rig(replace(book, profiles={**book.profiles, "default": profile}))
    async with shadowed(made, scorer, candidate) as served:
        await screen(served, "Kannst du mir helfen, einen Brief an meinen Vermieter zu schreiben?")
        await made.until(judged=1)
    [record] = made.records.written
    assert (record["in_force"]["action"], record["candidate"]["action"]) == (
        "allowed",
        "failed_closed",
    )
    [found] = report([ShadowRecord.model_validate(record)])
    [direction] = found.directions
    assert (direction.blocked_by_candidate, direction.newly_blocked.count) == (1, 1)
    assert (found.otherwise.count, found.tokens) == (1, 0)


async def test_texts_that_are_read_otherwise_are_scored_whole(scorer: FakeScorer) -> None:
    made = rig(small_book(normalise=False))
    async with shadowed(made, scorer, scorer) as served:
        await screen(served, "bread")
        await made.until(judged=1)
    assert [exchange.prompt for exchange, _ in scorer.calls] == ["bread", "bread"]


async def test_a_candidate_that_hangs_delays_nobody_and_what_finds_no_room_is_dropped(
    scorer: FakeScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_module, "_MOST_WAITING", 3)
    monkeypatch.setattr(shadow_module, "_MOST_CHARACTERS", 100)
    made, other = rig(), OtherScorer()
    other.released.clear()
    async with shadowed(made, scorer, other) as served:
        for number in range(4):
            await screen(served, f"bread {number}")
        async with asyncio.timeout(10):
            while len(other.callers) < 4:  # as many as it judges at once
                await asyncio.sleep(0.005)
        await screen(served, "x" * 101)
        await made.until(dropped=1)
        for number in range(5):
            await screen(served, f"buns {number}")
        await made.until(dropped=3)
    # And the server stops, though it still hangs.
    assert made.metric("texts_total", outcome="judged") == 0


async def test_texts_are_read_behind_those_of_callers(
    scorer: FakeScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rig()
    async with shadowed(made, scorer, OtherScorer()) as served:
        where = read_where(monkeypatch)
        await screen(served, "We bake a loaf of bread and share it. " * 20)
        await made.until(judged=1)
    assert len(where) > 1
    assert {name.rstrip("01") for name in where} == {"read_"}


async def test_many_that_nothing_is_scored_for_leave_room_for_requests(
    scorer: FakeScorer,
) -> None:
    made = rig(STRICT)
    async with gateway(scorer, shadow=made.shadow, telemetry=made.telemetry) as served:
        for _ in range(40):
            await screen(served, "bread")
        with made.shadow.judging_by(scorer):
            rounds = 0
            while made.metric("texts_total", outcome="judged") < 40:
                await asyncio.sleep(0)
                rounds += 1
    assert rounds >= 40 / 4


async def test_a_candidate_that_fails_is_counted_and_tried_again(scorer: FakeScorer) -> None:
    made, other = rig(), OtherScorer(failure=ScorerUnavailable("It is away."))
    with capture_logs() as lines:
        async with shadowed(made, scorer, other) as served:
            await screen(served, "bread")
            await screen(served, "bread")
            await made.until(failed=2)
            other.failure = ZeroDivisionError(CANARY)
            await screen(served, "bread")
            await made.until(failed=3)
            other.failure = None
            await screen(served, "bread")
            await made.until(judged=1)
            ready = await served.client.get("/readyz")
            assert ready.status_code == 200
    said = [line["event"] for line in lines if "candidate" in line["event"]]
    assert said == ["the candidate fails", "the candidate judges again"]
    assert served.metric("shieldgate_guard_failures_total", reason="failure") is None


async def test_texts_wait_until_its_scorer_is_there(scorer: FakeScorer) -> None:
    made = rig()
    async with gateway(scorer, shadow=made.shadow, telemetry=made.telemetry) as served:
        await screen(served, "bread")
        assert made.metric("ready") == 0
        with made.shadow.judging_by(OtherScorer()):
            await made.until(judged=1)
            assert made.metric("ready") == 1
        assert made.metric("ready") == 0


async def test_a_share_is_drawn(scorer: FakeScorer) -> None:
    draws = iter([0.3, 0.05, 0.1])
    made = rig(share=0.1, draw=lambda: next(draws))
    async with shadowed(made, scorer, OtherScorer()) as served:
        for text in ("one", "two", "three"):
            await screen(served, text)
        await made.until(judged=1)
        assert not made.shadow._waiting
    assert len(made.records.written) == 1


async def test_what_the_guard_did_not_judge_is_compared_with_nothing(scorer: FakeScorer) -> None:
    made, other = rig(), OtherScorer()
    scorer.failure = ScorerUnavailable("It failed.")
    async with shadowed(made, scorer, other) as served:
        await screen(served, "bread", profile="open")
    assert not other.callers


async def test_chats_are_judged_both_ways_and_streams_at_their_end(
    scorer: FakeScorer, front: Open
) -> None:
    made, other = rig(), OtherScorer({("kind", "test/threat"): 3.0})
    soon = {"streaming": Streaming(first=4, growth=1.5, most=8)}
    made = rig(in_force=small_book(**soon))
    with made.shadow.judging_by(other):
        async with front(
            streamed("a kind answer"), profile=soon, shadow=made.shadow, telemetry=made.telemetry
        ) as f:
            await f.stream("bread")
            await made.until(judged=2)
    assert [e.response for e, _ in other.calls] == [None, "a kind answer"]
    assert not any(exchange.growing for exchange, _ in other.calls)
    found = [(r["direction"], r["candidate"]["action"]) for r in made.records.written]
    assert found == [("prompt", "allowed"), ("response", "blocked")]


async def test_a_stream_that_was_stopped_is_judged_as_a_text_that_grows_no_more(
    scorer: FakeScorer,
) -> None:
    book = small_book()
    rules = book.rules(book.profile("default"))
    beginning = Exchange("bread", "a crude", growing=True)
    verdict = await judge(scorer, beginning, rules)
    candidate = Candidate(lambda: REWORDED, lambda: book)
    other = candidate.rules(rules, "response", "fake@0")
    assert other
    judged = Judged(beginning, rules, scorer.identity, verdict)
    assert (await candidate.judge(judged, other, scorer)).violated == ("test/threat",)
    assert [exchange.growing for exchange, _ in scorer.calls] == [True, False]


async def test_moderations_are_judged(scorer: FakeScorer) -> None:
    made = rig(STRICT)
    async with shadowed(made, scorer, scorer) as served:
        await served.client.post("/v1/moderations", json={"input": ["bread", "crude"]})
        await made.until(judged=2)
    actions = [r["candidate"]["action"] for r in made.records.written]
    assert actions == ["blocked", "blocked"]


async def test_what_a_caller_names_is_joined_with_its_keys_profile_there_too(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    made = rig(STRICT)
    keys = written(tmp_path, entry("web", "sg-web"))
    async with shadowed(made, scorer, scorer, keys=keys) as served:
        served.client.headers["authorization"] = "Bearer sg-web"
        await screen(served, "buy", profile="strict")
        await made.until(judged=1)
    [record] = made.records.written
    assert record["caller"] == "web"
    assert record["in_force"]["profile"] == record["candidate"]["profile"] == "default+strict"
    assert record["in_force"]["violated"] == ["test/spam"]
    assert record["candidate"]["violated"] == ["test/threat", "test/spam"]


async def test_a_profile_that_the_candidate_lacks_is_left_out_and_counted(
    scorer: FakeScorer, front: Open
) -> None:
    lacking = replace(small_book(), profiles={"default": Profile("default", ("test/threat",))})
    made = rig(lacking)
    async with shadowed(made, scorer, scorer) as served:
        await screen(served, "bread", profile="strict")
        await made.until(skipped=1)
    made = rig()
    with made.shadow.judging_by(scorer):
        async with front(shadow=made.shadow, telemetry=made.telemetry) as f:
            # A chat's joined profile can't be told from its name.
            await f.ask("bread", moderation={"model": "strict"})
            await made.until(skipped=2)


async def test_policies_that_only_one_of_them_has_are_compared(scorer: FakeScorer) -> None:
    made = rig(small_book(policies=("test/spam",)))
    async with shadowed(made, scorer, scorer) as served:
        await screen(served, "crude and buy")
        await made.until(judged=1)
    [record] = made.records.written
    assert record["policies"]["test/threat"]["candidate"] is None
    assert record["policies"]["test/spam"]["in_force"] is None
    assert shadow_in_short(record) == (
        "second opinion on blocked prompt: blocked, test/spam not judged -> 0.881 +1"
    )


async def test_a_scorer_that_cant_be_opened_is_said_and_ends_nothing() -> None:
    @asynccontextmanager
    async def refused() -> AsyncIterator[FakeScorer]:
        raise ConfigurationError("There is no such model.")
        yield FakeScorer()

    with capture_logs() as lines:
        await hold_candidate(LoadingScorer(refused))
    assert lines[0]["why"] == "There is no such model."


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"shadow_policies": "b"}, None),
        ({"shadow_profile": "strict"}, None),
        (
            {"shadow_template": "paper", "revision": "r", "cascade": "c.yaml"},
            {"model": "starter", "template": "paper", "revision": "r", "cascade": None},
        ),
        (
            {"shadow_model": "small", "revision": "r", "quantize": "int8", "template": "paper"},
            {"model": "small", "template": "paper", "revision": None, "quantize": "none"},
        ),
        (
            {
                "model": "http://a/v1",
                "tokenizer": "t",
                "scorer_name": "old@1",
                "shadow_served_model": "new",
            },
            {"model": "http://a/v1", "tokenizer": "t", "served_model": "new", "scorer_name": None},
        ),
        # What is said of the first one's server is not for another's.
        (
            {
                "model": "http://a/v1",
                "model_key": "k",
                "languages": "de",
                "shadow_model": "http://b/v1",
            },
            {"model": "http://b/v1", "model_key": None, "languages": None, "tokenizer": None},
        ),
        # One elsewhere has connections of its own.
        ({"model": "http://a/v1", "shadow_policies": "b"}, {"model": "http://a/v1"}),
        ({"model": "http://a/v1"}, None),
    ],
)
def test_the_second_scorer_is_the_first_but_for_what_is_said(
    given: dict[str, str], expected: dict[str, Any] | None
) -> None:
    found = load(ServeSettings, given).shadow_scorer()
    assert (found and {name: getattr(found, name) for name in expected or ()}) == expected


def test_the_document_lists_every_metric_and_no_other() -> None:
    registry = CollectorRegistry()
    metrics = vars(ShadowTelemetry(registry)).values()
    there = {
        m._name + "_total" * (m._type == "counter"): tuple(m._labelnames)
        for m in metrics
        if isinstance(m, MetricWrapperBase)
    }
    assert len(there) == len(list(registry.collect()))
    rows = re.findall(r"^\| `(shieldgate_\w+)` \| (.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    assert {name: tuple(re.findall("`(.+?)`", labels)) for name, labels in rows} == there


async def test_operators_are_shown_it_and_nobody_else(scorer: FakeScorer, tmp_path: Path) -> None:
    made = rig(STRICT)
    keys = written(tmp_path, entry("web", "sg-web"), entry("ops", "sg-ops", admin="true"))
    async with shadowed(made, scorer, scorer, keys=keys) as served:
        served.client.headers["authorization"] = "Bearer sg-web"
        await screen(served, "bread")
        await made.until(judged=1)
        assert (await served.client.get("/admin/shadow")).status_code == 403
        served.client.headers["authorization"] = "Bearer sg-ops"
        found = (await served.client.get("/admin/shadow")).json()
    assert found == {
        "ready": True,
        "scorer": "fake@0",
        "policy_book": "book-2",
        "profile": None,
        "share": 1.0,
        "texts": {"judged": 1},
        "decisions": [
            {"direction": "prompt", "in_force": "allowed", "candidate": "blocked", "texts": 1}
        ],
        "flips": [
            {
                "policy": "test/threat",
                "direction": "prompt",
                "flip": "newly_violated",
                "texts": 1,
            }
        ],
        "tokens": 0,
        "seconds": 0.0,
    }


async def test_without_a_candidate_there_is_nothing_to_show(served: Gateway) -> None:
    assert (await served.client.get("/admin/shadow")).json() is None


@pytest.mark.parametrize(
    ("flags", "scorer"),
    [
        (("--shadow-profile", "strict"), "same"),
        (("--shadow-template", "paper", "--processes", "2"), "+paper"),
    ],
)
def test_serve_judges_a_second_time_here_and_with_several_processes(
    hot_checkpoint: Path, flags: tuple[str, ...], scorer: str
) -> None:
    with serving("--model", hot_checkpoint, *flags) as server:
        url = server.line("listening")["url"]
        server.line("gateway ready" if "--processes" in flags else "ready")
        reply = screened(url, "bread").json()
        record = server.line("shadow")
        figures = httpx.get(f"{url}/admin/shadow").json()
        page = httpx.get(f"{url}/metrics").text
    name = reply["scorer"]["name"]
    assert record["in_force"]["scorer"] == name
    assert record["candidate"]["scorer"] == (name if scorer == "same" else name + scorer)
    margins = [both["candidate"]["margin"] for both in record["policies"].values()]
    given = [policy["margin"] for policy in reply["results"][0]["policies"].values()]
    if scorer == "same":
        # What the profile judges more is all that was computed.
        assert margins[: len(given)] == given
        assert len(margins) > len(given)
    else:
        assert margins != given
    assert record["tokens"] > 0
    assert record["seconds"] > 0
    assert figures["texts"] == {"judged": 1}
    assert 'shieldgate_cache_lookups_total{level="miss"} 4.0' in page, "of the request alone"


def test_a_share_without_a_candidate_and_an_unknown_profile_are_refused(tmp_path: Path) -> None:
    def refusal(**given: str) -> str:
        settings = load(ServeSettings, given)
        with pytest.raises(ConfigurationError) as refused:
            prepare_shadow(
                settings,
                live=LiveBook.load(),
                telemetry=Telemetry(CollectorRegistry()),
                precedence=Precedence(),
                secret=b"0" * 16,
                shared=None,
                second=None,
                scorer=None,
            )
        return str(refused.value)

    assert "--shadow-share says how much" in refusal(shadow_share="0.1")
    assert "no profile named 'strikt'" in refusal(shadow_profile="strikt")
    assert "Did you mean 'strict'" in refusal(shadow_profile="strikt")
    (tmp_path / "candidate.yaml").write_text("family: x\npolicies: {}\n")
    assert "candidate.yaml" in refusal(shadow_policies=str(tmp_path / "candidate.yaml"))
    assert "no template 'nowhere'" in refusal(shadow_template="nowhere")
