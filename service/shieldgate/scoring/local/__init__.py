"""A guard model in this process; importing this room imports torch."""

from shieldgate.prompt import find_template
from shieldgate.scoring.local.checkpoint import Checkpoint, load_checkpoint, load_tokenizer
from shieldgate.scoring.local.engine import PackedEngine
from shieldgate.scoring.local.tokenizer import adopted, prompt_encoder
from shieldgate.scoring.prompts import PromptBuilder


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


def load_prompts(model: str, *, revision: str | None = None, template: str) -> PromptBuilder:
    """Load what builds a checkpoint's prompts, without its weights; raise ConfigurationError."""
    tokenizer, context, own = load_tokenizer(model, revision=revision)
    words = adopted(find_template(template), tokenizer, model, own)
    return PromptBuilder(words, prompt_encoder(tokenizer, words.control_tokens), context)


__all__ = ["Checkpoint", "PackedEngine", "load_checkpoint", "load_engine", "load_prompts"]
