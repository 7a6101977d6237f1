"""Reads records back out of a log, or out of a Redis stream."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import ClassVar, Generic, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from shieldgate.types import Direction


class Entry(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Record(Entry):
    """A record, as far as it is read; `noun` says what it is of, `written_by` how it came."""

    noun: ClassVar[str]
    written_by: ClassVar[str]

    direction: Direction
    timestamp: datetime | None = None

    @field_validator("timestamp")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        return in_utc(time) if time else None


R = TypeVar("R", bound=Record)


class RecordReader(Generic[R]):
    """Finds records of one kind among others, and counts what is none.

    Of records with a time those before `since` are passed over, and counted as `earlier`.
    """

    def __init__(self, kind: type[R], since: datetime | None = None) -> None:
        self.kind = kind
        self.since = since
        self.found = 0
        self.others = 0
        self.earlier = 0

    def of_lines(self, lines: Iterable[bytes | None]) -> Iterator[R]:
        """Read lines of JSON; what is too long to be held is None."""
        for line in lines:
            yield from self.read(line or b"")

    def read(self, data: bytes, at: datetime | None = None) -> Iterator[R]:
        """Read one record, of the time `at` where it says none."""
        try:
            record = self.kind.model_validate(orjson.loads(data))
        except (orjson.JSONDecodeError, ValidationError):
            self.others += bool(data.strip())
            return
        if at and record.timestamp is None:
            record = record.model_copy(update={"timestamp": at})
        if self.since and record.timestamp and record.timestamp < self.since:
            self.earlier += 1
        else:
            self.found += 1
            yield record


def in_utc(time: datetime) -> datetime:
    """Take a time that names no zone for UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)
