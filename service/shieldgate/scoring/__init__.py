"""From (exchange, policies) to margins: one seam, and wrappers that compose around it."""

from shieldgate.scoring.batched import Batched, BatchObserver
from shieldgate.scoring.cached import Cached, CacheObserver, SecondLevel
from shieldgate.scoring.interfaces import (
    Engine,
    Identity,
    OpenScorer,
    Prepared,
    Scorer,
    calibrated_elsewhere,
)
from shieldgate.scoring.resilient import ResilienceObserver, Resilient
from shieldgate.scoring.unix_socket import UnixSocketScorer

__all__ = [
    "BatchObserver",
    "Batched",
    "CacheObserver",
    "Cached",
    "Engine",
    "Identity",
    "OpenScorer",
    "Prepared",
    "ResilienceObserver",
    "Resilient",
    "Scorer",
    "SecondLevel",
    "UnixSocketScorer",
    "calibrated_elsewhere",
]
