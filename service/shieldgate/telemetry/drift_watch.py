"""Compares the scores of the last day with those of calibration, for all processes that add up."""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from shieldgate import drift
from shieldgate.telemetry.metrics import ExpectedScores, Telemetry
from shieldgate.types import Direction

Expected = Mapping[tuple[str, Direction], drift.ScoreHistogram]

_STEP_SECONDS = 15.0

log = structlog.get_logger(__name__)


def expected_by(reference: drift.ScoreHistogram) -> ExpectedScores:
    """Tell who says that these scores are to be expected."""
    return "accepted" if reference.of else "calibration"


class DriftWatch:
    """Keeps the metrics of drift up with what was judged, and with what is `expected`.

    Each process shows its own scores, in the parts of what is expected, and these add up. The index
    doesn't, so each process computes it from the sum; the latest one shows.
    """

    def __init__(self, telemetry: Telemetry, expected: Callable[[], Expected]) -> None:
        self._telemetry = telemetry
        self._expected = expected

    async def run(self) -> None:
        """Compare every few seconds until cancelled."""
        while True:
            try:
                await self.compare()
            except Exception:  # of a directory of metrics that others write to, too
                log.exception("drift could not be measured")
            await asyncio.sleep(_STEP_SECONDS)

    async def compare(self) -> None:
        """Compare once."""
        expected = self._expected()
        counts = self._telemetry.window.counts()
        self._telemetry.scores_in_parts(
            {at: drift.in_parts(counts[at], reference.cuts()) for at, reference in expected.items()}
        )
        # In a thread, because the files of several processes are read.
        seen = await asyncio.to_thread(self._telemetry.all_scores_in_parts)
        self._telemetry.drifted(
            {
                (*at, expected_by(reference)): drift.compare(
                    reference, seen[at][: len(reference.cuts()) + 1]
                )
                for at, reference in expected.items()
            }
        )
