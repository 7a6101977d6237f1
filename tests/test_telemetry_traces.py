"""Traces tell what a request waited for, and go where OpenTelemetry's variables say."""

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fakes import FakeScorer, small_book
from front import Open
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from serving import gateway
from upstream import streamed

from shieldgate.cli.telemetry import build_traces
from shieldgate.errors import ConfigurationError
from shieldgate.policy import Policy
from shieldgate.scoring import Batched, Cached, Prepared
from shieldgate.telemetry import NoTraces, Telemetry
from shieldgate.telemetry.otel import OpenTelemetry
from shieldgate.types import Exchange

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> OpenTelemetry:
    return OpenTelemetry(SimpleSpanProcessor(exporter))


def parents(spans: tuple[ReadableSpan, ...]) -> dict[str, set[str]]:
    """The names of the spans within each span."""
    names = {span.context.span_id: span.name for span in spans}
    found: dict[str, set[str]] = {}
    for span in spans:
        parent = names.get(span.parent.span_id, "caller") if span.parent else "nothing"
        found.setdefault(parent, set()).add(span.name)
    return found


async def test_a_chat_is_one_trace_from_the_caller_to_the_model(
    front: Open, exporter: InMemorySpanExporter, traces: OpenTelemetry
) -> None:
    async with front(
        streamed("a kind answer"), telemetry=Telemetry(CollectorRegistry(), traces)
    ) as f:
        body = f.body("bread", stream=True)
        headers = {"traceparent": CALLER, "tracestate": "vendor=told"}
        await f.gateway.client.post("/v1/chat/completions", json=body, headers=headers)
        sent = f.script.requests[0]["headers"]["traceparent"]
    spans = exporter.get_finished_spans()
    assert parents(spans) == {
        "caller": {"/v1/chat/completions"},
        "/v1/chat/completions": {"judge", "upstream", "held"},
    }
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert not any(span.context.trace_state for span in spans)
    [request] = [span for span in spans if span.name == "/v1/chat/completions"]
    assert re.fullmatch(f"00-{TRACE}-{request.context.span_id:016x}-01", sent)
    assert request.attributes == {
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "shieldgate.outcome": "answered",
    }
    judged = [span.attributes for span in spans if span.name == "judge"]
    assert judged == [
        {"shieldgate.direction": direction, "shieldgate.action": "allowed"}
        for direction in ("prompt", "response")
    ]


@dataclass(frozen=True)
class Piece:
    tokens: int = 1


class Engine:
    identity = FakeScorer.identity

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        return 0

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        return Prepared((Piece(),))

    def forward(self, work: Sequence[Piece]) -> list[list[float]]:
        return [[-6.0] for _ in work]


async def test_the_phases_of_a_judgement_are_within_it(
    exporter: InMemorySpanExporter, traces: OpenTelemetry
) -> None:
    telemetry = Telemetry(CollectorRegistry(), traces)
    policies = [small_book().policies["test/threat"]]
    async with Batched(Engine(), max_batch_tokens=9, max_waiting=9, observer=telemetry) as scorer:
        cached = Cached(scorer, secret=b"x" * 16, max_entries=9, observer=telemetry)
        with traces.judging("prompt"):
            await cached.score(Exchange("bread"), policies)
    assert parents(exporter.get_finished_spans()) == {
        "nothing": {"judge"},
        "judge": {"cache", "tokenise", "queue", "forward"},
    }


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.paths: set[str] = set()


class _Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.server.paths.add(self.path)
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
            values = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.server.services.add(values["service.name"])
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_spans_go_by_otlp_and_the_last_ones_before_the_end(
    scorer: FakeScorer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{collector.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    # FastAPI's own traces would quote the path, the query and the host.
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    async with gateway(scorer, telemetry=Telemetry(CollectorRegistry(), build_traces())) as served:
        await served.client.post("/v1/screen?canary", json={"prompt": "bread"})
    assert {span.name for span in collector.spans} == {"/v1/screen", "judge"}
    assert collector.services == {"mine"}
    assert collector.paths == {"/v1/traces"}


def test_without_its_variables_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_traces(), NoTraces)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert isinstance(build_traces(), NoTraces)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert isinstance(build_traces(), NoTraces)


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
)
def test_what_can_not_be_exported_to_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="http/protobuf"):
        build_traces()
