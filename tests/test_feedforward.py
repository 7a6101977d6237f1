"""Feed-forwards in blocks of rows, and norms in place, are each family's own."""

from pathlib import Path

import pytest
import torch
from checkpoints import SHAPES, make_model
from torch import nn

from shieldgate.scoring.local import load_checkpoint
from shieldgate.scoring.local.row_blocks import BLOCK_ROWS, BlockFeedForward, LeanNorm, use_blocks


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, BLOCK_ROWS, BLOCK_ROWS + 1])
@pytest.mark.parametrize("family", sorted(SHAPES.keys() - {"gemma3"}))
def test_norms_give_what_the_familys_own_give(family: str, rows: int, dtype: torch.dtype) -> None:
    stock, lean = (
        make_model(family, hidden_size=96, intermediate_size=40, vocab_size=10).to(dtype)
        for _ in range(2)
    )
    use_blocks(lean)
    torch.manual_seed(1)
    x = torch.randn(1, rows, 96).to(dtype) * torch.logspace(-6, 3, rows)[:, None].to(dtype)
    given = x.clone()
    weight = torch.randn(96).to(dtype)
    for own, ours in zip(
        stock.model.layers[0].children(), lean.model.layers[0].children(), strict=True
    ):
        if isinstance(ours, LeanNorm):
            own.weight.data = ours.weight.data = weight
            with torch.inference_mode():
                torch.testing.assert_close(ours(x), own(x))
                same = (ours(x) == own(x)).float().mean()
                assert same == 1 if dtype == torch.float32 else same > 0.99
            assert torch.equal(x, given), "its input is left as it was"
    assert isinstance(lean.model.norm, LeanNorm)


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
