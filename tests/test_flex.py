"""FlexAttention over the packed layout: the same scores, from tables that are overwritten."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_hot_checkpoint
from test_packed_engine import (
    EXCHANGES,
    MARGIN,
    POLICIES,
    Expecting,
    assert_same,
    words,
)
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_mask
from torch.utils._python_dispatch import TorchDispatchMode

from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.scoring.local.flex import BLOCK, Masks, Shape, Tables, lay_out, shape_of
from shieldgate.scoring.local.prefix_cache import PrefixKV
from shieldgate.scoring.local.runner import ModelRunner
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flex_attention run operation by operation, and not warn of it."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def flexible(folder: Path, **options: Any) -> PackedEngine:
    engine = load_engine(str(folder), device="cpu", **options)
    engine.warm(4096, compiled=False)
    return engine


def score(engine: PackedEngine, exchange: Exchange, policies: int) -> list[float]:
    return engine.forward(engine.prepare(exchange, POLICIES[:policies]).work)[0]


@pytest.mark.parametrize("template", TEMPLATES)
def test_scores_equal_the_plain_models(
    hot_checkpoint: Path, expected: Expecting, template: str
) -> None:
    """Beyond the window, too: the hot model's has 64 tokens."""
    engine = flexible(hot_checkpoint, template=template)
    cases = [(EXCHANGES[0], 8 if template == "chat" else 3), (EXCHANGES[2], 1)]
    if template != "blog":
        cases.append((EXCHANGES[4], 2))
    for exchange, count in cases:
        margins = score(engine, exchange, count)
        assert_same(margins, [expected(exchange, p, template) for p in POLICIES[:count]])


def test_callers_share_a_pass_and_the_next_overwrites_its_tables(
    hot_checkpoint: Path, expected: Expecting
) -> None:
    engine = flexible(hot_checkpoint)
    calls = [(e, POLICIES[: 1 + i % 2]) for i, e in enumerate(EXCHANGES)]
    for part in (calls[:3], calls[3:5], calls[:1]):
        work = [engine.prepare(e, p).work[0] for e, p in part]
        for (exchange, policies), margins in zip(part, engine.forward(work), strict=True):
            assert_same(margins, [expected(exchange, p, "chat") for p in policies])


def test_growing_answers_use_what_is_remembered(hot_checkpoint: Path, expected: Expecting) -> None:
    engine = flexible(hot_checkpoint)
    prompt, alone = words(30, seed=1), Exchange(words(40, seed=7))
    answers = [words(120, seed=n) for n in (5, 6)]
    for cut in (5, 120, 400):
        exchanges = [
            Exchange(prompt, answers[0][:cut], growing=True),
            alone,
            Exchange(prompt, answers[1][:cut], growing=True),
        ]
        work = [engine.prepare(e, POLICIES[:2]).work[0] for e in exchanges]
        memory = engine._remember(work)
        assert memory is not None
        assert (2 * memory.lengths[0] > len(work[0].trunk)) == (cut > 5), "the preamble is less"
        for e, found in zip(exchanges, engine.forward(work), strict=True):
            plain = Exchange(e.prompt, e.response)
            assert_same(found, [expected(plain, p, "chat") for p in POLICIES[:2]])


def test_a_batch_beyond_the_limit_is_computed_all_the_same(
    tmp_path: Path, hot_checkpoint: Path
) -> None:
    folder = save_hot_checkpoint(tmp_path, max_position_embeddings=512)
    engine, other = load_engine(str(folder), device="cpu"), load_engine(str(folder), device="cpu")
    engine.warm(512, compiled=False)
    work = [engine.prepare(Exchange(words(60, seed=n)), POLICIES[:4]).work[0] for n in range(4)]
    assert engine._runner is not None
    assert engine._runner.shape(work[:1], None) is not None
    assert engine._runner.shape(work, None) is None
    for found, same in zip(engine.forward(work), other.forward(work), strict=True):
        assert found == pytest.approx(same, abs=MARGIN)


PACKS = [
    Pack(tuple(range(300)), (tuple(range(3)), (4,), tuple(range(140)))),
    Pack((), ((1, 2), (3,))),
    Pack((5,), (tuple(range(260)),)),
    Pack(tuple(range(150)), ((6, 7),)),
]


@pytest.mark.parametrize("window", [1, 7, 130, 5000])
@pytest.mark.parametrize("known", [(0, 0, 0, 0), (200, 0, 0, 150), (17, 0, 1, 0)])
def test_masks_and_blocks_show_each_token_exactly_what_it_may_see(
    window: int, known: tuple[int, ...]
) -> None:
    limit = Shape(2048, 512)
    shape = shape_of(PACKS, known, lambda n: -(-n // BLOCK) * BLOCK)
    tables = Tables(limit, torch.device("cpu"))
    tables.tensor.fill_(3)  # what another batch has left
    batch = lay_out(tables, PACKS, known, shape, window)
    assert batch.reads == sum(len(p.branches) for p in PACKS)

    # Who each key and each row is: of which pack, which part of it, at which position.
    past = [(i, 0, p) for i, n in enumerate(known) for p in range(n)]
    past += [(-1, 0, 0)] * (shape.remembered - len(past))
    rows = []
    for i, (p, n) in enumerate(zip(PACKS, known, strict=True)):
        rows += [(i, 0, position) for position in range(n, len(p.trunk))]
        for b, branch in enumerate(p.branches, 1):
            rows += [(i, b, len(p.trunk) + position) for position in range(len(branch))]
    rows += [(99, 1, position) for position in range(shape.rows - len(rows))]
    key, row = torch.tensor(past + rows)[None], torch.tensor(rows)[:, None]
    back = row[..., 2] - key[..., 2]
    seen = (key[..., 0] == row[..., 0]) & (back >= 0)
    seen &= (key[..., 1] == row[..., 1]) | (key[..., 1] == 0)

    masks = Masks(tables, window)
    for mask, kind, reach in zip(
        masks.of(shape), ("full", "sliding"), (10**6, window), strict=True
    ):
        right = seen & (back < reach)
        assert right.any(dim=1).all()
        shown = create_mask(mask.mask_mod, 1, 1, shape.rows, shape.keys, device="cpu")[0, 0]
        assert torch.equal(shown, right)
        blocks = right.view(shape.rows // BLOCK, BLOCK, -1, BLOCK).transpose(1, 2)
        partial, whole = (listed(tables, kind, part, shape) for part in ("partial", "whole"))
        assert not (partial & whole).any(), "each block once"
        assert torch.equal(partial | whole, _any(blocks))
        assert (whole <= _all(blocks)).all(), "a whole block is computed without its mask"
        if reach > 1000:
            assert torch.equal(whole, _all(blocks)), "none is masked without need"


def _any(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.flatten(2).any(dim=2)


def _all(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.flatten(2).all(dim=2)


def listed(tables: Tables, kind: str, part: str, shape: Shape) -> torch.Tensor:
    count, indices = tables.blocks(kind, part, shape)
    found = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for line, number in enumerate(count[0, 0].tolist()):
        columns = indices[0, 0, line, :number].tolist()
        assert len(set(columns)) == number
        found[line, columns] = True
    return found


# PyTorch's own import of its compiler warns.
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_is_warmed_fits_a_small_limit(hot_checkpoint: Path) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu")
    tried: list[int] = []

    class Listing(ModelRunner):
        def _try(self, shape: Shape, memory: PrefixKV | None = None) -> None:
            tried.append(shape.rows)

    runner = Listing(engine.model.base_model, engine.margins, 64, Shape(512))
    runner.warm()
    runner.undo()
    assert tried == [512]


class Counting(TorchDispatchMode):
    """Counts the operations that are dispatched; an attention call is one."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_pass_takes_as_many_operations_for_many_texts_as_for_one(
    hot_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shieldgate.scoring.local.row_blocks.BLOCK_ROWS", 2**30)
    engine = load_engine(str(hot_checkpoint), device="cpu")
    engine.warm(4096, compiled=False)
    one = Pack(tuple(range(10, 30)), ((1, 2), (3, 4)))
    counts = []
    for work in ([one], [one] * 16):
        engine.forward(work)  # its masks are made once
        with Counting() as counting:
            engine.forward(work)
        counts.append(counting.count)
    assert counts[0] == counts[1]
