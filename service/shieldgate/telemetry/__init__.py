"""What the operator sees: metrics, log lines, traces and a record of each decision.

Labels come from the policy files, the routes and fixed words, never from callers. None of it
carries user text; that includes the messages of unknown exceptions, which
may quote it.
"""

from shieldgate.telemetry.audit import Audit, Decision, Sink
from shieldgate.telemetry.logs import Level, configure_logging, log_as_library
from shieldgate.telemetry.metrics import (
    Breaker,
    BreakerState,
    Found,
    GuardFailure,
    Outcome,
    Phase,
    Telemetry,
)
from shieldgate.telemetry.traces import Traces, Untraced

__all__ = [
    "Audit",
    "Breaker",
    "BreakerState",
    "Decision",
    "Found",
    "GuardFailure",
    "Level",
    "Outcome",
    "Phase",
    "Sink",
    "Telemetry",
    "Traces",
    "Untraced",
    "configure_logging",
    "log_as_library",
]
