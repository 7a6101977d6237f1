"""The client of the model behind the gateway."""

from shieldgate.upstream.client import Reply, Upstream

__all__ = ["Reply", "Upstream"]
