"""Records of second opinions, as docs/shadow.md has them."""

from typing import ClassVar

from shieldgate.telemetry.record_reader import Entry, Record
from shieldgate.types import Action

STREAM = ":shadow"
"""What the name of their Redis stream has after that of the records of decisions."""


class Side(Entry):
    """What one of the two says of an exchange, and who that is."""

    action: Action
    violated: list[str]
    profile: str
    policy_book: str
    scorer: str


class Reading(Entry):
    """A policy's probability, in 0..1."""

    probability: float


class Readings(Entry):
    """Both readings of a policy; None where it was not judged."""

    in_force: Reading | None
    candidate: Reading | None


class ShadowRecord(Record):
    """What a report needs of a record."""

    noun: ClassVar[str] = "second opinion"
    written_by: ClassVar[str] = (
        "'shieldgate serve --shadow-policies DIR --log-format json' writes one a line, with "
        "'shadow' as its event."
    )

    id: str
    in_force: Side
    candidate: Side
    policies: dict[str, Readings]
    share: float
    tokens: int
    seconds: float
