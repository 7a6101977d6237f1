"""What the operator sees: metrics and log lines.

Labels come from the policy files, the routes and fixed words, never from callers. Neither
metrics nor log lines carry user text; that includes the messages of unknown exceptions, which
may quote it.
"""

from shieldgate.telemetry.logs import Level, configure_logging
from shieldgate.telemetry.metrics import (
    Breaker,
    BreakerState,
    Found,
    GuardFailure,
    Outcome,
    Phase,
    Telemetry,
)

__all__ = [
    "Breaker",
    "BreakerState",
    "Found",
    "GuardFailure",
    "Level",
    "Outcome",
    "Phase",
    "Telemetry",
    "configure_logging",
]
