"""A guard model in this process; importing this room imports torch."""

from transformers import PreTrainedModel

from shieldgate.prompt import find_template
from shieldgate.scoring.local.checkpoint import Checkpoint, load_checkpoint, load_gguf_tokenizer
from shieldgate.scoring.local.engine import PackedEngine
from shieldgate.scoring.local.last_layer import use_last_layer
from shieldgate.scoring.local.linear import pack_linears
from shieldgate.scoring.local.tokenizer import adopted, prompt_encoder
from shieldgate.scoring.prompts import PromptBuilder


def load_engine(
    model: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    template: str = "chat",
    prefix_bytes: int = 2**30,
) -> PackedEngine:
    """Load a checkpoint and make it an engine that scores; raise ModelError in one clear sentence.

    On a CPU the engine's model can't be trained: its weights are laid out for multiplying.
    """
    checkpoint = load_for_scoring(
        model, revision=revision, device=device, dtype=dtype, quantize=quantize
    )
    engine = PackedEngine(checkpoint, find_template(template), prefix_bytes=prefix_bytes)
    if checkpoint.model.device.type == "cpu":
        engine.remember_preambles()
    return engine


def load_for_scoring(
    model: str, *, revision: str | None, device: str, dtype: str, quantize: str
) -> Checkpoint:
    """Load a checkpoint for any number of engines; raise ModelError."""
    checkpoint = load_checkpoint(
        model, revision=revision, device=device, dtype=dtype, quantize=quantize
    )
    if checkpoint.quantization is None:
        use_for_scoring(checkpoint.model, "int8" if quantize == "int8" else None)
    return checkpoint


def use_for_scoring(model: PreTrainedModel, quantize: str | None = None) -> None:
    """Make a model on a CPU compute only what scoring reads, as the processor multiplies fastest.

    `quantize` is int8 or None. Raises ModelError where this machine can't.
    """
    if model.device.type == "cpu":
        use_last_layer(model)
    pack_linears(model, quantize)


def load_gguf_prompts(file: str, *, template: str) -> PromptBuilder:
    """Load what builds the prompts of a GGUF file, without its weights; raise ConfigurationError.

    Of a folder, `scoring.tokenizer_files` reads the tokenizer without torch.
    """
    tokenizer, context = load_gguf_tokenizer(file)
    words = adopted(find_template(template), tokenizer, file)
    return PromptBuilder(words, prompt_encoder(tokenizer, words.control_tokens), context)


__all__ = [
    "Checkpoint",
    "PackedEngine",
    "load_checkpoint",
    "load_engine",
    "load_for_scoring",
    "load_gguf_prompts",
    "use_for_scoring",
]
