"""Gemma 2 as a generator in this process; importing this room imports torch."""

from typing import Any

from transformers import PretrainedConfig

from shieldgate.scoring.local import load_checkpoint
from shieldgate.scoring.local.families import ModelFamily, find_family
from shieldgate.worker.generator.engine import GemmaGenerator, TokenSequence
from shieldgate.worker.watermark.keys import WatermarkKeys


def load_generator(
    model: str,
    *,
    assistant: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    watermark: WatermarkKeys | None = None,
) -> GemmaGenerator:
    """Load a checkpoint, and its assistant if there is one; raise ModelError."""
    how: Any = {"device": device, "dtype": dtype, "find": find_gemma2}
    large = load_checkpoint(model, revision=revision, **how)
    small = load_checkpoint(assistant, **how) if assistant else None
    return GemmaGenerator(large, small, watermark)


def find_gemma2(config: PretrainedConfig) -> tuple[ModelFamily, PretrainedConfig]:
    """Take Gemma 2 and nothing else; raise ValueError as `find_family` does."""
    if config.model_type != "gemma2":
        raise ValueError(
            f"is a {config.model_type} model, and the generator is Gemma 2. Use a checkpoint such "
            "as google/gemma-2-2b-it, or serve the model elsewhere and give its URL to --upstream."
        )
    return find_family(config)


__all__ = ["GemmaGenerator", "TokenSequence", "load_generator"]
