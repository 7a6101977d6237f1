"""Parts of a decoder in blocks of rows, for CPUs: their temporaries stay small."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shieldgate.scoring.local.linear import gated

# 768 rows of the 2B's 9,216 wide fp32 activations take 27 MiB. Above 32 MiB the C allocator maps
# fresh pages for each temporary, and clearing them costs more than the arithmetic done on it.
BLOCK_ROWS = 768


class _Blocks(nn.Module):
    """Computes in blocks of rows, to be mixed into a class that computes the same.

    Off the CPU, or where a gradient is needed, it is that class.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, hidden] to the same shape."""
        if x.device.type != "cpu" or torch.is_grad_enabled():
            stock: Tensor = super().forward(x)
            return stock
        return _in_blocks(self._rows, x)

    def _rows(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BlockFeedForward(_Blocks):
    """Computes `down(act(gate(x)) * up(x))` in blocks of rows."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def _rows(self, x: Tensor) -> Tensor:
        found: Tensor = self.down_proj(gated(self.gate_proj, self.up_proj, self.act_fn, x))
        return found


class LeanNorm(_Blocks):
    """Computes a family's RMS norm in place where it can, in blocks of rows; in fp32 to the bit.

    The families' own make a temporary for each of five operations.
    """

    weight: Tensor

    def _rows(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32, copy=True)
        if x.dtype == torch.float32:
            squares = wide.square().mean(1, keepdim=True)
        else:  # a third of the time; what differs is lost when the result is rounded
            squares = torch.linalg.vector_norm(wide, dim=1, keepdim=True).square_().div_(x.shape[1])
        is_gemmas = hasattr(self, "eps")  # whose weights are around 0, and which rounds last
        epsilon: Any = self.eps if is_gemmas else self.variance_epsilon
        wide.mul_(squares.add_(epsilon).rsqrt_())
        if is_gemmas:
            return wide.mul_(1 + self.weight.float()).to(x.dtype)
        return wide.to(x.dtype).mul_(self.weight)


def _in_blocks(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute on the rows of [batch, tokens, hidden], in equal blocks of at most BLOCK_ROWS."""
    # Of two dimensions: blocks of three can't be folded into one product, and copy the weights.
    rows = x.reshape(-1, x.shape[-1])
    blocks = -(-len(rows) // BLOCK_ROWS)
    if blocks == 1:
        return compute(rows).view_as(x)
    out = torch.empty_like(rows)
    for block, found in zip(rows.chunk(blocks), out.chunk(blocks), strict=True):
        found.copy_(compute(block))
    return out.view_as(x)


def use_blocks(model: PreTrainedModel) -> None:
    """Make each layer compute its feed-forward and its norms in blocks; weights and names stay."""
    decoder: Any = model.base_model
    for layer in decoder.layers:
        _mix(BlockFeedForward, layer.mlp)
    for module in (decoder, *decoder.layers):
        for child in module.children():
            if type(child).__name__.endswith("RMSNorm"):
                _mix(LeanNorm, child)


def _mix(part: type[nn.Module], module: nn.Module) -> None:
    stock = type(module)
    module.__class__ = type(f"Block{stock.__name__}", (part, stock), {})
