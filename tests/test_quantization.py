"""Weights in 8 and 4 bits compute what they stand for; what isn't read right is refused."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_hot_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shieldgate.errors import ModelError
from shieldgate.policy import load_book
from shieldgate.scoring.local import load_checkpoint, load_engine
from shieldgate.scoring.local.quantization import Quantization
from shieldgate.types import Exchange

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
WAYS = ["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"]
POLICIES = [p for p in load_book().policies.values() if p.id.startswith("shieldgemma/")]
LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(
        name.split("-", maxsplit=1)[0], reason="runs apart, with shieldgate[quantize]: see .ci/run"
    )
    return name


@pytest.fixture
def calm(tmp_path: Path) -> Path:
    """Not so hot that rounding a weight changes every score."""
    return save_hot_checkpoint(tmp_path / "calm", heat=1.0)


def stored(folder: Path, way: str) -> Path:
    """Quantise a checkpoint by its library, and save it as transformers does."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=Quantization(way).config(torch.float32),
        device_map={"": "cpu"},
    )
    target = folder.with_name(way)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def margins(folder: Path, **options: str) -> list[float]:
    engine = load_engine(str(folder), device="cpu", dtype="float32", **options)
    engine.check()
    work = engine.prepare(Exchange("the quick brown fox brews tea"), POLICIES).work
    return engine.forward(work)[0]


def furthest(some: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def dequantised(folder: Path, way: str) -> Path:
    """Write what the stored numbers stand for as a plain checkpoint, by our own arithmetic."""
    weights = load_file(folder / "model.safetensors")
    plain = {n: t for n, t in weights.items() if t.is_floating_point() and "_proj" not in n}
    for name in [n for n in weights if n.endswith(("_proj.weight", "_proj._weight_qdata"))]:
        layer = name.rsplit(".", 1)[0]
        if way == "torchao-int8":
            value = weights[name].float() * weights[f"{layer}._weight_scale"]
        elif way == "bitsandbytes-8bit":
            value = weights[name].float() * weights[f"{layer}.SCB"][:, None] / 127
        else:
            codes = torch.stack([weights[name] >> 4, weights[name] & 15], -1).flatten().long()
            blocks = weights[f"{layer}.weight.quant_map"][codes].view(-1, 64)
            state = next(n for n in weights if n.startswith(f"{layer}.weight.quant_state"))
            shape = json.loads(bytes(weights[state].tolist()))["shape"]
            value = (blocks * weights[f"{layer}.weight.absmax"][:, None]).view(shape)
        plain[f"{layer}.weight"] = value.contiguous()
    target = folder.with_name(f"plain-{way}")
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".json":
            (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))
    save_file(plain, target / "model.safetensors", {"format": "pt"})
    return target


def test_it_scores_near_the_checkpoint_and_says_so_in_its_identity(calm: Path, way: str) -> None:
    engine = load_engine(str(calm), device="cpu", dtype="float32", quantize=way)
    plain = load_engine(str(calm), device="cpu", dtype="float32")
    assert engine.identity.dtype == f"float32+{way}"
    assert engine.identity.key != plain.identity.key
    away = furthest(margins(calm, quantize=way), margins(calm))
    assert 0 < away < (1.0 if way == "bitsandbytes-4bit" else 0.3)


def test_what_is_stored_is_read_as_the_numbers_that_it_stands_for(calm: Path, way: str) -> None:
    folder = stored(calm, way)
    read = margins(folder)
    # Inputs are rounded, too, by bitsandbytes in 8 bits.
    tolerance = 0.1 if way == "bitsandbytes-8bit" else 0.02
    assert furthest(read, margins(dequantised(folder, way))) < tolerance
    assert furthest(read, margins(calm, quantize=way)) < 1e-4

    def wrong(weights: dict[str, torch.Tensor]) -> None:
        for name, scale in weights.items():
            if name.endswith(SCALES):
                scale[::2] *= 4  # every other: norms undo what all have in common

    edit(folder, wrong)
    assert furthest(read, margins(folder)) > 2 * tolerance, "a scale left out would be caught"


SCALES = ("SCB", "absmax", "_weight_scale")


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    weights = load_file(path)
    change(weights)
    save_file(weights, path, said)


def test_a_score_does_not_hang_on_what_shares_its_pass(calm: Path, way: str) -> None:
    engine = load_engine(str(calm), device="cpu", dtype="float32", quantize=way)
    texts = ["the quick brown fox", "seven wizards brew tea " * 20, "no"]
    work = [engine.prepare(Exchange(text), POLICIES).work[0] for text in texts]
    together = engine.forward(work)
    for alone, beside in zip(work, together, strict=True):
        assert furthest(engine.forward([alone])[0], beside) < 1e-3


def refused(folder: Path, **options: str) -> str:
    with pytest.raises(ModelError) as refusal:
        load_engine(str(folder), device="cpu", **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_part_that_is_missing_added_or_not_finite_is_refused(calm: Path, way: str) -> None:
    folder = stored(calm, way)
    whole = (folder / "model.safetensors").read_bytes()
    part = next(n for n in load_file(folder / "model.safetensors") if n.endswith(SCALES))
    edit(folder, lambda w: w.pop(part))
    assert f"lacks {part}" in refused(folder)
    (folder / "model.safetensors").write_bytes(whole)
    edit(folder, lambda w: w.update({f"{LAYER}.input_scale": torch.ones(1)}))
    assert f"{LAYER}.input_scale first" in refused(folder)
    (folder / "model.safetensors").write_bytes(whole)
    edit(folder, lambda w: w[part].flatten()[:1].fill_(float("nan")))
    assert f"has numbers in {part} that are not finite" in refused(folder)


@pytest.mark.parametrize(
    ("way", "field", "value"),
    [
        ("bitsandbytes-8bit", "llm_int8_has_fp16_weight", True),
        ("bitsandbytes-4bit", "bnb_4bit_quant_storage", "bfloat16"),
        ("bitsandbytes-4bit", "bnb_4bit_quant_type", "int4"),
        ("torchao-int8", "quant_type", {"default": {"_type": "Float8WeightOnlyConfig"}}),
        ("torchao-int8", "include_input_output_embeddings", True),
        ("torchao-int8", "unheard_of", 1),
    ],
)
def test_a_config_that_means_something_else_is_refused(
    calm: Path, way: str, field: str, value: Any
) -> None:
    pytest.importorskip(
        way.split("-", maxsplit=1)[0], reason="runs apart, with shieldgate[quantize]: see .ci/run"
    )
    path = stored(calm, way) / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"][field] = value
    path.write_text(json.dumps(config))
    assert f"with {field} " in refused(path.parent)


def test_only_a_scorer_takes_it_and_it_is_not_quantised_again(calm: Path) -> None:
    pytest.importorskip("torchao", reason="runs apart, with shieldgate[quantize]: see .ci/run")
    folder = stored(calm, "torchao-int8")
    with pytest.raises(ModelError, match="only a scorer takes such weights"):
        load_checkpoint(str(folder), device="cpu")
    assert "is quantised already" in refused(folder, quantize="bitsandbytes-4bit")
    load_engine(str(folder), device="cpu", quantize="torchao-int8")


def test_what_the_device_cannot_compute_is_refused(calm: Path) -> None:
    assert "on an NVIDIA GPU alone" in refused(calm, quantize="torchao-int4")


def test_products_in_4_bits_never_compute_in_float16_nor_8_bits_by_outliers() -> None:
    pytest.importorskip("bitsandbytes", reason="runs apart, with shieldgate[quantize]: see .ci/run")
    assert importlib.import_module("bitsandbytes")
    config = Quantization("bitsandbytes-4bit").config(torch.bfloat16)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert Quantization("bitsandbytes-8bit").config(torch.bfloat16).llm_int8_threshold == 0
