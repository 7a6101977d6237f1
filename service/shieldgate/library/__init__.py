"""shieldgate in notebooks and scripts: judge texts and evaluate data without a server."""

from shieldgate.library.handle import ScorerHandle, open_scorer

__all__ = ["ScorerHandle", "open_scorer"]
