"""Records of decisions, as docs/audit.md has them."""

from typing import ClassVar

from shieldgate.telemetry.record_reader import Entry, Record


class _Judged(Entry):
    margin: float


class DecisionRecord(Record):
    """What is read of a record; a policy is None where the guard failed."""

    noun: ClassVar[str] = "decision"
    written_by: ClassVar[str] = (
        "'shieldgate serve --log-format json' writes one a line, with 'decision' as its event."
    )

    scorer: str
    policies: dict[str, _Judged | None]
    prompt_digest: str | None = None
    response_digest: str | None = None
