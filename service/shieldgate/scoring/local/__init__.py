"""A guard model in this process; importing this room imports torch."""

from shieldgate.prompt import find_template
from shieldgate.scoring.local.checkpoint import Checkpoint, load_checkpoint
from shieldgate.scoring.local.engine import PackedEngine


def load_engine(
    model: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    template: str = "chat",
    prefix_bytes: int = 2**30,
) -> PackedEngine:
    """Load a checkpoint and make it an engine; raise ModelError in one clear sentence."""
    checkpoint = load_checkpoint(model, revision=revision, device=device, dtype=dtype)
    return PackedEngine(checkpoint, find_template(template), prefix_bytes=prefix_bytes)


__all__ = ["Checkpoint", "PackedEngine", "load_checkpoint", "load_engine"]
