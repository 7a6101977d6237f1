"""Records of second opinions, as they come: out of a log, or of a Redis stream."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from shieldgate.types import Action, Direction

STREAM = ":shadow"
"""What the name of their Redis stream has after that of the records of decisions."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class Side(_Entry):
    """What one of the two says of an exchange, and who that is."""

    action: Action
    violated: list[str]
    profile: str
    policy_book: str
    scorer: str


class Reading(_Entry):
    """A policy's probability, in 0..1."""

    probability: float


class Readings(_Entry):
    """Both readings of a policy; None where it was not judged."""

    in_force: Reading | None
    candidate: Reading | None


class ShadowRecord(_Entry):
    """A record as docs/shadow.md has it, as far as a report needs it."""

    id: str
    timestamp: datetime | None = None
    direction: Direction
    in_force: Side
    candidate: Side
    policies: dict[str, Readings]
    share: float
    tokens: int
    seconds: float


@dataclass(slots=True)
class ShadowRecords:
    """Finds the records among other lines of a log, and counts those `earlier` than `since`."""

    since: datetime | None = None
    earlier: int = field(default=0, init=False)

    def of_lines(self, lines: Iterable[bytes | None]) -> Iterator[ShadowRecord]:
        """Read lines of JSON; what is too long to be held is None."""
        for line in lines:
            yield from self.read(line or b"")

    def read(self, data: bytes, at: datetime | None = None) -> Iterator[ShadowRecord]:
        """Read one record, of the time `at` where it says none."""
        try:
            record = ShadowRecord.model_validate(orjson.loads(data))
        except (orjson.JSONDecodeError, ValidationError):
            return
        time = record.timestamp or at
        if self.since and time and (time if time.tzinfo else time.replace(tzinfo=UTC)) < self.since:
            self.earlier += 1
        else:
            yield record
