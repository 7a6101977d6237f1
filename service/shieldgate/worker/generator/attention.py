"""Gemma 2 attention over texts of different lengths in one forward pass, each with its own cache.

The new tokens of all texts stand side by side in one row, so that the large matrix products are
shared and nothing is padded; only attention goes text by text. One text's numbers are therefore
the same alone and in company. (Continuous batching of transformers 5.23 drops the soft-cap.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

RAGGED = "shieldgate_ragged"

_GROWTH = 512  # tokens that a cache makes room for at a time


class KVCache:
    """The keys and values of one text, for every layer; `length` counts its tokens.

    Layers with a sliding window keep all of them too: setting `length` back then forgets the
    newest tokens exactly, at the price of memory beyond the window.
    """

    def __init__(self, layers: int) -> None:
        self.length = 0
        self._held: list[Tensor | None] = [None] * layers

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [groups, new, dim] behind `length`; returns all, [groups, length + new, dim]."""
        end = self.length + keys.shape[1]
        held = self._held[layer]
        if held is None or held.shape[2] < end:
            groups, _, dim = keys.shape
            room = keys.new_empty(2, groups, -(-end // _GROWTH) * _GROWTH, dim)
            if held is not None:
                room[:, :, : self.length] = held[:, :, : self.length]
            held = self._held[layer] = room
        held[0, :, self.length : end] = keys
        held[1, :, self.length : end] = values
        return held[0, :, :end], held[1, :, :end]

    def copy(self, length: int) -> "KVCache":
        """Copy the first `length` tokens."""
        other = KVCache(len(self._held))
        other.length = length
        other._held = [None if h is None else h[:, :, :length].clone() for h in self._held]
        return other


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """The new tokens of one text: their rows in the forward pass, and the cache before them."""

    rows: slice
    cache: KVCache


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    pieces: Sequence[SequenceSlice],
    scaling: float,
    softcap: float | None,
    sliding_window: int | None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each text.

    `query` is [1, heads, tokens, dim], `key` and `value` [1, groups, tokens, dim]; returns
    [1, tokens, heads, dim]. Scores are soft-capped as cap * tanh(scores / cap), softmax is fp32.
    """
    layer: Any = module.layer_idx
    out = []
    for piece in pieces:
        rows = piece.rows
        keys, values = piece.cache.extend(layer, key[0, :, rows], value[0, :, rows])
        out.append(_attend(query[0, :, rows] * scaling, keys, values, softcap, sliding_window))
    return torch.cat(out)[None], None


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, cap: float | None, window: int | None
) -> Tensor:
    """Attend from a text's last tokens to all before and themselves; returns [new, heads, dim]."""
    heads, new, dim = queries.shape
    past = keys.shape[1] - new
    first = 0 if window is None else max(0, past - window + 1)
    keys, values = keys[:, first:], values[:, first:]
    groups, seen, _ = keys.shape
    # The heads of one group side by side, so that grouped keys and values are never repeated.
    scores = queries.reshape(groups, -1, dim) @ keys.transpose(1, 2)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    if new > 1:
        at = torch.arange(past, past + new, device=keys.device)[:, None]
        of = torch.arange(first, first + seen, device=keys.device)
        hidden = of > at if window is None else (of > at) | (of <= at - window)
        scores.view(groups, -1, new, seen).masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    return (weights @ values).view(heads, new, dim).transpose(0, 1)


AttentionInterface.register(RAGGED, ragged_attention)
