"""Packed, batched and windowed scores equal those of the plain model, prompt by prompt."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints import WORDS, save_hot_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from shieldgate.errors import ConfigurationError, ModelError
from shieldgate.policy import Policy
from shieldgate.prompt import TEMPLATES, find_template, render
from shieldgate.scoring.local import PackedEngine, load_checkpoint, load_engine
from shieldgate.scoring.local.packing import Layout
from shieldgate.scoring.pack import Pack, pack
from shieldgate.types import Exchange

# Our fp32 may be this much farther from the truth, the plain model in fp64, than the plain model in
# fp32 is: the hot checkpoint magnifies rounding, to 1.2e-5 of probability on some processors.
MARGIN = 1e-4
PROBABILITY = 1e-5

Plain = Callable[[Exchange, Policy, str], float]


@dataclass(frozen=True)
class Expected:
    """A margin by the plain model in fp64, and in fp32."""

    exact: float
    rounded: float


Expecting = Callable[[Exchange, Policy, str], Expected]


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def policy(number: int) -> Policy:
    text = words(4 + 7 * number, seed=number)
    return Policy(
        id=f"test/{number}",
        title=f"No {number}",
        guidelines={"prompt": f'"No {number}": {text}.', "response": f'"Not {number}": {text}.'},
        thresholds={"prompt": 0.5, "response": 0.5},
    )


POLICIES = [policy(n) for n in range(8)]
EXCHANGES = [
    Exchange("Yes"),
    Exchange(words(25, seed=1)),
    Exchange(words(200, seed=2)),
    Exchange("", words(10, seed=3)),
    Exchange(words(30, seed=4), words(90, seed=5)),
    Exchange(words(150, seed=6), "No"),
]


def probability(margin: float) -> float:
    return 1 / (1 + math.exp(-margin))


@pytest.fixture(scope="module")
def engines(hot_checkpoint: Path) -> dict[str, PackedEngine]:
    return {
        name: load_engine(str(hot_checkpoint), device="cpu", template=name) for name in TEMPLATES
    }


def plain_scorer(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    damage: Callable[[PreTrainedModel], None] | None = None,
    **ablations: object,
) -> Plain:
    """Score as the model card does: the whole prompt as one text, full logits, eager attention."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=dtype, **ablations
    )
    if damage is not None:
        damage(model)
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])

    def score(exchange: Exchange, policy: Policy, template: str = "chat") -> float:
        guideline = policy.guidelines[exchange.direction]
        text = render(TEMPLATES[template].segments(exchange, guideline))
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -1]
        return float(logits[yes] - logits[no])

    return score


def expecting(checkpoint: Path) -> Expecting:
    """Tell what the plain model says, computing each prompt once."""
    exact, rounded = plain_scorer(checkpoint, torch.float64), plain_scorer(checkpoint)
    known: dict[object, Expected] = {}

    def score(exchange: Exchange, policy: Policy, template: str) -> Expected:
        asked = exchange, policy.id, template
        if asked not in known:
            known[asked] = Expected(
                *(plain(exchange, policy, template) for plain in (exact, rounded))
            )
        return known[asked]

    return score


def assert_same(found: Sequence[float], expected: Sequence[Expected]) -> None:
    for margin, e in zip(found, expected, strict=True):
        assert abs(margin - e.exact) <= abs(e.rounded - e.exact) + MARGIN
        ours, rounded, exact = map(probability, (margin, e.rounded, e.exact))
        assert abs(ours - exact) <= abs(rounded - exact) + PROBABILITY


# A template says nothing of how many policies there are.
@pytest.mark.parametrize(
    ("template", "count"),
    [("chat", 1), ("chat", 8), *((name, n) for name in TEMPLATES for n in (2, 4))],
)
def test_packed_scores_equal_the_plain_models(
    engines: dict[str, PackedEngine], expected: Expecting, template: str, count: int
) -> None:
    for exchange in EXCHANGES:
        if template == "blog" and exchange.response is not None:
            continue
        prepared = engines[template].prepare(exchange, POLICIES[:count])
        margins = engines[template].forward(prepared.work)
        found = [s.margin for s in prepared.scores(margins)]
        assert_same(found, [expected(exchange, p, template) for p in POLICIES[:count]])


def test_prompts_beyond_the_sliding_window_are_among_the_cases(
    engines: dict[str, PackedEngine],
) -> None:
    window = 64
    packs = [engines["chat"].prepare(e, POLICIES).work[0] for e in EXCHANGES]
    assert max(len(p.trunk) for p in packs) > 4 * window
    assert min(len(p.trunk) for p in packs) < window
    assert max(len(b) for p in packs for b in p.branches) > window


def test_callers_of_mixed_lengths_and_policies_share_one_forward_pass(
    engines: dict[str, PackedEngine], expected: Expecting
) -> None:
    engine = engines["chat"]
    calls = [(e, POLICIES[i : i + 1 + i % 4]) for i, e in enumerate(EXCHANGES)]
    work = [engine.prepare(e, p).work[0] for e, p in calls]
    for (exchange, policies), margins in zip(calls, engine.forward(work), strict=True):
        assert_same(margins, [expected(exchange, p, "chat") for p in policies])


@pytest.mark.parametrize(
    ("ablation", "at_least"),
    [
        ({"final_logit_softcapping": None}, 0.01),
        ({"attn_logit_softcapping": None}, 0.02),
        ({"sliding_window": 100_000}, 0.02),
    ],
    ids=["final cap", "attention cap", "sliding window"],
)
def test_dropping_a_cap_or_the_window_would_be_caught(
    hot_checkpoint: Path, expected: Expecting, ablation: dict[str, object], at_least: float
) -> None:
    wrong = plain_scorer(hot_checkpoint, **ablation)
    moved = max(
        abs(probability(wrong(e, p, "chat")) - probability(expected(e, p, "chat").rounded))
        for e in EXCHANGES
        for p in POLICIES[:2]
    )
    assert moved > at_least, "hundreds of times what a right engine may differ by"


def test_a_long_trunk_is_computed_in_blocks_as_if_it_were_one(
    engines: dict[str, PackedEngine], expected: Expecting
) -> None:
    exchange = Exchange(words(600, seed=9))
    prepared = engines["chat"].prepare(exchange, POLICIES[:2])
    assert len(prepared.work[0].trunk) > 1024
    margins = engines["chat"].forward(prepared.work)[0]
    assert_same(margins, [expected(exchange, p, "chat") for p in POLICIES[:2]])


def test_bf16_probabilities_stay_within_two_percent(tmp_path: Path) -> None:
    """Both read the last hidden state in fp32, because bf16 logits are coarser than the rule.

    On a warm checkpoint: on the hot one the plain model's own rounding already costs ten percent.
    """
    warm = save_hot_checkpoint(tmp_path, heat=1.5)
    engine = load_engine(str(warm), device="cpu", dtype="bfloat16")
    assert engine.identity.dtype == "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(warm)
    model = AutoModelForCausalLM.from_pretrained(
        warm, attn_implementation="eager", dtype=torch.bfloat16
    )
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    for exchange in EXCHANGES:
        margins = engine.forward(engine.prepare(exchange, POLICIES[:2]).work)[0]
        for margin, p in zip(margins, POLICIES, strict=False):
            segments = TEMPLATES["chat"].segments(exchange, p.guidelines[exchange.direction])
            inputs = tokenizer(render(segments), add_special_tokens=False, return_tensors="pt")
            with torch.inference_mode():
                hidden = model.model(**inputs).last_hidden_state[0, -1].float()
                z = 30 * torch.tanh(model.lm_head.weight[[yes, no]].float() @ hidden / 30)
            assert abs(probability(margin) - probability(float(z[0] - z[1]))) <= 0.02


def test_gradients_flow_through_the_packed_forward(hot_checkpoint: Path) -> None:
    """Training sees the same numbers as scoring, so a tuned model is the model that was trained."""
    engine = PackedEngine(load_checkpoint(str(hot_checkpoint), device="cpu"), find_template("chat"))
    work = [engine.prepare(e, POLICIES[:3]).work[0] for e in EXCHANGES[:2]]
    scored = [m for margins in engine.forward(work) for m in margins]
    weight = engine.model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    margins = engine.margins(Layout.of(work, 64, torch.device("cpu")))
    margins.sum().backward()
    assert margins.tolist() == pytest.approx(scored, abs=MARGIN)
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_long_content_is_judged_in_overlapping_windows_and_the_worst_counts(
    tmp_path: Path,
) -> None:
    folder = save_hot_checkpoint(tmp_path, max_position_embeddings=512)
    engine = load_engine(str(folder), device="cpu")
    text = words(700, seed=11)
    for exchange in (Exchange(text), Exchange("Why?", text), Exchange(text, words(500, seed=12))):
        prepared = engine.prepare(exchange, POLICIES[:2])
        assert len(prepared.work) > 1
        margins = [engine.forward([w])[0] for w in prepared.work]
        scores = prepared.scores(margins)
        assert [s.margin for s in scores] == [max(c) for c in zip(*margins, strict=True)]
        assert all(s.windows == len(prepared.work) for s in scores)
        for work in prepared.work:
            assert max(len(work.trunk) + len(b) for b in work.branches) <= 512


def test_a_guideline_that_leaves_no_room_is_refused_with_the_mend(tmp_path: Path) -> None:
    engine = load_engine(
        str(save_hot_checkpoint(tmp_path, max_position_embeddings=128)), device="cpu"
    )
    with pytest.raises(ConfigurationError, match="shorten it"):
        engine.prepare(Exchange(words(100, seed=1)), POLICIES)


def test_the_self_check_passes_on_a_right_engine_and_fails_on_a_wrong_one(
    hot_checkpoint: Path,
) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu")
    engine.check()
    engine._answers = engine._answers.flip(0)
    with pytest.raises(ModelError, match="self-check failed"):
        engine.check()


def test_a_score_that_is_not_finite_is_an_error_and_never_a_pass(hot_checkpoint: Path) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu")
    engine.model.lm_head.weight.mul_(math.nan)
    with pytest.raises(FloatingPointError):
        engine.forward([Pack((2, 300), ((301,),))])


def test_pack_shares_the_longest_common_prefix_and_leaves_each_branch_a_token() -> None:
    assert pack([[1, 2, 3, 4], [1, 2, 5]]) == Pack((1, 2), ((3, 4), (5,)))
    assert pack([[1, 2, 3], [1, 2]]) == Pack((1,), ((2, 3), (2,)))
    assert pack([[1, 2, 3]]) == Pack((1, 2), ((3,),))
    assert pack([[1, 2], [1, 2]]) == Pack((1,), ((2,), (2,)))
    assert pack([[1], [2]]) == Pack((), ((1,), (2,)))
    assert pack([[1, 2, 3, 4], [1, 2, 5]]).tokens == 5


@pytest.mark.parametrize("window", [3, 7, 64, 1000])
@pytest.mark.parametrize("block_rows", [1, 4, 256])
def test_blocks_show_each_token_exactly_what_it_may_see(
    monkeypatch: pytest.MonkeyPatch, window: int, block_rows: int
) -> None:
    monkeypatch.setattr("shieldgate.scoring.local.packing.BLOCK_ROWS", block_rows)
    packs = [
        Pack(tuple(range(11)), ((1, 2, 3), (4,), tuple(range(9)))),
        Pack((), ((1, 2), (3,))),
        Pack((5,), ((6, 7, 8, 9, 10),)),
    ]
    layout = Layout.of(packs, window, torch.device("cpu"))
    size = sum(p.tokens for p in packs)
    owner = torch.tensor(
        [
            (i, b)
            for i, p in enumerate(packs)
            for b, n in enumerate([p.trunk, *p.branches])
            for _ in n
        ]
    )
    position = layout.positions
    same_pack = owner[:, None, 0] == owner[None, :, 0]
    own_or_trunk = (owner[:, None, 1] == owner[None, :, 1]) | (owner[None, :, 1] == 0)
    back = position[:, None] - position[None, :]
    for blocks, reach in ((layout.full, size), (layout.sliding, window)):
        expected = same_pack & own_or_trunk & (back >= 0) & (back < reach)
        seen = torch.zeros(size, size, dtype=torch.bool)
        covered = []
        for block in blocks:
            covered += range(block.rows.start, block.rows.stop)
            columns = torch.cat([torch.arange(k.start, k.stop) for k in block.keys])
            shown = torch.ones(block.rows.stop - block.rows.start, len(columns), dtype=torch.bool)
            for place, hidden in block.hidden:
                shown[:, place] &= ~hidden
            assert shown.any(dim=0).all(), "a key that nobody sees should not be computed"
            seen[block.rows.start : block.rows.stop, columns] = shown
        assert covered == list(range(size))
        assert torch.equal(seen, expected)
