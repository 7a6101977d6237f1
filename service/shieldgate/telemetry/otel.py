"""Traces by OpenTelemetry, configured by its own variables; the extra `shieldgate[otel]`.

The providers are ours alone, not the process's, and exceptions are not recorded: whoever
instruments by them would export paths, queries and messages, in which users' text may stand.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import time_ns

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shieldgate.errors import ConfigurationError
from shieldgate.telemetry.traces import Answered
from shieldgate.version import __version__


class OpenTelemetry:
    """Opens spans and hands them to `processor`; Traces.

    Sampling, limits and the service's name are the environment's.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        ours = Resource({"service.name": "shieldgate", "service.version": __version__})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("shieldgate", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def configured(cls) -> "OpenTelemetry":
        """Send spans where the environment says; raise ConfigurationError."""
        exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
        if exporter == "console":
            return cls(SimpleSpanProcessor(ConsoleSpanExporter()))
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        if exporter != "otlp" or protocol != "http/protobuf":
            raise ConfigurationError(
                f"OTEL_TRACES_EXPORTER is {exporter!r} with the protocol {protocol!r}. Traces go "
                "to 'otlp' by 'http/protobuf' (the collector's port 4318), to 'console', or to "
                "'none'."
            )
        # Here, because it is the slow part of the import.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )

        return cls(BatchSpanProcessor(OTLPSpanExporter()))

    @contextmanager
    def request(self, traceparent: str | None) -> Iterator[Answered]:
        """Open the span of a request, within the caller's where `traceparent` names one."""
        # Without `tracestate` and baggage, in which callers may write what they like.
        carrier = {"traceparent": traceparent} if traceparent else {}
        parent = self._propagator.extract(carrier, Context())
        with self._tracer.start_as_current_span(
            "request",
            parent,
            SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            def answered(route: str, status: int, outcome: str) -> None:
                span.update_name(route)
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                span.set_attribute("shieldgate.outcome", outcome)
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))

            yield answered

    @contextmanager
    def judging(self, direction: str) -> Iterator[Callable[[str], None]]:
        """Open the span of a judgement; what it gives takes the action."""
        with self._tracer.start_as_current_span(
            "judge",
            attributes={"shieldgate.direction": direction},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield lambda action: span.set_attribute("shieldgate.action", action)

    def add_ended(self, name: str, seconds: float) -> None:
        """Add a span that has just ended."""
        now = time_ns()
        self._tracer.start_span(name, start_time=now - int(seconds * 1e9)).end(now)

    def ids(self) -> Mapping[str, str]:
        """Give the id of the trace, for log lines."""
        return {"trace_id": format_trace_id(get_current_span().get_span_context().trace_id)}

    def headers(self) -> Mapping[str, str]:
        """Give the headers by which upstream continues the span that is open."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers)
        return headers

    def close(self) -> None:
        """Send what has not been sent yet; this may take a moment."""
        self._provider.force_flush()
