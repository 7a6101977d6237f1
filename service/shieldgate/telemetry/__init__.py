"""What the operator sees: metrics, log lines, traces and a record of each decision.

Labels come from the policy files, the routes and fixed words, never from callers. None of it
carries user text; that includes the messages of unknown exceptions, which
may quote it.
"""

from shieldgate.telemetry.audit import Audit, Decision, Sink
from shieldgate.telemetry.drift_watch import DriftWatch, expected_by
from shieldgate.telemetry.figures import Figures, RecentFigures
from shieldgate.telemetry.logs import configure_logging, log_as_library
from shieldgate.telemetry.metrics import (
    BreakerName,
    BreakerState,
    CacheLevel,
    CascadePart,
    GuardFailure,
    Outcome,
    Phase,
    Telemetry,
    TextStorage,
)
from shieldgate.telemetry.recent_decisions import (
    DecisionQuery,
    RecentDecisions,
    SharedDecisions,
)
from shieldgate.telemetry.shadow import Flip, SecondOpinion, ShadowOutcome, ShadowTelemetry
from shieldgate.telemetry.shadow_figures import ShadowFigures
from shieldgate.telemetry.traces import NoTraces, Traces

__all__ = [
    "Audit",
    "BreakerName",
    "BreakerState",
    "CacheLevel",
    "CascadePart",
    "Decision",
    "DecisionQuery",
    "DriftWatch",
    "Figures",
    "Flip",
    "GuardFailure",
    "NoTraces",
    "Outcome",
    "Phase",
    "RecentDecisions",
    "RecentFigures",
    "SecondOpinion",
    "ShadowFigures",
    "ShadowOutcome",
    "ShadowTelemetry",
    "SharedDecisions",
    "Sink",
    "Telemetry",
    "TextStorage",
    "Traces",
    "configure_logging",
    "expected_by",
    "log_as_library",
]
