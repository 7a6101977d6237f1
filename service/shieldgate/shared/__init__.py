"""What replicas share through Redis, and do without when Redis fails."""

from shieldgate.shared.redis import Shared, SharedObserver
from shieldgate.shared.scores import SharedScores

__all__ = ["Shared", "SharedObserver", "SharedScores"]
