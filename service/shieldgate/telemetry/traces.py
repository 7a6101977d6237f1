"""Spans of requests and of what happens in them, where somebody wants them.

They carry routes, ids and the fixed words of the metrics, never what a caller wrote.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Answered = Callable[[str, int, str], None]
"""Takes a request's route, its status and its outcome."""


class Traces(Protocol):
    """Opens spans; what opens within a span, in its task or in tasks made there, is part of it."""

    def request(self, traceparent: str | None) -> AbstractContextManager[Answered]:
        """Open the span of a request, within the caller's where `traceparent` names one."""
        ...

    def judging(self, direction: str) -> AbstractContextManager[Callable[[str], None]]:
        """Open the span of a judgement; what it gives takes the action."""
        ...

    def add_ended(self, name: str, seconds: float) -> None:
        """Add a span that has just ended."""

    def ids(self) -> Mapping[str, str]:
        """Give what finds the span that is open, for log lines."""
        ...

    def headers(self) -> Mapping[str, str]:
        """Give the headers by which upstream continues the span that is open."""
        ...

    def close(self) -> None:
        """Send what has not been sent yet; this may take a moment."""


class NoTraces:
    """Opens nothing; Traces for who has not configured any."""

    def request(self, traceparent: str | None) -> AbstractContextManager[Answered]:
        """Open nothing."""
        return nullcontext(lambda route, status, outcome: None)

    def judging(self, direction: str) -> AbstractContextManager[Callable[[str], None]]:
        """Open nothing."""
        return nullcontext(lambda action: None)

    def add_ended(self, name: str, seconds: float) -> None:
        """Add nothing."""

    def ids(self) -> Mapping[str, str]:
        """Give nothing."""
        return {}

    def headers(self) -> Mapping[str, str]:
        """Give nothing."""
        return {}

    def close(self) -> None:
        """Send nothing."""
