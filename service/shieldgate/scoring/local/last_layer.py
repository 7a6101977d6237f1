"""The last layer of a decoder, computed only for the rows that are read."""

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shieldgate.scoring.local.packing import Layout


@dataclass(frozen=True, slots=True)
class _AllKeys:
    """What an attention over a few rows sees in place of their own keys and values."""

    keys: Tensor
    values: Tensor

    def extend(self, *_: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class LastLayer(nn.Module):
    """A decoder layer that gives the states of a Layout's `reads` only, [1, branches, hidden].

    All rows have keys and values, the others no query, output and feed-forward. To be mixed into
    a layer class of transformers; where a gradient is needed, and for other layouts, it is that
    class.
    """

    self_attn: Any
    input_layernorm: nn.Module

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        """Map [1, tokens, hidden] to [1, branches, hidden]."""
        layout = others.get("layout")
        if isinstance(layout, Layout) and not torch.is_grad_enabled():
            cos, sin = others["position_embeddings"]
            keys, values = self._keys_and_values(hidden_states, cos, sin)
            if layout.memory is not None:
                layer = self.self_attn.layer_idx
                keys, values = layout.memory.extend(layer, keys, values, layout.trunks)
            hidden_states = hidden_states[:, layout.reads]
            others["position_embeddings"] = cos[:, layout.reads], sin[:, layout.reads]
            others["layout"] = replace(
                layout,
                full=layout.read_full,
                sliding=layout.read_sliding,
                memory=_AllKeys(keys, values),
            )
        found: Tensor = super().forward(hidden_states, **others)
        return found

    def _keys_and_values(self, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what all rows are seen by, each [groups, tokens, dim]."""
        attention = self.self_attn
        normed = self.input_layernorm(states)
        shape = (*states.shape[:-1], -1, attention.head_dim)
        keys = attention.k_proj(normed).view(shape).transpose(1, 2)
        values = attention.v_proj(normed).view(shape).transpose(1, 2)
        if hasattr(attention, "k_norm"):
            keys = attention.k_norm(keys)
        # Each family has its own of that name, beside its attention.
        rotate: Any = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        return rotate(keys, keys, cos, sin)[1][0], values[0]


def use_last_layer(model: PreTrainedModel) -> None:
    """Make the last layer of a decoder a LastLayer, too; weights and names stay."""
    decoder: Any = model.base_model
    last = decoder.layers[-1]
    stock = type(last)
    last.__class__ = type(f"Last{stock.__name__}", (LastLayer, stock), {})
