"""From (exchange, policies) to margins: one seam, and wrappers that compose around it."""

from shieldgate.scoring.batched import Batched, BatchObserver
from shieldgate.scoring.cached import Cached, CacheObserver, SecondLevel
from shieldgate.scoring.guarded import Guarded, GuardObserver
from shieldgate.scoring.nearby import NearbyScorer
from shieldgate.scoring.seam import Engine, Identity, Prepared, Scorer, Work

__all__ = [
    "BatchObserver",
    "Batched",
    "CacheObserver",
    "Cached",
    "Engine",
    "GuardObserver",
    "Guarded",
    "Identity",
    "NearbyScorer",
    "Prepared",
    "Scorer",
    "SecondLevel",
    "Work",
]
