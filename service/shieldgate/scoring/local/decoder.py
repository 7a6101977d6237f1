"""What scoring and training both ask of a decoder, whatever its family."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shieldgate.scoring.local.packing import Packed


def sliding_window(model: PreTrainedModel) -> int | None:
    """Give the tokens that a sliding layer sees, its own included; None where no layer slides."""
    window: int | None = getattr(model.config, "sliding_window", None)
    return window


def hidden_states(
    model: PreTrainedModel, layout: Packed, embeddings: Tensor | None = None
) -> Tensor:
    """Compute the last hidden states of a layout, [tokens, hidden]; differentiable.

    `embeddings`, [1, tokens, hidden], stand for those of the layout's ids.
    """
    # transformers makes no mask for an attention function that registers none.
    states: Tensor = model.base_model(
        input_ids=layout.ids[None] if embeddings is None else None,
        inputs_embeds=embeddings,
        position_ids=layout.positions[None],
        use_cache=False,
        layout=layout,
    ).last_hidden_state[0]
    return states


def read_states(model: PreTrainedModel, layout: Packed, embeddings: Tensor | None = None) -> Tensor:
    """Compute the last hidden states of a layout's `reads`, [branches, hidden]; differentiable.

    `embeddings` are as in `hidden_states`.
    """
    states = hidden_states(model, layout, embeddings)
    # A LastLayer gives these alone; else where all rows are read, they are read in order.
    alone = len(states) == len(layout.reads)
    return states if alone else states[layout.reads.to(states.device)]


def margins(model: PreTrainedModel, states: Tensor, answers: Tensor | Sequence[int]) -> Tensor:
    """Compute z_yes - z_no from last hidden states [branches, hidden]; fp32 [branches].

    `answers` are the token ids of yes and no, in this order.
    """
    head: Any = model.get_output_embeddings()
    rows = torch.as_tensor(answers, device=head.weight.device)
    readout = head.weight[rows].float().to(states.device)
    # In the bf16 of training a margin would have three digits.
    with torch.autocast(states.device.type, enabled=False):
        logits = states.float() @ readout.T
    yes, no = soft_capped(logits, model.config).unbind(-1)
    found: Tensor = yes - no
    return found


def soft_capped(logits: Tensor, config: Any) -> Tensor:
    """Soft-cap logits where a config says so: cap * tanh(logits / cap) (arXiv 2408.00118)."""
    # A field of the class, or the model takes no notice of it.
    known = hasattr(type(config), "final_logit_softcapping")
    cap = config.final_logit_softcapping if known else None
    return logits if cap is None else cap * torch.tanh(logits / cap)
