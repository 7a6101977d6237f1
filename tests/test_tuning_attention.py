"""Training computes what scoring computes."""

import random

import pytest
import torch
from checkpoints import SHAPES, make_model
from transformers import PreTrainedModel

from shieldgate.scoring.local.attention import PACKED
from shieldgate.scoring.local.decoder import hidden_states, sliding_window
from shieldgate.scoring.local.packing import Layout
from shieldgate.scoring.pack import Pack
from shieldgate.tuning.attention import PADDED, Padded, by_size

WINDOW = 16


def tokens(rng: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(rng.randrange(200) for _ in range(rng.randint(least, most)))


@pytest.fixture(scope="module", params=sorted(SHAPES.keys() - {"gemma3"}))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    windowed = "sliding_window" in SHAPES[request.param]
    config = {"sliding_window": WINDOW} if windowed else {}
    shape = {"hidden_size": 48, "intermediate_size": 64, "head_dim": 16, "vocab_size": 200}
    return make_model(request.param, **shape, **config, initializer_range=0.2).eval()


@pytest.fixture(scope="module")
def packs() -> list[Pack]:
    rng = random.Random(0)
    return [
        Pack(tokens(rng, 1, 40), tuple(tokens(rng, 1, 30) for _ in range(rng.randint(1, 3))))
        for _ in range(6)
    ]


def states(model: PreTrainedModel, attention: str, layout: Layout | Padded) -> torch.Tensor:
    model.set_attn_implementation(attention)
    return hidden_states(model, layout)[layout.reads]


def test_padded_states_equal_packed_ones_past_the_window(
    model: PreTrainedModel, packs: list[Pack]
) -> None:
    window = sliding_window(model)
    with torch.inference_mode():
        packed = states(model, PACKED, Layout.of(packs, window, torch.device("cpu")))
        padded = states(model, PADDED, Padded.of(packs, window))
        unlimited = states(model, PADDED, Padded.of(packs, None))
    assert torch.allclose(padded, packed, atol=1e-4)
    assert torch.allclose(padded, unlimited, atol=1e-2) == (window is None)


def test_gradients_are_finite_and_reach_every_parameter(
    model: PreTrainedModel, packs: list[Pack]
) -> None:
    states(model, PADDED, Padded.of(packs, sliding_window(model))).square().sum().backward()
    for name, parameter in model.model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_trunk_without_branches_is_read_at_its_end() -> None:
    layout = Padded.of([Pack((5, 6, 7), ()), Pack((8, 9), ())], WINDOW)
    assert layout.ids[layout.reads].tolist() == [7, 9]


def test_groups_hold_every_pack_once_and_stay_within_the_budget(packs: list[Pack]) -> None:
    groups = list(by_size(packs, 200))
    assert sorted(i for group in groups for i in group) == list(range(len(packs)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(packs[i].tokens for i in group) <= 200
