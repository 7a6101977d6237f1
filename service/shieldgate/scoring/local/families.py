"""The families of models that are scored packed, found by the `model_type` of their config.

What they share: a causal decoder of transformers whose attention goes through its
AttentionInterface, with at most one width of window; whose `model.layers[i].mlp` computes
`down(act(gate(x)) * up(x))`; in which a token's state depends on its position and on the tokens
that it sees, and on nothing else of the sequence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family of decoders, by the name that people know it by.

    `tensors` renames those of a checkpoint in which the decoder is the text part of a larger
    model, from patterns to what they stand for; `others` matches those of the other parts, which
    are not loaded.
    """

    name: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    others: str | None = None

    def named(self, stored: str) -> str | None:
        """Give the decoder's name of a stored tensor; None for one of another part."""
        if self.others and re.match(self.others, stored):
            return None
        for pattern, name in self.tensors.items():
            stored = re.sub(pattern, name, stored)
        return stored


FAMILIES = {
    "gemma2": ModelFamily("Gemma 2"),
    # Tensors are named in the first way on the hub, and in the second in memory.
    "gemma3": ModelFamily(
        "Gemma 3",
        {r"^language_model\.model\.": "model.", r"^model\.language_model\.": "model."},
        r"(model\.)?(vision_tower|multi_modal_projector)\.",
    ),
    "gemma3_text": ModelFamily("Gemma 3"),
    "llama": ModelFamily("Llama"),
    "ministral": ModelFamily("Ministral"),  # transformers' name for a Mistral with layer types, too
    "mistral": ModelFamily("Mistral"),
    "qwen2": ModelFamily("Qwen 2"),
    "qwen3": ModelFamily("Qwen 3"),
}


def find_family(config: PretrainedConfig) -> tuple[ModelFamily, PretrainedConfig]:
    """Find a checkpoint's family, and the config of its decoder.

    Raises ValueError, with the end of a sentence about the checkpoint, for what can't be scored
    packed exactly.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        *names, last = dict.fromkeys(known.name for known in FAMILIES.values())
        raise ValueError(
            f"is a {config.model_type} model, and the scorer knows {', '.join(names)} and {last}. "
            "Use a ShieldGemma checkpoint, or another guard model of one of these families."
        )
    decoder: Any = config.get_text_config()
    if getattr(decoder, "use_bidirectional_attention", False) or not getattr(
        decoder, "is_causal", True
    ):
        raise ValueError(
            "lets tokens see those after them, so prompts that begin alike can't share their "
            "beginning. Use a causal model."
        )
    if "longrope" in _rope_types(decoder.rope_parameters):
        raise ValueError(
            "turns its rotary positions by the longest prompt of a forward pass (rope_type "
            "longrope), so prompts can't share one. Use a model with another rope_type."
        )
    return family, decoder


def _rope_types(parameters: Mapping[str, Any]) -> set[str]:
    """List the types of a config's `rope_parameters`, which may differ by type of layer."""
    parts = [parameters] if "rope_type" in parameters else parameters.values()
    return {part["rope_type"] for part in parts if part}
