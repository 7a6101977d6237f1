"""Every metric of the service, on an injected registry; docs/metrics.md lists them.

Where PROMETHEUS_MULTIPROC_DIR names a directory, the processes of one machine add their figures
up there, and each of them shows the sum.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, cast, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from shieldgate.drift import PARTS, Drift
from shieldgate.telemetry.score_window import ScoreWindow
from shieldgate.telemetry.traces import NoTraces, Traces
from shieldgate.types import Action, Direction, Verdict

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_PIECES = (1, 2, 4, 8, 16, 32, 64)
_PROBABILITIES = tuple(n / 20 for n in range(1, 21))

Phase = Literal["cache", "tokenise", "queue", "forward", "upstream", "held"]
Outcome = Literal[
    "answered",
    "blocked",
    "refused",
    "limited",
    "unjudged",
    "upstream_failed",
    "cut_off",
    "left",
    "failed",
]
RemoteReply = Literal["answered", "unreachable", "busy", "refused", "failed", "timeout"]
CacheLevel = Literal["memory", "redis", "miss"]
CascadePart = Literal["first", "second"]
BreakerName = Literal["scorer", "redis_read", "redis_write"]
GuardFailure = Literal["timeout", "failure", "overloaded", "breaker"]
TextStorage = Literal["kept", "dropped", "failed"]
ExpectedScores = Literal["calibration", "accepted"]
BreakerState = Literal["closed", "half_open", "open"]


class Telemetry:
    """Every metric of the service; also the observer of the batcher, the guard and the cache.

    Each phase that is measured is also a span of `traces`.
    """

    def __init__(self, registry: CollectorRegistry, traces: Traces | None = None) -> None:
        self.registry = registry
        self.traces = traces or NoTraces()
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        seconds = partial(histogram, buckets=SECONDS)
        self._requests = counter(
            "shieldgate_requests", "Requests answered.", ["route", "status", "outcome"]
        )
        self._request_seconds = seconds(
            "shieldgate_request_seconds",
            "Time from a request's head to the end of its reply.",
            ["route"],
        )
        self._in_progress = gauge(
            "shieldgate_requests_in_progress",
            "Requests that are being answered.",
            multiprocess_mode="livesum",
        )
        self._first_byte = seconds(
            "shieldgate_stream_first_byte_seconds",
            "Time from a request's head to the first byte of its streamed answer.",
            ["route"],
        )
        self._phases = seconds(
            "shieldgate_phase_seconds",
            "Time that a text spent in one phase of its screening.",
            ["phase"],
        )
        self._verdicts = counter(
            "shieldgate_verdicts",
            "Exchanges judged, by policy; the result of a policy that is not violated is allowed.",
            ["policy", "direction", "result"],
        )
        self._probabilities = histogram(
            "shieldgate_probability",
            "Violation probabilities.",
            ["policy", "direction"],
            buckets=_PROBABILITIES,
        )
        self.window = ScoreWindow()
        self._scores = gauge(
            "shieldgate_drift_scores",
            "Scores of the last day, by the part of calibration's scores that they are in.",
            ["policy", "direction", "part"],
            multiprocess_mode="livesum",
        )
        self._psi = gauge(
            "shieldgate_drift_psi",
            "Population stability index of these scores, less what is expected of it by chance.",
            ["policy", "direction", "expected"],
            multiprocess_mode="livemostrecent",
        )
        self._psi_by_chance = gauge(
            "shieldgate_drift_psi_by_chance",
            "What the index exceeds in 1 of 1,000 samples where nothing has moved.",
            ["policy", "direction", "expected"],
            multiprocess_mode="livemostrecent",
        )
        # What was shown stays a series: those of other processes can't be removed.
        self._parted: set[tuple[str, Direction]] = set()
        self._drifts: set[tuple[str, Direction, ExpectedScores]] = set()
        self._unsupported_languages = counter(
            "shieldgate_unsupported_language",
            "Exchanges judged, or refused, whose text seems to be in a language that the scorer is "
            "not said to know.",
            ["language", "direction"],
        )
        self._text_tokens = histogram(
            "shieldgate_text_tokens",
            "Tokens that scoring one text takes, with all its policies.",
            buckets=_TOKENS,
        )
        self._forward_seconds = seconds("shieldgate_forward_seconds", "Duration of a forward pass.")
        self._forward_tokens = histogram(
            "shieldgate_forward_tokens", "Tokens packed into a forward pass.", buckets=_TOKENS
        )
        self._forward_pieces = histogram(
            "shieldgate_forward_pieces",
            "Pieces of text that shared a forward pass.",
            buckets=_PIECES,
        )
        self._queued = gauge(
            "shieldgate_queued_pieces",
            "Pieces of text that wait for a forward pass.",
            multiprocess_mode="livesum",
        )
        self._remote_requests = counter(
            "shieldgate_remote_requests",
            "Requests to engines elsewhere that score.",
            ["engine", "reply"],
        )
        self._remote_seconds = seconds(
            "shieldgate_remote_seconds",
            "Time from a request to an engine elsewhere to the end of its reply.",
            ["engine"],
        )
        self._replicas = gauge(
            "shieldgate_remote_up",
            "1 while texts go to this server, 0 while it is left out.",
            ["server"],
            multiprocess_mode="livemin",
        )
        self._lookups = counter(
            "shieldgate_cache_lookups", "Scores looked up, by where they were found.", ["level"]
        )
        self._cascaded = counter(
            "shieldgate_cascade_scores",
            "Scores of a cascade, by the scorer that decided.",
            ["scorer"],
        )
        self._guard_failures = counter(
            "shieldgate_guard_failures", "Exchanges that got no score.", ["reason"]
        )
        self._unconfirmed = counter(
            "shieldgate_audit_unconfirmed",
            "Records of decisions that Redis has not confirmed in time.",
        )
        self._kept_texts = counter(
            "shieldgate_kept_texts",
            "Texts that were chosen to be kept for review, by what became of them.",
            ["storage"],
        )
        self._breakers = gauge(
            "shieldgate_breaker_state",
            "0 while a breaker is closed, 1 while it probes, 2 while it is open.",
            ["breaker"],
            multiprocess_mode="livemax",
        )
        self.breaker("scorer", "closed")
        self._ready = gauge(
            "shieldgate_ready",
            "1 while texts can be scored.",
            multiprocess_mode="livemin",
        )
        self._refused = gauge(
            "shieldgate_policies_refused",
            "1 while the policy files are refused and an older book is in force.",
            multiprocess_mode="livemax",
        )
        self._keys_refused = gauge(
            "shieldgate_keys_refused",
            "1 while the file of API keys is refused and older keys are in force.",
            multiprocess_mode="livemax",
        )

    def page(self) -> bytes:
        """Write all metrics in Prometheus' text format."""
        return generate_latest(self.gathered())

    def gathered(self) -> CollectorRegistry:
        """Give the registry of all processes that add up, which is this one's where it is alone."""
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not directory:
            return self.registry
        _forget_ended_processes(Path(directory))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
        return registry

    def began(self) -> None:
        """Count a request in."""
        self._in_progress.inc()

    def ended(self, route: str, status: int, outcome: Outcome, seconds: float) -> None:
        """Count a request out; `route` is the path's pattern, not what was asked for."""
        self._in_progress.dec()
        self._requests.labels(route, str(status), outcome).inc()
        self._request_seconds.labels(route).observe(seconds)

    def first_byte(self, route: str, seconds: float) -> None:
        """Take when the first byte of a streamed answer left, counted from the request's head."""
        self._first_byte.labels(route).observe(seconds)

    def phase(self, phase: Phase, seconds: float) -> None:
        """Take how long a text was in a phase that has just ended."""
        self._phases.labels(phase).observe(seconds)
        self.traces.add_ended(phase, seconds)

    def verdict(self, verdict: Verdict, policies: Iterable[str]) -> None:
        """Count a verdict on `policies`, and the probabilities it rests on."""
        if language := verdict.unsupported_language:
            self._unsupported_languages.labels(language, verdict.direction).inc()
        violated = set(verdict.violated)
        for policy in policies:
            held = verdict.judgements and policy not in violated
            result = Action.ALLOWED if held else verdict.action
            self._verdicts.labels(policy, verdict.direction, result.value).inc()
        for judgement in verdict.judgements:
            self._probabilities.labels(judgement.policy, verdict.direction).observe(
                judgement.probability
            )
        self.window.add(verdict)

    def scores_in_parts(self, counts: Mapping[tuple[str, Direction], Sequence[float]]) -> None:
        """Show how many scores of this process are in which part of those that are expected."""
        self._parted |= counts.keys()
        for at in self._parted:
            parts = counts.get(at, ())
            for part in range(PARTS):
                self._scores.labels(*at, part).set(parts[part] if part < len(parts) else 0)

    def all_scores_in_parts(self) -> dict[tuple[str, Direction], list[float]]:
        """Read what `scores_in_parts` showed, of all processes that add up."""
        found: dict[tuple[str, Direction], list[float]] = {}
        for metric in self.gathered().collect():
            for name, labels, value, *_ in metric.samples:
                if name == "shieldgate_drift_scores":
                    at = labels["policy"], cast("Direction", labels["direction"])
                    found.setdefault(at, [0.0] * PARTS)[int(labels["part"])] = value
        return found

    def drifted(self, found: Mapping[tuple[str, Direction, ExpectedScores], Drift | None]) -> None:
        """Show how far scores have moved from which; what can't be told is NaN, above no limit."""
        self._drifts |= found.keys()
        for at in self._drifts:
            drift = found.get(at)
            self._psi.labels(*at).set(drift.psi if drift else math.nan)
            self._psi_by_chance.labels(*at).set(drift.by_chance if drift else math.nan)

    def ready(self, ready: bool) -> None:
        """Say whether texts can be scored."""
        self._ready.set(ready)

    def policies_refused(self, refused: bool) -> None:
        """Say whether the policy files are refused."""
        self._refused.set(refused)

    def guard_failed(self, reason: GuardFailure) -> None:
        """Count an exchange that got no score."""
        self._guard_failures.labels(reason).inc()

    def cascaded(self, *, sure: int, asked: int) -> None:
        """Count scores of a cascade that the first scorer was sure of, and those of the second."""
        part: CascadePart
        for part, scores in (("first", sure), ("second", asked)):
            self._cascaded.labels(part).inc(scores)

    def audit_unconfirmed(self) -> None:
        """Count a record that may be missing in the Redis stream."""
        self._unconfirmed.inc()

    def kept_texts(self, storage: TextStorage, texts: int) -> None:
        """Count texts that were kept, were dropped for want of room, or could not be stored."""
        self._kept_texts.labels(storage).inc(texts)

    def breaker(self, breaker: BreakerName, state: BreakerState) -> None:
        """Say how a breaker stands."""
        self._breakers.labels(breaker).set(get_args(BreakerState).index(state))

    def keys_refused(self, refused: bool) -> None:
        """Say whether the file of API keys is refused."""
        self._keys_refused.set(refused)

    def queued(self, pieces: int) -> None:
        """Take the number of pieces that wait for a forward pass."""
        self._queued.set(pieces)

    def tokenised(self, tokens: int) -> None:
        """Take how many tokens the scoring of a text takes."""
        self._text_tokens.observe(tokens)

    def forward(self, seconds: float, tokens: int, pieces: int) -> None:
        """Take the duration and size of a forward pass."""
        self._forward_seconds.observe(seconds)
        self._forward_tokens.observe(tokens)
        self._forward_pieces.observe(pieces)

    def remote_request(self, engine: str, reply: RemoteReply, seconds: float) -> None:
        """Take how a request to an engine elsewhere ended, and how long it took."""
        self._remote_requests.labels(engine, reply).inc()
        self._remote_seconds.labels(engine).observe(seconds)

    def replica(self, replica: str, up: bool) -> None:
        """Take whether texts go to a server elsewhere."""
        self._replicas.labels(replica).set(up)

    def trace_headers(self) -> Mapping[str, str]:
        """Give the headers by which others continue the span that is open."""
        return self.traces.headers()

    def looked_up(self, found: Mapping[CacheLevel, int]) -> None:
        """Take how many of a call's scores were found where, or nowhere."""
        for level, scores in found.items():
            self._lookups.labels(level).inc(scores)


def _forget_ended_processes(directory: Path) -> None:
    """Drop the gauges of processes that have ended; what they counted stays."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in directory.glob("gauge_live*_*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
        except PermissionError:
            pass  # alive, under another user
