"""What operators ask below `/admin/`: figures, the last decisions, and drafts of policy files."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeScorer
from front import Open
from prometheus_client import CollectorRegistry
from serving import Gateway, gateway
from test_keys import entry, written
from upstream import streamed

from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.policy import LiveBook, Policy, Streaming
from shieldgate.telemetry import (
    DecisionQuery,
    RecentDecisions,
    RecentFigures,
    SharedDecisions,
    Telemetry,
)

CANARY = "canary-77ac"
ADMIN = {"authorization": "Bearer sg-admin"}
WEB = {"authorization": "Bearer sg-web"}
READ = ["/admin/figures", "/admin/decisions", "/admin/policies/files"]
DRAFT = "/admin/policies/draft"

POLICIES = """\
family: test

policies:
  threat:
    title: Threats
    guideline: {prompt: No threats in prompts., response: No threats in responses.}
    calibrated: {fake@0: {prompt: {threshold: 0.6, provenance: {dataset: dev.jsonl}}}}
  spam:
    title: Spam
    threshold: {prompt: 0.5, response: 0.7}
    guideline: {prompt: No spam in prompts., response: No spam in responses.}
"""
PROFILES = """\
# As it was agreed.
profiles:
  default:
    policies: [test/threat]
  strict:
    policies: [test/threat, test/spam]
    mode: monitor
    thresholds: {test/spam: {response: 0.2}}
    max_thresholds: {test/threat: 0.3}
"""


@pytest.fixture
def live(tmp_path: Path) -> LiveBook:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "policies.yaml").write_text(POLICIES)
    (folder / "profiles.yaml").write_text(PROFILES)
    return LiveBook.load(folder)


@pytest.fixture
async def filed(scorer: FakeScorer, live: LiveBook) -> AsyncIterator[Gateway]:
    """A gateway whose book has files."""
    async with gateway(scorer, policies=live) as served:
        yield served


async def asked(served: Gateway, path: str, **query: Any) -> dict[str, Any]:
    reply = await served.client.get(path, params=query)
    assert reply.status_code == 200, reply.text
    assert CANARY not in reply.text
    found: dict[str, Any] = reply.json()
    return found


async def tried(served: Gateway, draft: str, **more: Any) -> dict[str, Any]:
    reply = await served.client.post(DRAFT, json={"draft": draft, **more})
    assert reply.status_code == 200, reply.text
    assert CANARY not in reply.text
    found: dict[str, Any] = reply.json()
    return found


async def screen(served: Gateway, *prompts: str, profile: str = "default", **how: Any) -> None:
    for prompt in prompts:
        body = {"prompt": prompt, "profile": profile}
        reply = await served.client.post("/v1/screen", json=body, **how)
        assert reply.status_code in (200, 503), reply.text


# -- who may ask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", READ)
async def test_what_admins_see_takes_a_key_with_that_right(
    scorer: FakeScorer, live: LiveBook, tmp_path: Path, path: str
) -> None:
    file = written(tmp_path, entry("web", "sg-web"), entry("ops", "sg-admin", admin="true"))
    async with gateway(scorer, policies=live, keys=file) as served:
        assert (await served.client.get(path)).status_code == 401
        refused = await served.client.get(path, headers=WEB)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_allowed")
        assert (await served.client.get(path, headers=ADMIN)).status_code == 200
        body = {"draft": PROFILES, "file": "profiles.yaml"}
        for headers, status in (({}, 401), (WEB, 403), (ADMIN, 200)):
            reply = await served.client.post(DRAFT, json=body, headers=headers)
            assert reply.status_code == status


@pytest.mark.parametrize("path", READ)
async def test_without_keys_it_is_there_for_this_machine_only(served: Gateway, path: str) -> None:
    foreign = await served.client.get(path, headers={"host": "evil.example"})
    assert foreign.status_code == 403


# -- figures -------------------------------------------------------------------------------------


async def test_figures_count_what_was_asked_and_found(scorer: FakeScorer) -> None:
    telemetry = Telemetry(CollectorRegistry())
    telemetry.ended("/v1/screen", 200, "blocked", 0.1)  # before anybody looked
    telemetry.phase("held", 0.1)
    async with gateway(scorer, telemetry=telemetry) as served:
        before = await asked(served, "/admin/figures")
        assert (before["requests"], before["verdicts"], before["times"]) == ({}, {}, {})
        await screen(served, f"crude {CANARY}", "bread")
        await screen(served, "crude buy", profile="monitor")
        await served.client.get("/v1/policies")
        await served.client.post("/v1/screen", json={"prompt": 3})
        found = await asked(served, "/admin/figures")
        assert found["requests"] == {"answered": 3, "refused": 1}
        assert found["verdicts"] == {"test/threat": {"blocked": 1, "allowed": 1, "would_block": 1}}
        assert 0 < found["seconds"] < 60
        assert (found["ready"], found["scorer"], found["policy_book"]) == (True, "fake@0", "book-1")
        assert found["breakers"]["scorer"] == "closed"
        assert (found["in_progress"], found["queued"]) == (0, 0)
        assert {p: sum(point[p] for point in found["points"]) for p in ("requests", "blocked")} == {
            "requests": 4,
            "blocked": 1,
        }


async def test_figures_tell_how_long_text_was_held(front: Open) -> None:
    soon = {"streaming": Streaming(first=8, growth=2.0, most=16)}
    async with front(streamed("a kind answer", "and another one"), profile=soon) as f:
        await f.stream()
        held = (await asked(f.gateway, "/admin/figures"))["times"]["held"]
    assert 0 < held["half"] <= held["most"] < 10


def recent(telemetry: Telemetry, **how: Any) -> RecentFigures:
    return RecentFigures(telemetry, {"/v1/screen"}.__contains__, **how)


async def test_figures_are_of_the_last_minutes_and_bounded() -> None:
    telemetry = Telemetry(CollectorRegistry())
    kept = recent(telemetry, step_seconds=0.001, steps=5)
    telemetry.ended("/v1/screen", 200, "answered", 0.1)
    running = asyncio.create_task(kept.run())
    async with asyncio.timeout(10):
        while len(await kept.until_now()) < 7:
            await asyncio.sleep(0.001)
    telemetry.ended("/v1/screen", 200, "blocked", 0.1)
    telemetry.ended("/healthz", 200, "answered", 0.1)
    await asyncio.sleep(0.05)
    running.cancel()
    first, *_, last = taken = await kept.until_now()
    assert len(taken) == 7
    # What is older than the oldest is forgotten: the differences are small, the counts are not.
    assert last.requests == {"answered": 1, "blocked": 1}
    assert last.since(first).requests == {}


def test_a_share_of_times_lies_within_what_their_buckets_say() -> None:
    telemetry = Telemetry(CollectorRegistry())
    for seconds in (0.02, 0.02, 0.02, 0.07):
        telemetry.phase("held", seconds)
    telemetry.phase("queue", 1e6)
    kept = recent(telemetry)
    figures = asyncio.run(kept.until_now())[-1]
    # Three of four lie between 0.01 and 0.025, so the second is two thirds of the way.
    assert figures.longest("held", 0.5) == pytest.approx(0.01 + 0.015 * 2 / 3)
    assert figures.longest("held", 1.0) == pytest.approx(0.1)
    assert figures.longest("queue", 0.5) == 60
    assert figures.longest("forward", 0.5) is None


async def test_figures_that_cannot_be_taken_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    telemetry = Telemetry(CollectorRegistry())
    kept = recent(telemetry, step_seconds=0.001)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "gauge_liveall_of-nobody.db").touch()
    running = asyncio.create_task(kept.run())
    await asyncio.sleep(0.05)
    assert not running.done()
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    async with asyncio.timeout(10):
        while len(await kept.until_now()) < 2:
            await asyncio.sleep(0.001)
    running.cancel()


# -- the last decisions --------------------------------------------------------------------------


async def test_decisions_are_the_records_newest_first(served: Gateway) -> None:
    await screen(served, f"bread {CANARY}", f"crude {CANARY}")
    found = await asked(served, "/admin/decisions")
    newest, oldest = (decision["record"] for decision in found["decisions"])
    assert (newest["action"], oldest["action"]) == ("blocked", "allowed")
    assert newest["policies"]["test/threat"]["margin"] == 3.0
    assert newest["policies"]["test/threat"]["threshold"] == 0.5
    assert (newest["profile"], newest["policy_book"]) == ("default", "book-1")
    assert newest["request_id"].startswith("req_")
    assert len(newest["prompt_digest"]) == 64
    assert (found["kept"], found["next"], found["callers"]) == (2, None, [])
    assert found["since"] == found["decisions"][-1]["timestamp"]


async def test_decisions_are_filtered_by_caller_policy_and_action(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    keys = (
        entry("web", "sg-web", profile="strict"),
        entry("ops", "sg-admin", admin="true", profile="monitor"),
    )
    async with gateway(scorer, keys=written(tmp_path, *keys)) as served:
        await screen(served, "bread", "crude", "buy", headers=WEB)
        await screen(served, "bread", "crude", headers=ADMIN)
        served.client.headers.update(ADMIN)

        async def actions(**query: str) -> list[str]:
            found = await asked(served, "/admin/decisions", **query)
            assert found["callers"] == ["ops", "web"]
            return [decision["record"]["action"] for decision in found["decisions"]]

        assert await actions() == ["blocked", "allowed", "blocked", "blocked", "allowed"]
        assert await actions(caller="web") == ["blocked", "blocked", "allowed"]
        assert await actions(caller="ops") == ["blocked", "allowed"]
        assert await actions(policy="test/spam") == ["blocked"]
        assert await actions(action="blocked", caller="web", policy="test/threat") == ["blocked"]
        assert await actions(action="would_block") == []
        assert await actions(caller=CANARY) == []
        for query in (
            {"action": CANARY},
            {"limit": 201},
            {"limit": 0},
            {"before": 2**60},
            {"caller": "x" * 201},
        ):
            reply = await served.client.get("/admin/decisions", params=query)
            assert reply.status_code == 400
            assert CANARY not in reply.text


async def test_decisions_come_in_pages_that_new_ones_do_not_shift(served: Gateway) -> None:
    await screen(served, *["bread"] * 5)
    first = await asked(served, "/admin/decisions", limit=2)
    await screen(served, "crude")
    second = await asked(served, "/admin/decisions", limit=2, before=first["next"])
    last = await asked(served, "/admin/decisions", limit=2, before=second["next"])
    places = [d["at"] for page in (first, second, last) for d in page["decisions"]]
    assert len(places) == 5
    assert places == sorted(places, reverse=True)
    assert last["next"] is None


async def test_only_the_last_decisions_are_kept_each_at_a_place_of_its_own() -> None:
    kept = RecentDecisions(kept=3)
    for number in range(1000):
        kept.write({"number": number})
    found = (await kept.find(DecisionQuery(limit=9))).decisions
    assert [decision.record["number"] for decision in found] == [999, 998, 997]
    assert found[0].at > found[1].at > found[2].at


async def test_decisions_of_several_processes_are_found_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [RecentDecisions(), RecentDecisions()]
    shared = []
    for process, own in zip((11, 12), kept, strict=True):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        shared.append(SharedDecisions(own, tmp_path))
    running = [asyncio.create_task(each.run()) for each in shared]
    # One that was killed, and one that has the folder of no process of ours.
    (tmp_path / "decisions-13").touch()
    for number in range(7):
        name = "odd" if number % 2 else "even"
        kept[number % 2].write({"number": number, "caller": name, "violated": [], "action": "x"})
    async with asyncio.timeout(10):
        while (page := await shared[0].find(DecisionQuery(limit=4))).processes < 2:
            await asyncio.sleep(0.01)
    assert [decision.record["number"] for decision in page.decisions] == [6, 5, 4, 3]
    assert (page.more, page.kept, sorted(page.callers)) == (True, 7, ["even", "odd"])
    rest = await shared[1].find(DecisionQuery(limit=4, before=page.decisions[-1].at))
    assert [decision.record["number"] for decision in rest.decisions] == [2, 1, 0]
    assert not rest.more
    odd = await shared[0].find(DecisionQuery(limit=4, caller="odd"))
    assert [decision.record["number"] for decision in odd.decisions] == [5, 3, 1]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    alone = await shared[0].find(DecisionQuery(limit=9))
    assert (alone.kept, alone.processes) == (4, 1)
    # A path that is too long for a socket ends nothing.
    await SharedDecisions(kept[0], tmp_path / ("x" * 120)).run()


async def test_a_guard_that_failed_is_among_the_decisions(
    served: Gateway, scorer: FakeScorer
) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    await screen(served, "bread")
    [decision] = (await asked(served, "/admin/decisions"))["decisions"]
    assert decision["record"]["failure"] == "ScorerUnavailable"
    assert decision["record"]["policies"] == {"test/threat": None}


# -- the book, and drafts of it ------------------------------------------------------------------


async def test_policies_tell_where_each_threshold_comes_from(filed: Gateway) -> None:
    book = await asked(filed, "/v1/policies")
    assert book["scorer"] == "fake@0"
    assert book["in_force"]["default"] == {
        "test/threat": {
            "prompt": {"threshold": 0.6, "source": "calibration", "uncapped": 0.6},
            "response": {"threshold": 0.5, "source": "policy", "uncapped": 0.5},
        }
    }
    strict = book["in_force"]["strict"]
    assert strict["test/threat"]["prompt"] == {
        "threshold": 0.3,
        "source": "cap",
        "uncapped": 0.6,
    }
    assert strict["test/spam"]["response"] == {
        "threshold": 0.2,
        "source": "profile",
        "uncapped": 0.2,
    }
    assert book["own"] == {"default": [], "strict": ["mode", "thresholds", "max_thresholds"]}
    fitted = book["policies"][0]["calibration"]["prompt"]
    assert (fitted["threshold"], fitted["provenance"]) == (0.6, {"dataset": "dev.jsonl"})


async def test_files_are_shown_as_they_stand(filed: Gateway, live: LiveBook) -> None:
    found = await asked(filed, "/admin/policies/files")
    assert found == {
        "files": {"policies.yaml": POLICIES, "profiles.yaml": PROFILES},
        "problems": [],
    }


async def test_files_that_are_no_policy_files_are_never_shown(
    filed: Gateway, live: LiveBook, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"password: {CANARY}\n")
    (live.path / "more.yaml").symlink_to(secret)
    found = await asked(filed, "/admin/policies/files")
    assert found["files"] == {}
    assert {problem["file"] for problem in found["problems"]} == {"more.yaml"}


def told(problems: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(problem["file"], problem["line"]) for problem in problems]


async def test_a_draft_is_refused_as_a_file_with_every_line(filed: Gateway) -> None:
    bad = PROFILES.replace("test/threat: 0.3", "test/threat: 3").replace("monitor", "forbid")
    found = await tried(filed, bad.replace("[test/threat]", "[test/treat]"), file="profiles.yaml")
    assert told(found["problems"]) == [
        ("profiles.yaml", 4),
        ("profiles.yaml", 7),
        ("profiles.yaml", 9),
    ]
    assert "did you mean 'test/threat'?" in found["problems"][0]["what"]
    assert found["version"] is None
    assert found["results"] == []


@pytest.mark.parametrize(
    ("draft", "line"),
    [
        ("", 1),
        ("family: [", 1),
        ("a: &a [*a]\n", 1),
        ("profiles: {default: {policies: [a/b]}}\n\x00", 1),
        ("- " * 5000, 1),
        ("just words", 1),
        ("profiles: {strict: {policies: [test/spam]}}", 1),
    ],
)
async def test_whatever_is_pasted_has_an_answer(filed: Gateway, draft: str, line: int) -> None:
    for file in (None, "profiles.yaml"):
        found = await tried(filed, draft, file=file)
        assert {problem["line"] for problem in found["problems"]} == {line}


async def test_a_draft_stands_for_its_file_or_beside_the_files_or_alone(filed: Gateway) -> None:
    more = POLICIES.replace("family: test", "family: acme").replace("fake@0", "other@1")
    beside = await tried(filed, more, file="more.yaml")
    assert [change["at"] for change in beside["changes"]] == [
        "policies.acme/threat",
        "policies.acme/spam",
    ]
    assert (beside["problems"], beside["changes"][0]["before"]) == ([], None)
    twice = await tried(filed, POLICIES, file="more.yaml")
    assert told(twice["problems"]) == [("more.yaml", 4), ("more.yaml", 8)]
    alone = await tried(filed, POLICIES)
    assert "no profile is named 'default'" in alone["problems"][0]["what"]
    whole = await tried(filed, f"{POLICIES}{PROFILES}")
    assert (whole["problems"], whole["changes"]) == ([], [])


async def test_beside_a_book_of_one_file_nothing_is_read(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    book = tmp_path / "book.yaml"
    book.write_text(f"{POLICIES}{PROFILES}")
    more = POLICIES.replace("family: test", "family: acme")
    async with gateway(scorer, policies=LiveBook.load(book)) as served:
        [problem] = (await tried(served, more, file="more.yaml"))["problems"]
        assert problem["what"].startswith("book.yaml is the whole book")
        assert (await tried(served, book.read_text(), file="book.yaml"))["problems"] == []


async def test_a_draft_says_what_would_change(filed: Gateway) -> None:
    draft = PROFILES.replace("mode: monitor\n", "mode: enforce\n").replace("0.2", "0.9")
    found = await tried(filed, draft, file="profiles.yaml")
    assert found["changes"] == [
        {"at": "profiles.strict.mode", "before": "monitor", "after": "enforce"},
        {"at": "profiles.strict.thresholds.test/spam.response", "before": 0.2, "after": 0.9},
    ]
    both = await tried(filed, PROFILES.replace("0.3", "0.25"), file="profiles.yaml")
    assert both["changes"] == [
        {"at": "profiles.strict.max_thresholds.test/threat", "before": 0.3, "after": 0.25}
    ]
    assert len(found["version"]) == 12
    assert found["warnings"] == []
    lax = PROFILES.replace("test/spam: {response: 0.2}", "test/threat: 0.9")
    found = await tried(
        filed, lax.replace("max_thresholds: {test/threat: 0.3}", ""), file="profiles.yaml"
    )
    assert "is above the 0.6 calibrated for fake@0 (prompt)" in found["warnings"][0]


async def test_a_draft_is_tried_on_rows_beside_the_book_in_force(
    filed: Gateway, scorer: FakeScorer
) -> None:
    rows = [
        {"prompt": f"bread {CANARY}"},
        {"prompt": f"buy {CANARY}"},
        {"prompt": "hello", "response": f"crude {CANARY}"},
    ]
    draft = PROFILES.replace("policies: [test/threat]\n", "policies: [test/spam]\n", 1)
    found = await tried(filed, draft, file="profiles.yaml", rows=rows)
    verdicts = [(r["before"]["action"], r["after"]["action"]) for r in found["results"]]
    assert verdicts == [("allowed", "allowed"), ("allowed", "blocked"), ("blocked", "allowed")]
    assert [result["changed"] for result in found["results"]] == [False, True, True]
    spam = found["results"][1]["after"]["policies"]["test/spam"]
    assert (spam["threshold"], spam["violated"]) == (0.5, True)
    # Nothing of it is a decision of the server.
    assert (await asked(filed, "/admin/decisions"))["kept"] == 0
    assert filed.metric("shieldgate_verdicts_total", policy="test/spam") is None
    assert (await asked(filed, "/v1/policies"))["in_force"]["default"].keys() == {"test/threat"}


async def test_a_draft_is_tried_under_a_profile_that_both_books_have(filed: Gateway) -> None:
    rows = [{"prompt": "buy"}]
    strict = await tried(filed, PROFILES, file="profiles.yaml", rows=rows, profile="strict")
    assert strict["results"][0]["after"]["action"] == "would_block"
    without = PROFILES[: PROFILES.index("  strict")]
    found = await tried(filed, without, file="profiles.yaml", rows=rows, profile="strict")
    assert (found["results"], found["warnings"]) == (
        [],
        ["The draft has no profile 'strict', so no row was tried under it."],
    )
    body = {"draft": PROFILES, "file": "profiles.yaml", "profile": "stern"}
    reply = await filed.client.post(DRAFT, json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unknown_name")


async def test_a_row_that_could_not_be_judged_says_so(filed: Gateway, scorer: FakeScorer) -> None:
    scorer.fails_on = "sour"
    rows = [{"prompt": "bread"}, {"prompt": "sour"}]
    found = await tried(filed, PROFILES, file="profiles.yaml", rows=rows)
    errors = [(r["before"]["error"] is None, r["after"]["error"] is None) for r in found["results"]]
    assert errors == [(True, True), (False, False)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"draft": "x" * 300_001}, 400),
        ({"draft": PROFILES, "rows": [{"prompt": "bread"}] * 51}, 400),
        ({"draft": PROFILES, "file": "../profiles.yaml"}, 400),
        ({"draft": PROFILES, "file": ".profiles.yaml"}, 400),
        ({"draft": PROFILES, "file": "profiles.txt"}, 400),
        ({"draft": "\ud800"}, 400),
        ({"rows": []}, 400),
        ({"draft": PROFILES, "file": "profiles.yaml", "rows": [{"prompt": "x" * 999}]}, 413),
    ],
)
async def test_what_a_draft_may_hold_is_bounded(
    scorer: FakeScorer, live: LiveBook, body: dict[str, Any], status: int
) -> None:
    async with gateway(scorer, policies=live, max_text_chars=500) as served:
        json_type = {"content-type": "application/json"}
        reply = await served.client.post(DRAFT, content=json.dumps(body), headers=json_type)
        assert reply.status_code == status, reply.text
        assert scorer.calls == []


async def test_a_draft_that_a_reload_would_refuse_is_refused(
    scorer: FakeScorer, live: LiveBook
) -> None:
    async def check(policies: Iterable[Policy]) -> None:
        if any("too long" in policy.guidelines["prompt"] for policy in policies):
            raise ConfigurationError("The guideline of test/spam leaves no room for texts.")

    live.check = check
    live.bound = lambda: {"strict": "web"}
    async with gateway(scorer, policies=live) as served:
        wordy = await tried(served, POLICIES.replace("No spam", "too long"), file="policies.yaml")
        [problem] = wordy["problems"]
        assert (problem["line"], problem["file"]) == (None, None)
        assert "leaves no room" in problem["what"]
        bound = await tried(served, PROFILES[: PROFILES.index("  strict")], file="profiles.yaml")
        assert "to which the API key 'web' is bound" in bound["problems"][0]["what"]
    assert live.last_error is None
