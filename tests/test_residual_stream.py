"""The states that are shown of a scorer are those that it scores by: the plain model's."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from checkpoints import SHAPES, save_hot_checkpoint
from test_packed_engine import EXCHANGES, MARGIN, POLICIES
from torch import Tensor
from transformers import AutoModelForCausalLM

from shieldgate.features.passes import forward, states
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.scoring.pack import Pack

LAST = 3
Opening = Callable[[str], tuple[PackedEngine, Any]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opening:
    """Opens each family's hot checkpoint once: as our engine, and as transformers' plain model."""

    @cache
    def open_one(family: str) -> tuple[PackedEngine, Any]:
        folder = save_hot_checkpoint(tmp_path_factory.mktemp(family), family=family)
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        return load_engine(str(folder), device="cpu"), plain

    return open_one


def prompts(item: Pack) -> list[list[int]]:
    return [[*item.trunk, *branch] for branch in item.branches]


def of_prompts(item: Pack, rows: Tensor) -> list[Tensor]:
    """Part the rows of a pack by the prompts that they belong to."""
    trunk, *branches = rows.split([len(item.trunk), *map(len, item.branches)])
    return [torch.cat((trunk, branch)) for branch in branches]


@pytest.mark.parametrize("family", SHAPES)
def test_states_after_a_layer_are_the_hidden_states_of_the_plain_model(
    opened: Opening, family: str
) -> None:
    engine, plain = opened(family)
    item = engine.prepare(EXCHANGES[4], POLICIES[:2]).work[0]
    with torch.inference_mode():
        expected = [
            plain(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            for ids in prompts(item)
        ]
    for layer in (0, 1, LAST):
        rows, margins = states(engine, layer, [item])
        assert margins.tolist() == pytest.approx(engine.forward([item])[0], abs=MARGIN)
        if layer == LAST:  # there, transformers gives what the final norm made of them
            rows = engine.model.base_model.norm(rows)
        for found, hidden in zip(of_prompts(item, rows), expected, strict=True):
            # The hot checkpoint magnifies rounding; another layer's states are far farther away.
            torch.testing.assert_close(found, hidden[layer + 1][0], rtol=0, atol=0.01)
            assert (found - hidden[layer][0]).abs().max() > 1


@pytest.mark.parametrize("layer", [1, LAST])
def test_states_that_are_changed_go_on_as_in_the_plain_model(opened: Opening, layer: int) -> None:
    engine, plain = opened("gemma2")
    item = engine.prepare(EXCHANGES[1], POLICIES[:2]).work[0]
    torch.manual_seed(0)
    taken = 10 * torch.randn(128)

    def without(states: Tensor) -> Tensor:
        changed = states.clone()
        changed[..., -1, :] -= taken
        return changed

    margins = forward(engine, layer, [item], without)
    handle = plain.model.layers[layer].register_forward_hook(lambda *given: without(given[-1]))
    with torch.inference_mode():
        logits = plain(input_ids=torch.tensor([prompts(item)[1]])).logits[0, -1]
    handle.remove()
    yes, no = engine.prompts.answers
    before = engine.forward([item])[0]
    assert float(margins[0]) == pytest.approx(before[0], abs=MARGIN), "its branch was left alone"
    assert float(margins[1]) == pytest.approx(float(logits[yes] - logits[no]), abs=10 * MARGIN)
    assert abs(float(margins[1]) - before[1]) > 0.1


def test_nothing_stays_of_a_look(opened: Opening) -> None:
    engine, _ = opened("gemma2")
    item = engine.prepare(EXCHANGES[1], POLICIES[:2]).work[0]
    before = engine.forward([item])
    with pytest.raises(ZeroDivisionError):
        forward(engine, 1, [item], lambda states: states / (1 // 0))
    assert torch.is_grad_enabled()
    assert engine.forward([item]) == before
