"""Log lines, for people or as JSON, that never quote an exception's message."""

import logging
import sys
import traceback
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from shieldgate.telemetry.audit import DECISION, in_short
from shieldgate.telemetry.shadow import SHADOW, shadow_in_short

Level = Literal["debug", "info", "warning", "error"]

# How records are said for people, by the event of their lines.
_RECORDS = {DECISION: in_short, SHADOW: shadow_in_short}


def configure_logging(level: Level, *, as_json: bool, stream: TextIO | None = None) -> None:
    """Send the log lines of the whole process to `stream` (stderr), for people or as JSON."""
    stream = stream or sys.stderr
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_message,
    ]
    rendering: list[structlog.types.Processor] = (
        [structlog.processors.JSONRenderer()]
        if as_json
        else [
            _for_people,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False, pad_level=False),
        ]
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    # What libraries say at debug quotes headers and bodies, and httpx tells of every call.
    logging.basicConfig(
        level="INFO" if level == "debug" else level.upper(), handlers=[handler], force=True
    )
    logging.getLogger("httpx").setLevel("WARNING")
    logging.getLogger("shieldgate").setLevel(level.upper())


def log_as_library() -> None:
    """Let the program's own `logging` decide what is written, unless it configured structlog.

    Without this, structlog would print to standard output, and texts with it: of an exception it
    shows the message, and the variables of each frame.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                _without_message,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
        )


def _for_people(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Shorten a line for a terminal; of a record JSON lines have the whole."""
    event["timestamp"] = f"{event['timestamp'][:-4]}Z"  # milliseconds are enough
    if event["event"] not in _RECORDS:
        return event
    kept = ("timestamp", "level", "request_id", "caller")
    return {"event": _RECORDS[event["event"]](event)} | {
        name: event[name] for name in kept if name in event
    }


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
