"""Metrics and log lines tell of the service, and never of what users wrote."""

import io
import json
import logging

import pytest
import structlog
from prometheus_client import CollectorRegistry, generate_latest

from shieldgate.telemetry import Telemetry, configure_logging
from shieldgate.types import Action, Judgement, Score, Verdict

CANARY = "canary-51e0"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def json_logs(restored_logging: None) -> io.StringIO:
    stream = io.StringIO()
    configure_logging("info", as_json=True, stream=stream)
    return stream


def judgement(policy: str, *, violated: bool) -> Judgement:
    return Judgement(policy, 0.7, 0.5, violated, False, Score(0.85))


def test_a_verdict_counts_once_for_each_policy(registry: CollectorRegistry) -> None:
    telemetry = Telemetry(registry)
    judged = (judgement("a/x", violated=True), judgement("a/y", violated=False))
    telemetry.verdict(Verdict("prompt", Action.WOULD_BLOCK, judged), ["a/x", "a/y"])
    telemetry.verdict(Verdict("response", Action.FAILED_OPEN, ()), ["a/x", "a/y"])

    def count(policy: str, direction: str, result: str) -> float | None:
        labels = {"policy": policy, "direction": direction, "result": result}
        return registry.get_sample_value("shieldgate_verdicts_total", labels)

    assert count("a/x", "prompt", "would_block") == 1
    assert count("a/y", "prompt", "allowed") == 1
    assert count("a/x", "response", "failed_open") == 1
    assert count("a/y", "response", "failed_open") == 1
    assert count("a/y", "prompt", "would_block") is None
    probabilities = registry.get_sample_value("shieldgate_probability_count", {"policy": "a/x"})
    assert probabilities == 1


def test_it_observes_the_batcher_the_guard_and_the_cache(registry: CollectorRegistry) -> None:
    telemetry = Telemetry(registry)
    telemetry.forward(0.5, 300, 2)
    telemetry.queued(4)
    telemetry.looked_up(3, 1)
    telemetry.guard_failed("timeout")
    telemetry.breaker("open")
    page = generate_latest(registry).decode().splitlines()
    for line in (
        "shieldgate_forward_seconds_sum 0.5",
        "shieldgate_forward_tokens_sum 300.0",
        "shieldgate_forward_pieces_sum 2.0",
        "shieldgate_queued_pieces 4.0",
        'shieldgate_cache_lookups_total{result="hit"} 3.0',
        'shieldgate_cache_lookups_total{result="miss"} 1.0',
        'shieldgate_guard_failures_total{reason="timeout"} 1.0',
        'shieldgate_breaker{state="open"} 1.0',
        'shieldgate_breaker{state="closed"} 0.0',
    ):
        assert line in page


def boom() -> None:
    raise ValueError(f"can't handle {CANARY}")


@pytest.mark.parametrize("logger", ["structlog", "logging"])
def test_an_exception_is_logged_by_type_and_place_without_its_message(
    logger: str, json_logs: io.StringIO
) -> None:
    log = structlog.get_logger() if logger == "structlog" else logging.getLogger("some.library")
    try:
        try:
            boom()
        except ValueError as inner:
            raise RuntimeError(CANARY) from inner
    except RuntimeError:
        log.exception("it failed")
    written = json_logs.getvalue()
    assert CANARY not in written
    line = json.loads(written)
    assert line["event"] == "it failed"
    assert line["level"] == "error"
    assert "RuntimeError" in line["exception"]
    assert "ValueError" in line["exception"]
    assert "in boom" in line["exception"]


def test_lines_carry_what_is_bound_to_the_request(json_logs: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        structlog.get_logger().info("one")
    structlog.get_logger().debug("too quiet")
    [line] = json_logs.getvalue().splitlines()
    assert json.loads(line)["request_id"] == "req_1"
