"""Parts of a decoder in blocks of rows, for CPUs: their temporaries stay small."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shieldgate.scoring.local.linear import gated

# 768 rows of the 2B's 9,216 wide fp32 activations take 27 MiB. Above 32 MiB the C allocator maps
# fresh pages for each temporary, and clearing them costs more than the arithmetic done on it.
BLOCK_ROWS = 768
# A norm makes five temporaries in fp32; of so many numbers, half a MiB, they stay in the cache.
NORM_NUMBERS = 2**17


class BlockFeedForward(nn.Module):
    """Computes `down(act(gate(x)) * up(x))` in blocks of rows.

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
        # Of two dimensions: blocks of three can't be folded into one product, and copy the weights.
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        blocks = -(-len(rows) // BLOCK_ROWS)
        for block, found in zip(rows.chunk(blocks), out.chunk(blocks), strict=True):
            found.copy_(self.down_proj(gated(self.gate_proj, self.up_proj, self.act_fn, block)))
        return out.view_as(x)


class BlockNorm(nn.Module):
    """Normalises in blocks of rows; to be mixed into a class that normalises each by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, hidden] to the same shape."""
        size = max(1, NORM_NUMBERS // x.shape[-1])
        if x.device.type != "cpu" or torch.is_grad_enabled() or x.shape[1] <= size:
            stock: Tensor = super().forward(x)
            return stock
        out = torch.empty_like(x)
        for block, found in zip(torch.split(x, size, 1), torch.split(out, size, 1), strict=True):
            found.copy_(super().forward(block))
        return out


def use_blocks(model: PreTrainedModel) -> None:
    """Make each layer compute its feed-forward and its norms in blocks; weights and names stay."""
    decoder: Any = model.base_model
    for layer in decoder.layers:
        _mix(BlockFeedForward, layer.mlp)
    for module in (decoder, *decoder.layers):
        for child in module.children():
            if type(child).__name__.endswith("RMSNorm"):
                _mix(BlockNorm, child)


def _mix(part: type[nn.Module], module: nn.Module) -> None:
    stock = type(module)
    module.__class__ = type(f"Block{stock.__name__}", (part, stock), {})
