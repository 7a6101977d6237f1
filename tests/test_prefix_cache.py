"""Preambles are computed once, of growing answers what is new; the scores are the plain model's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_hot_checkpoint
from test_packed_engine import MARGIN, POLICIES, Expecting, assert_same, words

from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.local import PackedEngine, load_checkpoint, load_engine
from shieldgate.scoring.local.prefix_cache import PrefixCache, Trunk
from shieldgate.scoring.pack import pack
from shieldgate.types import Exchange

PROMPT = words(30, seed=1)
ANSWER = words(150, seed=2)
# Cut anywhere, inside words too: the tokens at the seam change as the answer grows.
CUTS = (1, 10, 11, 57, 200, 203, 411, 600, len(ANSWER))


@contextmanager
def counted(engine: PackedEngine) -> Iterator[list[int]]:
    """Count the tokens that each forward pass computes."""
    counts: list[int] = []
    hook = engine.model.model.embed_tokens.register_forward_hook(
        lambda module, args, output: counts.append(output.shape[1])
    )
    try:
        yield counts
    finally:
        hook.remove()


def score(engine: PackedEngine, exchange: Exchange, policies: int = 3) -> list[float]:
    return engine.forward(engine.prepare(exchange, POLICIES[:policies]).work)[0]


def preamble(engine: PackedEngine, ids: Sequence[int]) -> int:
    """Count how many of these tokens begin every prompt."""
    found = engine._prompts.preambles()
    return max(len(pack([[*ids, 0], [*known, 1]]).trunk) for known in found)


def growing(answer: str, cut: int) -> Exchange:
    return Exchange(PROMPT, answer[:cut], growing=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_begins_every_prompt_is_computed_once(
    hot_checkpoint: Path, expected: Expecting, name: str
) -> None:
    """Whatever text follows, also one whose first characters join the last of the preamble's."""
    engine = load_engine(str(hot_checkpoint), device="cpu", template=name)
    texts = ["", " ", "\n\nYes", ": no", "é", words(100, seed=9)]
    exchanges = [*map(Exchange, texts)]
    if name != "blog":
        exchanges += [Exchange(text, "No") for text in texts[:3]] + [Exchange("", words(9, seed=3))]
    for exchange in exchanges:
        (work,) = engine.prepare(exchange, POLICIES[:2]).work
        known = preamble(engine, work.trunk)
        assert known >= 20
        with counted(engine) as computed:
            (margins,) = engine.forward([work])
        assert computed == [work.tokens - known]
        assert_same(margins, [expected(exchange, p, name) for p in POLICIES[:2]])


def test_a_template_may_begin_with_the_text(hot_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text('{prompt: "{prompt}\\nIs it so?\\n", positive: "Yes", negative: "No"}')
    engine = load_engine(str(hot_checkpoint), device="cpu", template=str(file))
    assert engine._prompts.preambles() == []
    engine.check()


def test_callers_share_the_preamble_in_one_pass(hot_checkpoint: Path, expected: Expecting) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu")
    exchanges = [Exchange(words(n, seed=n)) for n in (3, 90)] + [Exchange("Why?", words(5, seed=5))]
    work = [engine.prepare(e, POLICIES[: 1 + i]).work[0] for i, e in enumerate(exchanges)]
    with counted(engine) as computed:
        found = engine.forward(work)
    assert computed == [sum(w.tokens - preamble(engine, w.trunk) for w in work)]
    for i, (exchange, margins) in enumerate(zip(exchanges, found, strict=True)):
        assert_same(margins, [expected(exchange, p, "chat") for p in POLICIES[: 1 + i]])


def test_what_is_trained_remembers_nothing_of_its_old_weights(hot_checkpoint: Path) -> None:
    engine = PackedEngine(load_checkpoint(str(hot_checkpoint), device="cpu"), TEMPLATES["chat"])
    work = engine.prepare(Exchange(PROMPT), POLICIES[:1]).work
    engine.forward(work)
    assert engine._remember(work) is None


@pytest.mark.parametrize("prefix_bytes", [2**30, 300_000, 0], ids=["roomy", "tight", "none"])
def test_a_growing_answer_scores_as_if_each_check_stood_alone(
    hot_checkpoint: Path, expected: Expecting, prefix_bytes: int
) -> None:
    engine = PackedEngine(
        load_checkpoint(str(hot_checkpoint), device="cpu"),
        TEMPLATES["chat"],
        prefix_bytes=prefix_bytes,
    )
    for cut in CUTS:
        found = score(engine, growing(ANSWER, cut))
        alone = Exchange(PROMPT, ANSWER[:cut])
        assert_same(found, [expected(alone, p, "chat") for p in POLICIES[:3]])
        assert engine._prefixes.bytes <= prefix_bytes


def test_each_check_computes_only_what_is_new(hot_checkpoint: Path) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu")
    work = [engine.prepare(growing(ANSWER, cut), POLICIES[:3]).work[0] for cut in CUTS]
    with counted(engine) as computed:
        for item in work:
            engine.forward([item])
    assert computed[0] == work[0].tokens - preamble(engine, work[0].trunk)
    for before, item, count in zip(work, work[1:], computed[1:], strict=False):
        new = len(item.trunk) - len(before.trunk)
        questions = sum(map(len, item.branches))
        after_the_answer = 48
        assert count <= new + questions + after_the_answer


def test_the_last_check_uses_what_the_growing_ones_left(
    hot_checkpoint: Path, expected: Expecting
) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu")
    score(engine, growing(ANSWER, 700))
    whole = Exchange(PROMPT, ANSWER)
    (last,) = engine.prepare(whole, POLICIES[:3]).work
    with counted(engine) as computed:
        [margins] = engine.forward([last])
    assert computed[0] < last.tokens / 2
    assert_same(margins, [expected(whole, p, "chat") for p in POLICIES[:3]])
    other = Exchange(words(80, seed=40))
    assert_same(score(engine, other), [expected(other, p, "chat") for p in POLICIES[:3]])


def test_an_exchange_that_does_not_grow_leaves_nothing_behind(hot_checkpoint: Path) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu")
    score(engine, Exchange(PROMPT, ANSWER))
    assert engine._prefixes.bytes == 0


def test_without_a_budget_nothing_is_kept(hot_checkpoint: Path) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu", prefix_bytes=0)
    work = [engine.prepare(growing(ANSWER, cut), POLICIES[:3]).work[0] for cut in (400, 600)]
    with counted(engine) as computed:
        for item in work:
            engine.forward([item])
    assert computed == [w.tokens - preamble(engine, w.trunk) for w in work]


def test_answers_that_grow_side_by_side_are_not_confused(
    hot_checkpoint: Path, expected: Expecting
) -> None:
    """Several choices of one prompt, and other callers, in the same forward passes."""
    engine = load_engine(str(hot_checkpoint), device="cpu")
    answers = [words(120, seed=n) for n in (5, 6)]
    alone = Exchange(words(40, seed=7))
    for cut in (5, 120, 400):
        exchanges = [growing(answers[0], cut), alone, growing(answers[1], cut)]
        work = [engine.prepare(e, POLICIES[:2]).work[0] for e in exchanges]
        with counted(engine) as computed:
            margins = engine.forward(work)
        if cut > 5:
            assert computed[0] < sum(w.tokens for w in work) - 2 * 50
        for exchange, found in zip(exchanges, margins, strict=True):
            judged = replace(exchange, growing=False)
            assert_same(found, [expected(judged, p, "chat") for p in POLICIES[:2]])


def test_a_growing_answer_beyond_the_context_is_judged_in_windows(tmp_path: Path) -> None:
    folder = save_hot_checkpoint(tmp_path, max_position_embeddings=512)
    engine = load_engine(str(folder), device="cpu")
    fresh = load_engine(str(folder), device="cpu")
    answer = words(500, seed=8)
    for cut in (200, 900, 1500, len(answer)):
        work = engine.prepare(growing(answer, cut), POLICIES[:2]).work
        expected = fresh.prepare(Exchange(PROMPT, answer[:cut]), POLICIES[:2]).work
        for item, same in zip(work, expected, strict=True):
            assert engine.forward([item])[0] == pytest.approx(fresh.forward([same])[0], abs=MARGIN)


def trunk(*ids: int) -> Trunk:
    tensor = torch.zeros(1, len(ids), 1)
    return Trunk(np.array(ids), ((tensor, tensor),))


def test_the_cache_replaces_what_a_trunk_has_outgrown_and_forgets_the_oldest() -> None:
    one = trunk(0).bytes
    cache = PrefixCache(max_bytes=300 * one)
    cache.keep(trunk(*range(100)))
    cache.keep(trunk(*range(80), *range(500, 520)))  # the last tokens of the first were the tail
    assert cache.bytes == 100 * one
    other = trunk(*range(1000, 1150))
    cache.keep(other)
    assert cache.bytes == 250 * one
    assert cache.find(np.arange(90))[1] == 80
    cache.keep(trunk(*range(2000, 2100)))
    assert cache.find(other.ids)[1] == 0
    assert cache.find(np.arange(90))[1] == 80, "it was used after the other"
