"""The feed-forward in blocks of rows is each family's own."""

from pathlib import Path

import pytest
import torch
from checkpoints import SHAPES, make_model
from torch import nn

from shieldgate.scoring.local import load_checkpoint
from shieldgate.scoring.local.row_blocks import BLOCK_ROWS, BlockFeedForward, use_blocks


@pytest.fixture(scope="module", params=sorted(SHAPES.keys() - {"gemma3"}))
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    stock, blocked = (
        make_model(request.param, hidden_size=16, intermediate_size=40) for _ in range(2)
    )
    use_blocks(blocked)
    return stock.model.layers[0].mlp, blocked.model.layers[0].mlp


@pytest.mark.parametrize("rows", [1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS - 5])
def test_blocks_of_rows_give_what_all_rows_at_once_give(
    pair: tuple[nn.Module, nn.Module], rows: int
) -> None:
    stock, blocked = pair
    assert isinstance(blocked, BlockFeedForward)
    x = torch.randn(1, rows, 16)
    with torch.inference_mode():
        torch.testing.assert_close(blocked(x), stock(x))


def test_gradients_are_the_stock_ones(pair: tuple[nn.Module, nn.Module]) -> None:
    gradients = []
    for module in pair:
        module.zero_grad()
        x = torch.linspace(-1, 1, 2 * BLOCK_ROWS * 16).view(1, -1, 16).requires_grad_(True)
        module(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*gradients)


def test_a_loaded_checkpoint_computes_in_blocks(hot_checkpoint: Path) -> None:
    model = load_checkpoint(str(hot_checkpoint), device="cpu").model
    assert all(isinstance(layer.mlp, BlockFeedForward) for layer in model.model.layers)
