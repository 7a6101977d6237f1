"""From (exchange, policies) to margins: one seam, and wrappers that compose around it."""

from shieldgate.scoring.batched import Batched
from shieldgate.scoring.cached import Cached, SecondLevel
from shieldgate.scoring.interfaces import (
    Engine,
    Identity,
    OpenScorer,
    Prepared,
    Scorer,
    calibrated_elsewhere,
)
from shieldgate.scoring.resilient import Resilient
from shieldgate.scoring.unix_socket import UnixSocketScorer

__all__ = [
    "Batched",
    "Cached",
    "Engine",
    "Identity",
    "OpenScorer",
    "Prepared",
    "Resilient",
    "Scorer",
    "SecondLevel",
    "UnixSocketScorer",
    "calibrated_elsewhere",
]
