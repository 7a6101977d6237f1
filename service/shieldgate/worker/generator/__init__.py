"""Gemma 2 as a generator in this process; importing this room imports torch."""

from shieldgate.scoring.local import load_checkpoint
from shieldgate.worker.generator.engine import GemmaGenerator, TokenSequence


def load_generator(
    model: str,
    *,
    assistant: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> GemmaGenerator:
    """Load a checkpoint, and its assistant if there is one; raise ModelError."""
    large = load_checkpoint(model, revision=revision, device=device, dtype=dtype)
    small = load_checkpoint(assistant, device=device, dtype=dtype) if assistant else None
    return GemmaGenerator(large, small)


__all__ = ["GemmaGenerator", "TokenSequence", "load_generator"]
