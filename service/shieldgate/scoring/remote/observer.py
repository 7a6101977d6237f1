"""What scorers elsewhere tell of themselves, apart from the client of HTTP, which imports long."""

from collections.abc import Mapping
from typing import Literal, Protocol

RemoteReply = Literal["answered", "unreachable", "busy", "refused", "failed", "timeout"]


class RemoteObserver(Protocol):
    """Sees how a scorer elsewhere fares, and knows how a trace goes on there."""

    def remote_request(self, engine: str, reply: RemoteReply, seconds: float) -> None:
        """Take how a request ended, and how long it took."""

    def replica(self, replica: str, up: bool) -> None:
        """Take whether texts go to a server."""

    def tokenised(self, tokens: int) -> None:
        """Take how many tokens the scoring of a text takes."""

    def phase(self, phase: Literal["tokenise", "forward"], seconds: float) -> None:
        """Take how long a text was in a phase that has just ended; called by its caller's task."""

    def queued(self, pieces: int) -> None:
        """Take the number of texts, or windows of them, that wait for their turn."""

    def trace_headers(self) -> Mapping[str, str]:
        """Give the headers by which a server continues the span that is open."""
        ...
