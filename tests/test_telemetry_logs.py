"""Log lines tell of the service, and never of what users wrote."""

import io
import json
import logging

import pytest
import structlog

from shieldgate.telemetry import configure_logging

CANARY = "canary-51e0"


@pytest.fixture
def json_logs(restored_logging: None) -> io.StringIO:
    stream = io.StringIO()
    configure_logging("info", as_json=True, stream=stream)
    return stream


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
