"""The gated feed-forward of a decoder in blocks of rows, for CPUs."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# 768 rows of the 2B's 9,216 wide fp32 activations take 27 MiB. Above 32 MiB the C allocator maps
# fresh pages for each temporary, and clearing them costs more than the arithmetic done on it.
BLOCK_ROWS = 768


class BlockFeedForward(nn.Module):
    """Computes `down(act(gate(x)) * up(x))` in blocks of rows, so that temporaries stay small.

    To be mixed into a class that computes the same; off the CPU, or where a gradient is needed,
    it is that class.
    """

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, hidden] to the same shape."""
        if x.device.type != "cpu" or torch.is_grad_enabled():
            stock: Tensor = super().forward(x)
            return stock
        blocks = -(-x.shape[1] // BLOCK_ROWS)
        out = torch.empty_like(x)
        for rows, found in zip(x.chunk(blocks, dim=1), out.chunk(blocks, dim=1), strict=True):
            inner = self.act_fn(self.gate_proj(rows)).mul_(self.up_proj(rows))
            found.copy_(self.down_proj(inner))
        return out


def use_blocks(model: PreTrainedModel) -> None:
    """Make the feed-forward of each layer a BlockFeedForward, too; weights and names stay."""
    decoder: Any = model.base_model
    stock: type[nn.Module] = type(decoder.layers[0].mlp)
    blocked = type(f"Block{stock.__name__}", (BlockFeedForward, stock), {})
    for layer in decoder.layers:
        layer.mlp.__class__ = blocked
