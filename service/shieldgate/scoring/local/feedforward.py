"""Gemma 2's feed-forward in blocks of rows, for CPUs."""

import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP

# 768 rows of the 2B's 9,216 wide fp32 activations take 27 MiB. Above 32 MiB the C allocator maps
# fresh pages for each temporary, and clearing them costs more than the arithmetic done on it.
BLOCK_ROWS = 768


class BlockFeedForward(Gemma2MLP):
    """Computes `down(act(gate(x)) * up(x))` in blocks of rows, so that temporaries stay small.

    Off the CPU, or where a gradient is needed, it is Gemma2MLP.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, hidden] to the same shape."""
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        blocks = -(-x.shape[1] // BLOCK_ROWS)
        out = torch.empty_like(x)
        for rows, found in zip(x.chunk(blocks, dim=1), out.chunk(blocks, dim=1), strict=True):
            inner = self.act_fn(self.gate_proj(rows)).mul_(self.up_proj(rows))
            found.copy_(self.down_proj(inner))
        return out


def use_blocks(model: nn.Module) -> None:
    """Make each Gemma2MLP inside `model` a BlockFeedForward; weights and names stay."""
    for module in model.modules():
        if type(module) is Gemma2MLP:
            module.__class__ = BlockFeedForward
