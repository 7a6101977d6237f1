"""The feed-forward in blocks of rows is Gemma 2's own."""

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP

from shieldgate.scoring.local import load_checkpoint
from shieldgate.scoring.local.feedforward import BLOCK_ROWS, BlockFeedForward, use_blocks


@pytest.fixture
def pair() -> tuple[Gemma2MLP, Gemma2MLP]:
    torch.manual_seed(0)
    stock = Gemma2MLP(Gemma2Config(hidden_size=16, intermediate_size=40))
    blocked = Gemma2MLP(stock.config)
    blocked.load_state_dict(stock.state_dict())
    use_blocks(blocked)
    return stock, blocked


@pytest.mark.parametrize("rows", [1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS - 5])
def test_blocks_of_rows_give_what_all_rows_at_once_give(
    pair: tuple[Gemma2MLP, Gemma2MLP], rows: int
) -> None:
    stock, blocked = pair
    x = torch.randn(1, rows, 16)
    with torch.inference_mode():
        torch.testing.assert_close(blocked(x), stock(x))


def test_gradients_are_the_stock_ones(pair: tuple[Gemma2MLP, Gemma2MLP]) -> None:
    gradients = []
    for module in pair:
        x = torch.linspace(-1, 1, 2 * BLOCK_ROWS * 16).view(1, -1, 16).requires_grad_(True)
        module(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*gradients)


def test_a_loaded_checkpoint_computes_in_blocks(hot_checkpoint: Path) -> None:
    model = load_checkpoint(str(hot_checkpoint), device="cpu").model
    assert all(isinstance(layer.mlp, BlockFeedForward) for layer in model.model.layers)
