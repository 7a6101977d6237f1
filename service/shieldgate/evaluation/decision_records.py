"""Reads records of decisions back, as docs/audit.md has them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from shieldgate.evaluation.text_lines import Line
from shieldgate.types import Direction


class _Judged(BaseModel):
    margin: float


class DecisionRecord(BaseModel):
    """What is read of a record; a policy is None where the guard failed."""

    model_config = ConfigDict(frozen=True)

    direction: Direction
    scorer: str
    policies: dict[str, _Judged | None]
    timestamp: datetime | None = None
    prompt_digest: str | None = None
    response_digest: str | None = None


@dataclass(slots=True)
class RecordReader:
    """Finds the records among log lines or the entries of a stream, and counts what is none.

    Of records with a time those before `since` are passed over.
    """

    since: datetime | None = None
    others: int = field(default=0, init=False)
    earlier: int = field(default=0, init=False)

    def of_lines(self, lines: Iterable[Line]) -> Iterator[DecisionRecord]:
        """Read lines of JSON."""
        for _, line in lines:
            yield from self.read(line or b"")

    def read(self, data: bytes, at: datetime | None = None) -> Iterator[DecisionRecord]:
        """Read one record, of the time `at` where it says none."""
        try:
            record = DecisionRecord.model_validate(orjson.loads(data))
        except (orjson.JSONDecodeError, ValidationError):
            self.others += bool(data.strip())
            return
        record = record.model_copy(update={"timestamp": _in_utc(record.timestamp or at)})
        if self.since and record.timestamp and record.timestamp < self.since:
            self.earlier += 1
        else:
            yield record


def _in_utc(time: datetime | None) -> datetime | None:
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)
