"""Where commands find records: in logs, on standard input, or in the Redis of gateways."""

import asyncio
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.text_lines import lines, opened
from shieldgate.given_settings import flag, variable
from shieldgate.plural import counted
from shieldgate.telemetry.record_reader import Record, RecordReader, in_utc

R = TypeVar("R", bound=Record)

_REDIS = "In Redis"

LogsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|-",
        help="Records: logs of `serve --log-format json`, plain or .gz, or - for standard input. "
        "Default: the stream in Redis.",
    ),
]
SinceFlag = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Pass over what was decided before: 2026-11-26, or 2026-11-26T08:00 (UTC, where it "
        "names no other).",
    ),
]
RedisFlag = Annotated[
    str | None,
    typer.Option(
        flag("redis_url"),
        metavar="URL",
        envvar=variable("redis_url"),
        help="The Redis of the gateways. Flags show in process lists: prefer the variable.",
        rich_help_panel=_REDIS,
    ),
]
StreamFlag = Annotated[
    str | None,
    typer.Option(
        flag("audit_stream"),
        metavar="NAME",
        envvar=variable("audit_stream"),
        help="The stream that they append records of decisions to.",
        rich_help_panel=_REDIS,
    ),
]


@dataclass(frozen=True, slots=True)
class RecordSource:
    """Logs, or else a stream, which is named by `audit_stream` and `suffix`."""

    logs: list[str] | None
    redis_url: str | None
    audit_stream: str | None
    suffix: str = ""

    def read(self, reader: RecordReader[R]) -> Iterator[R]:
        """Read the records; raise ConfigurationError, also where there is none."""
        if self.logs:
            for log in self.logs:
                yield from _of_log(log, reader)
            name = ", ".join(self.logs)
        elif self.redis_url and self.audit_stream:
            name = self.audit_stream + self.suffix
            yield from _of_stream(self.redis_url, name, reader)
        else:
            raise ConfigurationError(
                "Give the records: a log, - for standard input, or the stream of the gateways by "
                f"{flag('audit_stream')} and {variable('redis_url')}."
            )
        if not reader.found:
            raise ConfigurationError(f"{name}: {_nothing(reader)}")


def _of_log(log: str, reader: RecordReader[R]) -> Iterator[R]:
    if log == "-":
        # Anew, because what stands in for standard input can't always be peeked into.
        file: Any = io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer))
        yield from reader.of_lines(line for _, line in lines(file, Path("standard input")))
        return
    path = Path(log)
    with opened(path) as file:
        yield from reader.of_lines(line for _, line in lines(file, path))


def _of_stream(url: str, stream: str, reader: RecordReader[R]) -> Iterator[R]:
    # Here, because logs are read without redis-py.
    from shieldgate.redis.audit_stream import read_audit_stream  # noqa: PLC0415

    pages = read_audit_stream(url, stream, reader.since)

    async def following() -> list[tuple[datetime, bytes]] | None:
        return await anext(pages, None)

    with asyncio.Runner() as runner:
        while (page := runner.run(following())) is not None:
            for at, data in page:
                yield from reader.read(data, at)


def _nothing(reader: RecordReader[R]) -> str:
    noun = reader.kind.noun
    if reader.earlier:
        return f"it has {counted(reader.earlier, noun)} from before --since, and none after."
    return f"there is no record of a {noun} in it. {reader.kind.written_by}"


def since_time(given: str | None) -> datetime | None:
    """Read --since; raise ConfigurationError."""
    if given is None:
        return None
    try:
        return in_utc(datetime.fromisoformat(given))
    except ValueError:
        raise ConfigurationError(
            f"--since: {given!r} is no time; write 2026-11-26 or 2026-11-26T08:00."
        ) from None
