"""What the operator sees: metrics on an injected registry, and log lines.

Labels come from the policy files, the routes and fixed words, never from callers. Neither
metrics nor log lines carry user text; that includes the messages of unknown exceptions, which
may quote it.
"""

import logging
import sys
import traceback
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shieldgate.types import Action, Verdict

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_PIECES = (1, 2, 4, 8, 16, 32, 64)
_BREAKER = ("closed", "half_open", "open")
_PROBABILITIES = tuple(n / 20 for n in range(1, 21))

Level = Literal["debug", "info", "warning", "error"]


class Telemetry:
    """Every metric of the service; also the observer of the batcher, the guard and the cache."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics."""
        self.registry = registry
        self._requests = Counter(
            "shieldgate_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "shieldgate_request_seconds",
            "Time from a request's head to the end of its reply.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._verdicts = Counter(
            "shieldgate_verdicts",
            "Exchanges judged, by policy; the result of a policy that is not violated is allowed.",
            ["policy", "direction", "result"],
            registry=registry,
        )
        self._probabilities = Histogram(
            "shieldgate_probability",
            "Violation probabilities.",
            ["policy"],
            buckets=_PROBABILITIES,
            registry=registry,
        )
        self._forward_seconds = Histogram(
            "shieldgate_forward_seconds",
            "Duration of a forward pass.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._forward_tokens = Histogram(
            "shieldgate_forward_tokens",
            "Tokens in a forward pass.",
            buckets=_TOKENS,
            registry=registry,
        )
        self._forward_pieces = Histogram(
            "shieldgate_forward_pieces",
            "Pieces of text that shared a forward pass.",
            buckets=_PIECES,
            registry=registry,
        )
        self._queued = Gauge(
            "shieldgate_queued_pieces",
            "Pieces of text that wait for a forward pass.",
            registry=registry,
        )
        self._guard_failures = Counter(
            "shieldgate_guard_failures",
            "Exchanges that got no score: timeout, failure, overloaded, or refused by the breaker.",
            ["reason"],
            registry=registry,
        )
        self._breaker = Gauge(
            "shieldgate_breaker",
            "1 for the state of the scorer's breaker: closed, half_open or open.",
            ["state"],
            registry=registry,
        )
        self.breaker("closed")
        self._lookups = Counter(
            "shieldgate_cache_lookups", "Scores looked up.", ["result"], registry=registry
        )
        self._ready = Gauge(
            "shieldgate_ready", "1 once the scorer is loaded and checked.", registry=registry
        )
        self._refused = Gauge(
            "shieldgate_policies_refused",
            "1 while the policy files are refused and an older book is in force.",
            registry=registry,
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request answered; `route` is the path's pattern, not what was asked for."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def verdict(self, verdict: Verdict, policies: Iterable[str]) -> None:
        """Count a verdict on `policies`, and the probabilities it rests on."""
        violated = set(verdict.violated)
        for policy in policies:
            held = verdict.judgements and policy not in violated
            result = Action.ALLOWED if held else verdict.action
            self._verdicts.labels(policy, verdict.direction, result.value).inc()
        for judgement in verdict.judgements:
            self._probabilities.labels(judgement.policy).observe(judgement.probability)

    def ready(self, ready: bool) -> None:
        """Say whether texts can be scored."""
        self._ready.set(ready)

    def policies_refused(self, refused: bool) -> None:
        """Say whether the policy files are refused."""
        self._refused.set(refused)

    def queued(self, pieces: int) -> None:
        """Take the number of pieces that wait for a forward pass."""
        self._queued.set(pieces)

    def forward(self, seconds: float, tokens: int, pieces: int) -> None:
        """Take the duration and size of a forward pass."""
        self._forward_seconds.observe(seconds)
        self._forward_tokens.observe(tokens)
        self._forward_pieces.observe(pieces)

    def guard_failed(self, reason: str) -> None:
        """Count an exchange that got no score."""
        self._guard_failures.labels(reason).inc()

    def breaker(self, state: str) -> None:
        """Take the state of the scorer's breaker."""
        for each in _BREAKER:
            self._breaker.labels(each).set(each == state)

    def looked_up(self, hits: int, misses: int) -> None:
        """Take how many of a call's policies were known, or not."""
        self._lookups.labels("hit").inc(hits)
        self._lookups.labels("miss").inc(misses)


def configure_logging(level: Level, *, as_json: bool, stream: TextIO | None = None) -> None:
    """Send the log lines of the whole process to `stream` (stderr), for people or as JSON."""
    stream = stream or sys.stderr
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_message,
    ]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _without_message(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace an exception by its types and stack frames: its message may quote user text."""
    info = event.pop("exc_info", None)
    if info:
        error = info if isinstance(info, BaseException) else sys.exc_info()[1]
        if isinstance(info, tuple):
            error = info[1]
        event["exception"] = "".join(_frames(error))
    return event


def _frames(error: BaseException | None) -> Iterable[str]:
    while error is not None:
        yield f"{type(error).__module__}.{type(error).__qualname__}\n"
        yield from traceback.format_tb(error.__traceback__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if error is not None:
            yield "caused by "
