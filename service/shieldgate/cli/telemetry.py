"""Builds metrics and traces, as the environment's own variables for them say."""

import os
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from shieldgate.errors import ConfigurationError
from shieldgate.telemetry import NoTraces, Telemetry, Traces

log = structlog.get_logger(__name__)


def build_telemetry() -> Telemetry:
    """Build the metrics and traces of this process; raise ConfigurationError."""
    if shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        try:
            Path(shared).mkdir(parents=True, exist_ok=True)
        except OSError as refused:
            raise ConfigurationError(
                f"PROMETHEUS_MULTIPROC_DIR {shared!r} is refused: {refused.strerror}. Give a "
                "directory that all processes may write to."
            ) from refused
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return Telemetry(registry, build_traces())


def build_traces() -> Traces:
    """Open traces where OpenTelemetry's variables ask for them; raise ConfigurationError."""
    given = os.environ.get
    wanted = given("OTEL_EXPORTER_OTLP_ENDPOINT") or given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    exporter = given("OTEL_TRACES_EXPORTER") or ("otlp" if wanted else "none")
    if exporter == "none" or given("OTEL_SDK_DISABLED", "").lower() == "true":
        return NoTraces()
    try:
        # Here, because it is an extra.
        from shieldgate.telemetry.otel import OpenTelemetry  # noqa: PLC0415
    except ModuleNotFoundError:
        # Clusters set these variables for everything that runs in them.
        log.warning("no traces: OpenTelemetry needs pip install 'shieldgate[otel]'")
        return NoTraces()
    return OpenTelemetry.configured()
