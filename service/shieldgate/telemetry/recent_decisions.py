"""The last records of decisions, in memory, for whoever looks at the server now."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_KEPT = 1000


@dataclass(frozen=True, slots=True)
class RecentDecision:
    """A record, and when it was written: microseconds since the epoch, of each record others."""

    at: int
    record: Mapping[str, Any]

    @property
    def time(self) -> datetime:
        """Give when it was written."""
        return datetime.fromtimestamp(self.at / 1e6, UTC)


class RecentDecisions:
    """Keeps the last records, and forgets the older ones; a Sink of `Audit`."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept: deque[RecentDecision] = deque(maxlen=kept)

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        at = int(datetime.now(UTC).timestamp() * 1e6)
        if self._kept:
            at = max(at, self._kept[-1].at + 1)
        self._kept.append(RecentDecision(at, record))

    def __iter__(self) -> Iterator[RecentDecision]:
        """Give the records, the newest first."""
        return iter(list(reversed(self._kept)))
