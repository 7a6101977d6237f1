"""Metrics tell of the service, as their page of the documentation says, and add up."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from shieldgate.telemetry import (
    BreakerName,
    CacheLevel,
    CascadePart,
    GuardFailure,
    Outcome,
    Phase,
    Telemetry,
    TextStorage,
)
from shieldgate.telemetry.metrics import ExpectedScores, RemoteReply
from shieldgate.types import Action, Direction, Judgement, Score, Verdict

DOCUMENT = Path(__file__).parents[1] / "docs" / "metrics.md"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


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
    probabilities = registry.get_sample_value(
        "shieldgate_probability_count", {"policy": "a/x", "direction": "prompt"}
    )
    assert probabilities == 1


def test_it_observes_the_batcher_the_guard_and_the_cache(registry: CollectorRegistry) -> None:
    telemetry = Telemetry(registry)
    telemetry.forward(0.5, 300, 2)
    telemetry.queued(4)
    telemetry.tokenised(150)
    telemetry.phase("queue", 0.25)
    telemetry.looked_up({"memory": 3, "miss": 1})
    telemetry.cascaded(sure=3, asked=1)
    telemetry.guard_failed("timeout")
    telemetry.breaker("scorer", "open")
    page = telemetry.page().decode().splitlines()
    for line in (
        "shieldgate_forward_seconds_sum 0.5",
        "shieldgate_forward_tokens_sum 300.0",
        "shieldgate_forward_pieces_sum 2.0",
        "shieldgate_queued_pieces 4.0",
        "shieldgate_text_tokens_sum 150.0",
        'shieldgate_phase_seconds_sum{phase="queue"} 0.25',
        'shieldgate_cache_lookups_total{level="memory"} 3.0',
        'shieldgate_cache_lookups_total{level="miss"} 1.0',
        'shieldgate_cascade_scores_total{scorer="first"} 3.0',
        'shieldgate_cascade_scores_total{scorer="second"} 1.0',
        'shieldgate_guard_failures_total{reason="timeout"} 1.0',
        'shieldgate_breaker_state{breaker="scorer"} 2.0',
    ):
        assert line in page


def rows(columns: int) -> list[list[str]]:
    """The rows of the document's tables that have so many columns, without their heads."""
    lines = (line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `"))
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [row for row in cells if len(row) == columns]


def test_the_document_lists_every_metric_and_no_other(registry: CollectorRegistry) -> None:
    metrics = [m for m in vars(Telemetry(registry)).values() if isinstance(m, MetricWrapperBase)]
    assert len(metrics) == len(list(registry.collect()))
    there = {
        m._name + "_total" * (m._type == "counter"): (m._type, tuple(m._labelnames))
        for m in metrics
    }
    listed = {
        name.strip("`"): (kind, tuple(re.findall("`(.+?)`", labels)))
        for name, kind, labels, _ in rows(4)
    }
    assert listed == there


def test_the_document_lists_every_word_of_the_labels_and_no_other() -> None:
    listed = defaultdict(list)
    for label, word, _ in rows(3):
        listed[label.strip("`")].append(word.strip("`"))
    assert listed == {
        "outcome": list(get_args(Outcome)),
        "phase": list(get_args(Phase)),
        "reply": list(get_args(RemoteReply)),
        "level": list(get_args(CacheLevel)),
        "scorer": list(get_args(CascadePart)),
        "result": list(Action),
        "direction": list(get_args(Direction)),
        "expected": list(get_args(ExpectedScores)),
        "reason": list(get_args(GuardFailure)),
        "breaker": list(get_args(BreakerName)),
        "storage": list(get_args(TextStorage)),
    }


COUNTING = """
import sys
from prometheus_client import CollectorRegistry
from shieldgate.telemetry import Telemetry

telemetry = Telemetry(CollectorRegistry())
telemetry.began()
telemetry.began()
telemetry.ended("/v1/screen", 200, "answered", 0.2)
telemetry.queued(int(sys.argv[1]))
telemetry.phase("queue", 0.25)
telemetry.ready(sys.argv[2] == "ready")
telemetry.breaker("scorer", sys.argv[3])
print("counted", flush=True)
sys.stdin.readline()
print(telemetry.page().decode(), flush=True)
sys.stdin.readline()
"""


def test_the_figures_of_several_processes_add_up(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", COUNTING, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def page(process: subprocess.Popen[str]) -> set[str]:
        assert process.stdin
        assert process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        lines = set()
        while line := process.stdout.readline().strip():
            lines.add(line)
        return lines

    with start("3", "ready", "closed") as one, start("4", "not", "open") as other:
        for process in (one, other):
            assert process.stdout
            assert process.stdout.readline() == "counted\n"
        both = {
            'shieldgate_requests_total{outcome="answered",route="/v1/screen",status="200"} 2.0',
            'shieldgate_phase_seconds_sum{phase="queue"} 0.5',
            'shieldgate_phase_seconds_bucket{le="0.25",phase="queue"} 2.0',
        }
        assert page(one) >= both | {
            "shieldgate_requests_in_progress 2.0",
            "shieldgate_queued_pieces 7.0",
            "shieldgate_ready 0.0",
            'shieldgate_breaker_state{breaker="scorer"} 2.0',
        }
        one.kill()
        one.wait()
        assert page(other) >= both | {
            "shieldgate_requests_in_progress 1.0",
            "shieldgate_queued_pieces 4.0",
            "shieldgate_ready 0.0",
        }
        other.kill()
