"""FlexAttention over the packed layout: the same scores, from tables that are overwritten."""

from pathlib import Path

import pytest
from test_packed_engine import (
    EXCHANGES,
    POLICIES,
    Expecting,
    assert_same,
    expecting,
)
from test_prefix_cache import score
from torch.nn.attention import flex_attention as torch_flex

from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.local import PackedEngine, load_engine


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def flexible(folder: Path, template: str = "chat", **options: int) -> PackedEngine:
    engine = load_engine(str(folder), device="cpu", template=template, **options)
    engine.warm(4096, compiled=False)
    return engine


@pytest.fixture(scope="module")
def expected(hot_checkpoint: Path) -> Expecting:
    return expecting(hot_checkpoint)


@pytest.mark.parametrize("template", TEMPLATES)
def test_scores_equal_the_plain_models(
    hot_checkpoint: Path, expected: Expecting, template: str
) -> None:
    engine = flexible(hot_checkpoint, template)
    for number, exchange in enumerate(EXCHANGES):
        if template == "blog" and exchange.response is not None:
            continue
        count = (1, 8, 4, 2, 8, 1)[number]
        margins = score(engine, exchange, count)
        assert_same(margins, [expected(exchange, p, template) for p in POLICIES[:count]])
