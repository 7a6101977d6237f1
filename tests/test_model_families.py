"""Each family's packed scores equal those of its plain model, prompt by prompt.

Gemma 2 is measured at more length in test_packed_engine.py and test_prefix_cache.py.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoints import SHAPES, save_hot_checkpoint
from safetensors.torch import load_file, save_file
from test_packed_engine import (
    EXCHANGES,
    POLICIES,
    Expecting,
    Plain,
    assert_same,
    expecting,
    plain_scorer,
    probability,
    words,
)
from torch import nn
from transformers import PreTrainedModel
from typer.testing import CliRunner

from shieldgate.cli import app
from shieldgate.errors import ModelError
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.local import PackedEngine, load_checkpoint, load_engine
from shieldgate.scoring.local.families import FAMILIES
from shieldgate.scoring.local.packing import Layout
from shieldgate.tuning.adapt import Method, TrainableScorer
from shieldgate.types import Exchange
from shieldgate.worker.generator import load_generator

SHORT, LONG, ANSWERED = Exchange("Yes"), Exchange(words(200, seed=2)), EXCHANGES[4]


@dataclass(frozen=True)
class Subject:
    """A hot checkpoint, seen by our engine and by the plain model."""

    folder: Path
    engine: PackedEngine
    expected: Expecting
    plain: Plain


Opening = Callable[[str], Subject]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opening:
    """Opens each family's checkpoint once."""

    @cache
    def open_one(family: str) -> Subject:
        folder = save_hot_checkpoint(tmp_path_factory.mktemp(family), family=family)
        engine = load_engine(str(folder), device="cpu")
        return Subject(folder, engine, expecting(folder), plain_scorer(folder))

    return open_one


@pytest.fixture(params=sorted(SHAPES.keys() - {"gemma2"}))
def subject(request: pytest.FixtureRequest, opened: Opening) -> Subject:
    return opened(request.param)


def test_every_family_has_a_hot_checkpoint() -> None:
    assert SHAPES.keys() == FAMILIES.keys()


def test_packed_scores_equal_the_plain_models(subject: Subject) -> None:
    """For 1 to 8 policies, alone and beside other callers, past the window."""
    calls = [(SHORT, POLICIES[:1]), (LONG, POLICIES[:2]), (ANSWERED, POLICIES)]
    work = [subject.engine.prepare(*call).work[0] for call in calls]
    assert len(work[1].trunk) > 4 * 64
    assert max(map(len, work[2].branches)) > 64
    together = subject.engine.forward(work)
    for (exchange, policies), item, margins in zip(calls, work, together, strict=True):
        expected = [subject.expected(exchange, p, "chat") for p in policies]
        assert_same(margins, expected)
        assert_same(subject.engine.forward([item])[0], expected)


def test_a_growing_answer_scores_as_if_each_check_stood_alone(subject: Subject) -> None:
    for cut in (11, 300, 411):
        growing = Exchange(ANSWERED.prompt, LONG.prompt[:cut], growing=True)
        [item] = subject.engine.prepare(growing, POLICIES[:2]).work
        judged = replace(growing, growing=False)
        expected = [subject.expected(judged, p, "chat") for p in POLICIES[:2]]
        assert_same(subject.engine.forward([item])[0], expected)
        assert subject.engine._prefixes.bytes, "and the next check builds on it"


def test_the_self_check_passes(subject: Subject) -> None:
    subject.engine.check()


def without_norms(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = nn.Identity()


def bases(full: float, sliding: float) -> dict[str, object]:
    return {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": full},
            "sliding_attention": {"rope_type": "default", "rope_theta": sliding},
        }
    }


@pytest.mark.parametrize(
    ("family", "ablation"),
    [
        ("gemma3_text", {"sliding_window": 100_000}),
        ("gemma3_text", {"damage": without_norms}),
        ("gemma3_text", bases(1e4, 1e6)),
        ("gemma3_text", bases(1e4, 1e4)),
        ("gemma3_text", bases(1e6, 1e6)),
        ("gemma3_text", {"query_pre_attn_scalar": 64}),
        ("ministral", {"sliding_window": 100_000}),
        ("ministral", {"layer_types": ["sliding_attention"] * 4}),
        ("mistral", {"sliding_window": 100_000}),
        ("qwen2", {"sliding_window": 100_000}),
        ("qwen3", {"sliding_window": 100_000}),
        ("qwen3", {"damage": without_norms}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_leaving_out_what_makes_a_family_would_be_caught(
    opened: Opening, family: str, ablation: dict[str, object]
) -> None:
    subject = opened(family)
    wrong = plain_scorer(subject.folder, **ablation)
    assert moved(wrong, subject.plain) > 0.01


def moved(wrong: Plain, right: Plain) -> float:
    return max(
        abs(probability(wrong(e, p, "chat")) - probability(right(e, p, "chat")))
        for e in (LONG, ANSWERED)
        for p in POLICIES[:2]
    )


def test_positions_that_run_on_through_the_branches_would_be_caught(subject: Subject) -> None:
    [item] = subject.engine.prepare(ANSWERED, POLICIES[:4]).work
    layout = Layout.of([item], 64, torch.device("cpu"))
    wrong = replace(layout, positions=torch.arange(len(layout.ids)))
    with torch.inference_mode():
        right, moved = (subject.engine.margins(x).sigmoid() for x in (layout, wrong))
    assert (right - moved).abs().max() > 0.01


@pytest.mark.parametrize("rope_type", ["dynamic", "llama3", "yarn"])
def test_scaled_positions_are_computed_as_the_plain_model_does(
    tmp_path: Path, rope_type: str
) -> None:
    """The dynamic type is like the others: no prompt is longer than what it begins to scale at."""
    rope = {"rope_type": rope_type, "rope_theta": 10_000.0, "factor": 4.0}
    if rope_type in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = 256
    if rope_type == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    folder = save_hot_checkpoint(
        tmp_path, family="llama", rope_parameters=rope, max_position_embeddings=1024
    )
    engine, expected = load_engine(str(folder), device="cpu"), expecting(folder)
    exchanges = [Exchange(words(500, seed=9)), SHORT]
    work = [engine.prepare(e, POLICIES[:2]).work[0] for e in exchanges]
    assert sum(item.tokens for item in work) > 1024
    for exchange, margins in zip(exchanges, engine.forward(work), strict=True):
        assert_same(margins, [expected(exchange, p, "chat") for p in POLICIES[:2]])


def test_the_text_part_of_gemma_3_is_loaded_alone(
    opened: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = load_checkpoint(str(opened("gemma3").folder), device="cpu")
    assert type(checkpoint.model).__name__ == "Gemma3ForCausalLM"
    assert "vision_tower" not in caplog.text


@pytest.mark.usefixtures("restored_logging")
def test_the_command_line_scores_with_another_family(opened: Opening) -> None:
    result = CliRunner().invoke(app, ["score", "A text.", "--model", str(opened("llama").folder)])
    assert result.exit_code == 0, result.output
    assert "shieldgemma/dangerous" in result.stdout


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma3_text", "qwen3", "phi3"])
def test_the_generator_refuses_another_family_before_it_loads_it(
    tmp_path: Path, family: str
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ModelError, match=f"is a {family} model, and the generator is Gemma 2"):
        load_generator(str(tmp_path), device="cpu")


def test_the_text_part_is_found_under_both_names(opened: Opening, tmp_path: Path) -> None:
    """As `language_model.model`, as on the hub, and as `model.language_model`, as in memory."""
    subject = opened("gemma3")
    folder = Path(shutil.copytree(subject.folder, tmp_path / "renamed"))
    weights = load_file(folder / "model.safetensors")
    old, new = "language_model.model.", "model.language_model."
    assert any(name.startswith(old) for name in weights)
    renamed = {name.replace(old, new): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    work = subject.engine.prepare(SHORT, POLICIES[:1]).work
    assert load_engine(str(folder), device="cpu").forward(work) == subject.engine.forward(work)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_a_model_in_training_asks_as_it_scores_and_is_saved_as_a_checkpoint(
    opened: Opening, tmp_path: Path, family: str, method: Method
) -> None:
    subject = opened(family)
    # As tune loads it: what only scores can't be trained.
    engine = PackedEngine(load_checkpoint(str(subject.folder), device="cpu"), TEMPLATES["chat"])
    trainable = TrainableScorer.of(engine, method, tokens=2000, seed=0)
    trainable = replace(trainable, dtype=torch.float32)
    asked = [(LONG, POLICIES[:2])]
    [[_, margins]] = trainable.passes(asked)
    margins.sum().backward()
    with torch.no_grad():
        for parameter in trainable.scorer.model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-5)
    trained = trainable.ask(asked)[0]
    trainable.save(tmp_path)
    engine = load_engine(str(tmp_path), device="cpu")
    work = engine.prepare(*asked[0]).work
    assert engine.forward(work)[0] == pytest.approx(trained, abs=1e-3)
    assert subject.engine.forward(work)[0] != pytest.approx(trained, abs=1e-2)
