"""Attention over a packed layout, as an attention function of transformers.

The layout travels as the forward argument `layout`; the model passes arguments it doesn't know
through to the attention function. Blocks in which nothing is visible are never computed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from shieldgate.scoring.local.flex import FlexLayout, flex_packed_attention
from shieldgate.scoring.local.linear import has_onednn
from shieldgate.scoring.local.packing import Block, Layout

PACKED = "shieldgate_packed"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    layout: Layout | FlexLayout,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each trunk, and from each branch to its trunk and itself.

    `query` is [1, heads, tokens, dim], `key` and `value` [1, groups, tokens, dim]; returns
    [1, tokens, heads, dim]. Scores are soft-capped as cap * tanh(scores / cap) if there is a cap;
    softmax is fp32.
    """
    layer: Any = module.layer_idx
    if isinstance(layout, FlexLayout):
        return flex_packed_attention(
            query,
            key,
            value,
            layout,
            layer=layer,
            scaling=scaling,
            softcap=softcap,
            sliding=sliding_window is not None,
        ), None
    heads, tokens, dim = query.shape[1:]
    groups = key.shape[1]
    # Queries of one group side by side, so that grouped keys and values are never repeated.
    grouped = query[0].view(groups, heads // groups, tokens, dim).transpose(1, 2)
    queries = (grouped * (scaling / (softcap or 1.0))).contiguous()
    keys, values = key[0], value[0]
    if layout.memory is not None:
        keys, values = layout.memory.extend(layer, keys, values, layout.trunks)
    blocks = layout.full if sliding_window is None else layout.sliding
    out = [_attend(queries, keys, values, block, softcap) for block in blocks]
    return torch.cat(out).view(1, tokens, heads, dim), None


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, block: Block, cap: float | None
) -> Tensor:
    """Attend from one block's rows; returns [rows, groups, heads per group, dim]."""
    groups, _, shared, dim = queries.shape
    rows = block.rows.stop - block.rows.start
    asked = queries[:, block.rows].reshape(groups, rows * shared, dim)
    # One dense tensor each: of slices the product would take nearly twice as long on a CPU.
    seen_keys, seen_values = (
        torch.cat([side[:, seen] for seen in block.keys], dim=1) for side in (keys, values)
    )
    scores = asked @ seen_keys.transpose(1, 2)
    if cap is not None:
        scores = _capped(scores, cap)
    by_row = scores.view(groups, rows, shared, -1)
    for columns, mask in block.hidden:
        by_row[..., columns].masked_fill_(mask[:, None, :].to(scores.device), float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    return (weights @ seen_values).view(groups, rows, shared, dim).transpose(0, 1)


def _capped(scores: Tensor, cap: float) -> Tensor:
    """Soft-cap scores already divided by the cap; in place unless a gradient is needed."""
    if scores.requires_grad:
        return torch.tanh(scores) * cap
    bf16 = scores.dtype == torch.bfloat16
    if bf16 and scores.device.type == "cpu" and has_onednn(torch.bfloat16):
        # Its tanh gives the same bits in a third of the time, copies included.
        scores = scores.to_mkldnn().tanh_().to_dense()
    else:
        scores.tanh_()
    return scores.mul_(cap)


AttentionInterface.register(PACKED, packed_attention)
