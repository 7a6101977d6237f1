"""Each decision is put on record once, with all that explains it and without the text."""

import asyncio
import hashlib
import hmac
import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeScorer
from front import Front, Open
from serving import AUDIT_SECRET, Gateway, gateway
from test_keys import entry, written
from upstream import DONE, delta, streamed, whole

from shieldgate.errors import ScorerUnavailable
from shieldgate.policy import Streaming
from shieldgate.telemetry import Audit, configure_logging
from shieldgate.telemetry.audit import in_short

SOON = {"streaming": Streaming(first=8, growth=2.0, most=16)}


@dataclass
class Records:
    """A sink that keeps all, as JSON has it."""

    written: list[dict[str, Any]] = field(default_factory=list)

    def write(self, record: Mapping[str, Any]) -> None:
        self.written.append(json.loads(json.dumps(record)))


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
async def audited(scorer: FakeScorer, records: Records) -> AsyncIterator[Gateway]:
    async with gateway(scorer, audit=records) as served:
        yield served


def digest(text: str) -> str:
    return hmac.new(AUDIT_SECRET, text.encode(), hashlib.sha256).hexdigest()


async def test_a_record_says_who_and_by_what_and_not_what_was_written(
    audited: Gateway, records: Records
) -> None:
    body = {"prompt": "bread", "response": "a crude answer", "profile": "strict"}
    reply = await audited.client.post("/v1/screen", json=body)
    margins = {"test/threat": 3.0, "test/spam": -6.0}
    [record] = records.written
    policies = record.pop("policies")
    assert record.pop("id").startswith("dec_")
    assert record == {
        "request_id": reply.headers["x-request-id"],
        "direction": "response",
        "action": "blocked",
        "violated": ["test/threat"],
        "profile": "strict",
        "policy_book": "book-1",
        "scorer": "fake@0",
        "unsupported_language": None,
        "failure": None,
        "prompt_digest": digest("bread"),
        "response_digest": digest("a crude answer"),
    }
    assert {id: judged["margin"] for id, judged in policies.items()} == margins
    assert policies["test/threat"] == {
        "probability": pytest.approx(0.9526, abs=1e-4),
        "margin": 3.0,
        "threshold": 0.4,
        "calibrated": False,
    }


async def test_each_text_of_a_request_has_its_record(audited: Gateway, records: Records) -> None:
    texts = ["bread", "crude", "buns"]
    await audited.client.post("/v1/moderations", json={"input": texts})
    found = {record["prompt_digest"]: record["action"] for record in records.written}
    assert found == {
        digest("bread"): "allowed",
        digest("crude"): "blocked",
        digest("buns"): "allowed",
    }
    assert len({record["request_id"] for record in records.written}) == 1


async def test_where_the_guard_failed_the_record_says_so(
    audited: Gateway, records: Records, scorer: FakeScorer
) -> None:
    scorer.failure = ScorerUnavailable("The scorer failed.")
    for profile in ("default", "open"):
        await audited.client.post("/v1/screen", json={"prompt": "bread", "profile": profile})
    assert [record["action"] for record in records.written] == ["failed_closed", "failed_open"]
    for record in records.written:
        assert record["failure"] == "ScorerUnavailable"
        assert record["policies"] == {"test/threat": None}


async def test_a_chat_is_recorded_both_ways(front: Open, records: Records) -> None:
    async with front(whole("a kind answer", "a crude one"), audit=records) as f:
        await f.ask("bread", n=2)
    prompt, *answers = records.written
    assert prompt["prompt_digest"] == digest("bread")
    assert "response_digest" not in prompt
    assert {a["response_digest"]: a["action"] for a in answers} == {
        digest("a kind answer"): "allowed",
        digest("a crude one"): "blocked",
    }
    assert {a["prompt_digest"] for a in answers} == {digest("bread")}


async def test_an_answer_that_cannot_be_screened_is_recorded(front: Open, records: Records) -> None:
    async with front(whole("kind", audio={"data": "AAAA"}), audit=records) as f:
        await f.ask()
    assert [(r["action"], r["failure"]) for r in records.written] == [
        ("allowed", None),
        ("failed_closed", "Unscreenable"),
    ]


@asynccontextmanager
async def paced(
    front: Open, records: Records, *pieces: bytes, **profile: Any
) -> AsyncIterator[Front]:
    """A front whose model sends each piece after the one before was judged."""
    gates = [asyncio.Event() for _ in pieces]
    script = [step for piece, gate in zip(pieces, gates, strict=True) for step in (piece, gate)]
    async with front([*script, DONE], profile={**SOON, **profile}, audit=records) as f:

        async def open_the_next(reply: httpx.Response) -> None:
            opened = iter(gates)
            async for _ in reply.aiter_bytes():
                if gate := next(opened, None):
                    gate.set()

        async with f.streaming() as reply:
            await open_the_next(reply)
        yield f


async def test_a_stream_has_one_record_of_the_text_that_its_verdict_is_about(
    front: Open, records: Records
) -> None:
    pieces = (delta("x" * 8), delta("crude" + "y" * 20), delta("never", finish="stop"))
    async with paced(front, records, *pieces):
        pass
    [_, answer] = records.written
    assert answer["action"] == "blocked"
    assert answer["response_digest"] == digest("x" * 8 + "crude" + "y" * 20)


async def test_a_monitored_stream_is_recorded_with_its_first_violation(
    front: Open, records: Records
) -> None:
    pieces = (delta("crude" + "x" * 8), delta("y" * 40), delta("z", finish="stop"))
    async with paced(front, records, *pieces, mode="monitor"):
        pass
    [_, answer] = records.written
    assert answer["action"] == "would_block"
    assert answer["response_digest"] == digest("crude" + "x" * 8)


async def test_an_allowed_stream_is_recorded_whole(front: Open, records: Records) -> None:
    async with front(streamed("a kind answer"), profile=SOON, audit=records) as f:
        await f.stream()
    assert records.written[-1]["response_digest"] == digest("a kind answer")


async def test_the_log_has_the_same_record(served: Gateway, restored_logging: None) -> None:
    logs = io.StringIO()
    configure_logging("info", as_json=True, stream=logs)
    reply = await served.client.post("/v1/screen", json={"prompt": "bread"})
    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    [record] = [line for line in lines if line["event"] == "decision"]
    assert record["request_id"] == reply.headers["x-request-id"]
    assert record["prompt_digest"] == digest("bread")
    assert record["policies"]["test/threat"]["threshold"] == 0.5


def test_text_that_is_no_unicode_has_a_digest_too() -> None:
    assert len(Audit(AUDIT_SECRET).digest("\ud800")) == 64


async def test_a_record_names_the_key_of_its_caller(
    scorer: FakeScorer, records: Records, tmp_path: Path
) -> None:
    file = written(tmp_path, entry("web", "sg-secret"))
    async with gateway(scorer, audit=records, keys=file) as served:
        headers = {"authorization": "Bearer sg-secret"}
        await served.client.post("/v1/screen", json={"prompt": "bread"}, headers=headers)
    [record] = records.written
    assert record["caller"] == "web"
    assert "sg-secret" not in json.dumps(record)


async def test_the_text_log_says_a_decision_in_one_line_for_people(
    scorer: FakeScorer, records: Records, tmp_path: Path, restored_logging: None
) -> None:
    file = written(tmp_path, entry("web-application", "sg-secret"))
    logs = io.StringIO()
    configure_logging("info", as_json=False, stream=logs)
    async with gateway(scorer, audit=records, keys=file) as served:
        served.client.headers["authorization"] = "Bearer sg-secret"
        blocked = {"prompt": "crude, buy", "policies": ["spam"]}
        ids = [
            (await served.client.post("/v1/screen", json=body)).headers["x-request-id"]
            for body in ({"prompt": "bread"}, blocked)
        ]
        scorer.failure = ScorerUnavailable("it is away")
        await served.client.post("/v1/screen", json={"prompt": "toast"})
    lines = [line for line in logs.getvalue().splitlines() if " prompt, " in line]
    said = (
        "[info] allowed prompt, test/threat 0.002 ",
        "[info] blocked prompt, test/threat 0.953 +1 ",
        "[info] failed_closed prompt, ScorerUnavailable ",
    )
    for line, start in zip(lines, said, strict=True):
        assert start in line
        assert line.rstrip().endswith(" caller=web-application")
        # With the longest words of the shipped book.
        assert len(line.replace("test/threat", "shieldgemma/harassment")) <= 160
    assert [re.search(r"request_id=(\w+)", line)[1] for line in lines[:2]] == ids
    assert all(record["policies"] for record in records.written)


def test_of_a_block_the_policy_that_is_violated_is_said_though_another_is_more_probable() -> None:
    record = {
        "action": "blocked",
        "direction": "response",
        "violated": ["acme/spam"],
        "policies": {"acme/spam": {"probability": 0.4}, "acme/tea": {"probability": 0.8}},
        "failure": None,
    }
    assert in_short(record) == "blocked response, acme/spam 0.400"
    allowed = record | {"action": "allowed", "violated": []}
    assert in_short(allowed) == "allowed response, acme/tea 0.800"
