"""`shieldgate shadow report`: what records of second opinions say, and how sure that is."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis_server import redis_server
from typer.testing import CliRunner

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError
from shieldgate.shadow.records import ShadowRecord
from shieldgate.shadow.report import report

THREAT, SPAM = "test/threat", "test/spam"


def opinion(
    number: int,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    *,
    direction: str = "prompt",
    book: str = "book-2",
    p: tuple[float, float] = (0.2, 0.3),
    **more: Any,
) -> dict[str, Any]:
    """A record, as `SecondOpinion.record` writes it."""
    who = {"profile": "default", "scorer": "s@1"}
    action = {True: "blocked", False: "allowed"}
    return {
        "event": "shadow",
        "timestamp": f"2026-11-26T10:{number % 60:02}:00Z",
        "id": f"dec_{number}",
        "direction": direction,
        "in_force": {
            **who, "policy_book": "book-1", "action": action[bool(before)], "violated": list(before)
        },
        "candidate": {
            **who, "policy_book": book, "action": action[bool(after)], "violated": list(after)
        },
        "policies": {
            THREAT: {"in_force": {"probability": p[0]}, "candidate": {"probability": p[1]}},
            SPAM: {"in_force": None, "candidate": {"probability": 0.1}},
        },
        "share": 0.1,
        "tokens": 10,
        "seconds": 0.5,
        **more,
    }  # fmt: skip


def many() -> list[dict[str, Any]]:
    """Of a hundred prompts three are newly blocked, one no longer, one by spam alone."""
    found = [opinion(n) for n in range(90)]
    found += [opinion(100 + n, [], [THREAT]) for n in range(3)]
    found += [opinion(200, [THREAT]), opinion(300, [THREAT], [THREAT, SPAM])]
    found += [opinion(400 + n, [THREAT], [THREAT], p=(0.9, 0.8)) for n in range(5)]
    return [*found, opinion(500, [], [SPAM], direction="response")]


def of(records: Sequence[dict[str, Any]]) -> Iterator[ShadowRecord]:
    return map(ShadowRecord.model_validate, records)


def test_flips_are_counted_by_policy_and_direction_with_their_intervals() -> None:
    [pair] = report(of(many()))
    assert (pair.exchanges, pair.tokens, pair.seconds) == (101, 1010, 50.5)
    assert pair.otherwise.count == 5
    prompts, responses = pair.directions
    assert (prompts.blocked_in_force, prompts.blocked_by_candidate) == (7, 9)
    assert (prompts.same.count, prompts.same.of) == (96, 100)
    newly = prompts.newly_blocked
    # 3 of 100, by Clopper and Pearson's tables.
    assert (newly.share, newly.low, newly.high) == pytest.approx((0.03, 0.0062, 0.0852), abs=1e-4)
    assert prompts.newly_blocked_ids == ("dec_100", "dec_101", "dec_102")
    assert prompts.no_longer_blocked_ids == ("dec_200",)
    spam, threat = prompts.policies
    assert (threat.newly_violated.count, threat.no_longer_violated.count) == (3, 1)
    assert (spam.newly_violated.count, spam.new, spam.gone) == (1, True, False)
    assert threat.difference.mean == pytest.approx((95 * 0.1 - 5 * 0.1) / 100)
    assert threat.difference.mean_absolute == pytest.approx(0.1)
    assert spam.difference.mean is None
    assert (responses.exchanges, responses.newly_blocked.count) == (1, 1)


def test_each_candidate_is_reported_apart() -> None:
    first, second = report(of([*many(), opinion(1, [], [THREAT], book="book-3")]))
    assert (first.candidate.policy_book, second.candidate.policy_book) == ("book-2", "book-3")
    assert (first.exchanges, second.exchanges) == (101, 1)


def log_of(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    lines = ['{"event": "listening"}', "no JSON", '{"event": "decision", "policies": {}}', ""]
    lines += [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*arguments: str | Path, **how: Any) -> Any:
    return CliRunner().invoke(app, ["shadow", "report", *map(str, arguments)], **how)


def test_a_log_is_read_past_its_other_lines(tmp_path: Path) -> None:
    log = log_of(tmp_path / "gateway.log", many())
    result = run(log)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "101 texts judged twice, a share of 0.1 of all" in said
    assert "prompt: would have blocked what passed 3 (3 %: 0.623-8.52); dec_100" in said
    assert "prompt: would have passed what was blocked 1" in said
    assert "spam (new)" in said
    assert "…" not in result.output, "it fits into a terminal"


def test_several_files_and_standard_input_are_read_as_one(tmp_path: Path) -> None:
    records = many()
    packed = tmp_path / "old.log.gz"
    packed.write_bytes(gzip.compress(log_of(tmp_path / "a", records[:50]).read_bytes()))
    rest = "".join(json.dumps(record) + "\n" for record in records[50:])
    [pair] = json.loads(run(packed, "-", "--json", input=rest).output)
    assert pair["otherwise"]["count"] == 5


def test_a_probability_that_is_no_number_is_no_record(tmp_path: Path) -> None:
    endless = opinion(1)
    endless["policies"][THREAT]["candidate"]["probability"] = "Infinity"
    log = log_of(tmp_path / "gateway.log", [*many(), endless])
    [pair] = json.loads(run(log, "--json").output)
    assert pair["exchanges"] == 101


def test_all_figures_are_there_for_programs(tmp_path: Path) -> None:
    [pair] = json.loads(run(log_of(tmp_path / "gateway.log", many()), "--json").output)
    assert pair["in_force"] == {"scorer": "s@1", "policy_book": "book-1"}
    assert pair["directions"][0]["policies"][1]["newly_violated"]["count"] == 3


@pytest.mark.parametrize(("most", "code"), [("0.2", 0), ("0.06", 3)])
def test_a_limit_holds_only_where_it_is_sure(tmp_path: Path, most: str, code: int) -> None:
    """5 of 101 were decided otherwise: at most 11 %, as far as is known."""
    log = log_of(tmp_path / "gateway.log", many())
    assert run(log, "--max-disagreement", most).exit_code == code


def refusal(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, ConfigurationError), result.output
    return str(result.exception)


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHIELDGATE_REDIS_URL", raising=False)
    empty = log_of(tmp_path / "gateway.log", [])
    assert "no record of a second opinion" in refusal(empty)
    assert "--audit-stream" in refusal()
    assert "can't be read" in refusal(tmp_path / "nowhere.log")
    assert "is no time" in refusal(empty, "--since", "yesterday")
    log = log_of(tmp_path / "gateway.log", many())
    assert "it has 101 second opinions from before --since, and none after" in refusal(
        log, "--since", "2026-11-27"
    )
    assert run(log, "--since", "2026-11-26T09:00").exit_code == 0


def test_the_stream_beside_that_of_decisions_is_read(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        with server.client() as redis:
            for record in many():
                redis.xadd("audit:shadow", {"record": json.dumps(record)})
        flags = ("--redis-url", server.url, "--audit-stream")
        result = run(*flags, "audit", "--json")
        assert json.loads(result.output)[0]["exchanges"] == 101
        assert run(*flags, "audit", "--since", "1969-01-01").exit_code == 0
        assert "There is no stream 'other:shadow'" in refusal(*flags, "other")
