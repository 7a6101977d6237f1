"""Loading: what can't be a scorer is refused in one sentence that says how to mend it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from checkpoints import save_hot_checkpoint
from hub import COMMIT, Hub
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from shieldgate.errors import ModelError
from shieldgate.prompt import TEMPLATES, render
from shieldgate.scoring.local import load_checkpoint, load_engine
from shieldgate.types import Exchange

SHIELDGEMMA = "google/shieldgemma-2b"
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 64,
    "long_factor": [4.0] * 64,
    "original_max_position_embeddings": 4096,
}


@pytest.fixture
def checkpoint(hot_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(hot_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def point_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Point the hub's client at an address, with an empty cache."""

    def point(address: str) -> None:
        path = "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + path,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)

    return point


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(model: str | Path, **options: str) -> str:
    with pytest.raises(ModelError) as refusal:
        load_engine(str(model), **options)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "no such folder" in refused("./nowhere")
    assert "no such folder" in refused("shieldgemma")


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert "holds no config.json" in refused(tmp_path)


def test_a_folder_without_a_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "lacks tokenizer.json" in refused(checkpoint)


def test_a_folder_without_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "The folder must hold model.safetensors" in refused(checkpoint)


def test_weights_that_lack_a_tensor_are_not_filled_with_noise(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    assert "lack 1 tensor " in refused(checkpoint)


def test_weights_that_were_cut_off(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "the weights can't be read" in refused(checkpoint)


def test_weights_as_a_pickle_are_not_read(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    torch.save(load_file(path), checkpoint / "pytorch_model.bin")
    path.unlink()
    assert "The folder must hold model.safetensors" in refused(checkpoint)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer(checkpoint: Path, content: str) -> None:
    (checkpoint / "tokenizer.json").write_text(content)
    assert "its tokenizer can't be read" in refused(checkpoint)


def test_a_broken_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    assert "config.json can't be read" in refused(checkpoint)


def test_a_config_that_contradicts_itself(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=3)
    assert "config.json can't be read" in refused(checkpoint)


def test_a_model_of_an_unknown_family(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "bert"}))
    said = refused(checkpoint)
    assert "is a bert model, and the scorer knows Gemma 2, Gemma 3, Llama, " in said
    assert said.count(". ") == 1, "what is wrong, and what to do"


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("llama", {"is_causal": False}, "lets tokens see those after them"),
        ("gemma2", {"use_bidirectional_attention": True}, "lets tokens see those after them"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "lets tokens see those after them"),
        ("qwen3", {"rope_parameters": LONGROPE}, "(rope_type longrope)"),
        (
            "gemma3",
            {"text_config": {"rope_parameters": {"full_attention": LONGROPE}}},
            "(rope_type longrope)",
        ),
    ],
)
def test_what_a_family_cannot_do_exactly_is_refused(
    checkpoint: Path, family: str, config: dict[str, Any], reason: str
) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": family, **config}))
    assert reason in refused(checkpoint)


def test_a_tokenizer_larger_than_the_embedding(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:600].clone()
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    edit_config(checkpoint, vocab_size=600)
    assert "don't belong together" in refused(checkpoint)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


PROJECTION = "model.layers.1.mlp.up_proj.weight"
E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("stored", "beside"),
    [
        (E4M3, {"model.layers.1.mlp.up_proj.weight_scale": torch.ones(1)}),
        (E4M3, {"model.layers.1.mlp.up_proj.weight_scale_inv": torch.ones(4, 1)}),
        (torch.float8_e5m2, {}),
        (torch.int8, {"model.layers.1.mlp.up_proj.SCB": torch.ones(512)}),
        (torch.uint8, {"model.layers.1.mlp.up_proj.weight.absmax": torch.ones(64)}),
        (torch.int32, {}),
        (torch.float64, {}),
    ],
)
def test_weights_that_are_stored_as_no_plain_floats_are_refused(
    checkpoint: Path, stored: torch.dtype, beside: dict[str, torch.Tensor]
) -> None:
    edit_weights(checkpoint, lambda w: w.update(beside | {PROJECTION: w[PROJECTION].to(stored)}))
    said = refused(checkpoint)
    assert f"stores {PROJECTION} as " in said
    assert "bfloat16, float16 or float32" in said


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",
        "model.layers.1.mlp.up_proj.weight_scale",
        "model.layers.1.mlp.up_proj.input_scale",
        "model.layers.1.self_attn.k_scale",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.self_attn.q_proj.lora_A.weight",
        "model.layers.4.mlp.up_proj.weight",
        "vision_tower.patch.weight",
        "lm_head.bias",
    ],
)
def test_a_tensor_that_would_be_left_out_is_refused(checkpoint: Path, name: str) -> None:
    edit_weights(checkpoint, lambda w: w.update({name: torch.ones(4)}))
    assert f"holds 1 tensor that a Gemma 2 doesn't have, {name} first" in refused(checkpoint)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_plain_floats_and_buffers_of_old_are_read(checkpoint: Path, stored: torch.dtype) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights |= {name: tensor.to(stored) for name, tensor in weights.items()}
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)

    edit_weights(checkpoint, change)
    load_checkpoint(str(checkpoint), device="cpu")


def test_only_the_text_part_of_a_larger_model_has_to_be_plain(tmp_path: Path) -> None:
    folder = save_hot_checkpoint(tmp_path / "seeing", family="gemma3")
    vision = next(n for n in load_file(folder / "model.safetensors") if "vision_tower" in n)
    edit_weights(folder, lambda w: w.update({vision: w[vision].to(torch.float64)}))
    load_checkpoint(str(folder), device="cpu")
    edit_weights(folder, lambda w: w.update({"language_model.model.layers.0.scale": torch.ones(1)}))
    assert "tensor that a Gemma 3 doesn't have" in refused(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "modelopt", "mxfp4", "hqq", "quanto"])
def test_quantisation_is_refused_whether_its_library_is_here_or_not(
    checkpoint: Path, method: str
) -> None:
    edit_config(checkpoint, quantization_config={"quant_method": method, "bits": 4})
    assert f"is quantised ({method}), and such weights aren't read" in refused(checkpoint)


def test_quantisation_is_refused_where_another_file_says_so(checkpoint: Path) -> None:
    (checkpoint / "hf_quant_config.json").write_text("{}")
    assert "is quantised (hf_quant_config.json)" in refused(checkpoint)
    (checkpoint / "hf_quant_config.json").unlink()
    edit_config(checkpoint, compression_config={"format": "pack-quantized"})
    assert "is quantised (compression_config)" in refused(checkpoint)


@pytest.mark.parametrize(
    "head", ["Gemma2ForSequenceClassification", "Gemma2ForTokenClassification", "Gemma2Model"]
)
def test_another_head_is_not_scored_by_the_language_models(checkpoint: Path, head: str) -> None:
    edit_config(checkpoint, architectures=[head])
    assert f"is a {head}, which isn't scored" in refused(checkpoint)


def test_a_mistral_with_layer_types_is_read_under_its_own_name(tmp_path: Path) -> None:
    folder = save_hot_checkpoint(tmp_path / "layered", family="ministral")
    edit_config(folder, model_type="mistral", architectures=["MistralForCausalLM"])
    load_checkpoint(str(folder), device="cpu")


def test_code_of_a_checkpoints_own_is_refused(checkpoint: Path) -> None:
    edit_config(checkpoint, auto_map={"AutoModelForCausalLM": "modeling.Gemma2ForCausalLM"})
    assert "brings code of its own" in refused(checkpoint)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text(json.dumps({"peft_type": "LORA"}))
    said = refused(checkpoint)
    assert f"holds an adapter ({name}), which is not applied" in said
    assert "merge_and_unload()" in said


def test_an_adapter_alone_is_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "Merge it into its model first" in refused(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"vocab_size": 1290}, "model.embed_tokens.weight of [1280, 128]"),
        ({"head_dim": 16}, "self_attn"),
        ({"intermediate_size": 256}, "mlp"),
        ({"num_attention_heads": 0}, "config.json can't be read"),
        ({"hidden_activation": "no_such"}, "describes no model"),
    ],
)
def test_weights_of_another_shape_than_the_configs(
    checkpoint: Path, config: dict[str, Any], reason: str
) -> None:
    edit_config(checkpoint, **config)
    assert reason in refused(checkpoint)


def test_weights_of_another_architecture_than_the_configs(checkpoint: Path) -> None:
    edit_config(checkpoint, model_type="llama", architectures=["LlamaForCausalLM"])
    assert "holds 8 tensors that a Llama doesn't have" in refused(checkpoint)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(checkpoint: Path, number: float) -> None:
    edit_weights(checkpoint, lambda w: w[PROJECTION][3, 4].fill_(number))
    assert f"has numbers in {PROJECTION} that are not finite" in refused(checkpoint)


def test_weights_that_make_scores_that_are_not_finite(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda w: w[PROJECTION].fill_(3e38))
    with pytest.raises(ModelError, match="a score is not finite"):
        load_engine(str(checkpoint), device="cpu").check()


@pytest.fixture
def sharded(checkpoint: Path) -> Path:
    model = load_checkpoint(str(checkpoint), device="cpu").model
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="1MB")
    return checkpoint


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_shards_are_read_and_each_must_be_there_and_whole(sharded: Path) -> None:
    load_checkpoint(str(sharded), device="cpu")
    second = sorted(sharded.glob("model-*.safetensors"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:-100])
    assert "the weights can't be read" in refused(sharded)
    second.unlink()
    assert f"lacks {second.name}, which its model.safetensors.index.json names" in refused(sharded)


def test_an_index_names_files_beside_it(sharded: Path) -> None:
    outside = shutil.move(min(sharded.glob("model-*.safetensors")), sharded.parent)
    edit_index(sharded, lambda places: places.update(a=f"../{Path(outside).name}"))
    assert "lacks ../model-0" in refused(sharded)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "Fetch it again" in refused(sharded)


def test_a_tensor_that_two_shards_hold(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("model-*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor * 2}, second, {"format": "pt"})
    assert f"holds {name} twice" in refused(sharded)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(checkpoint: Path) -> None:
    assert "device cuda is not available" in refused(checkpoint, device="cuda")


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((403, "GatedRepo"), "is gated. Accept its licence"),
        ((401, "GatedRepo"), "is gated. Accept its licence"),
        ((404, "RepoNotFound"), "The hub has no model"),
        ((404, "RevisionNotFound"), "has no revision"),
        ((500, "Trouble"), "can't be reached"),
    ],
)
def test_what_the_hub_refuses(
    hot_checkpoint: Path,
    point_at: Callable[[str], None],
    refusal: tuple[int, str],
    expected: str,
) -> None:
    with Hub(SHIELDGEMMA, hot_checkpoint, refusal).running() as address:
        point_at(address)
        assert expected in refused(SHIELDGEMMA)


def test_a_hub_that_is_not_there(hot_checkpoint: Path, point_at: Callable[[str], None]) -> None:
    with Hub(SHIELDGEMMA, hot_checkpoint).running() as address:
        pass
    point_at(address)
    assert "is not in the local cache and the hub can't be reached" in refused(SHIELDGEMMA)


def test_a_hub_id_is_fetched_and_its_commit_is_the_identity(
    hot_checkpoint: Path, point_at: Callable[[str], None]
) -> None:
    with Hub(SHIELDGEMMA, hot_checkpoint).running() as address:
        point_at(address)
        fetched = load_checkpoint(SHIELDGEMMA, device="cpu")
    assert fetched.name == f"{SHIELDGEMMA}@{COMMIT[:12]}"
    assert fetched.weights == COMMIT
    local = load_checkpoint(str(hot_checkpoint), device="cpu")
    assert torch.equal(fetched.model.lm_head.weight, local.model.lm_head.weight)


def test_a_local_checkpoints_identity_is_a_digest_of_its_content(checkpoint: Path) -> None:
    first = load_checkpoint(str(checkpoint), device="cpu")
    assert first.name == f"checkpoint@{first.weights[:12]}"
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    assert load_checkpoint(str(moved), device="cpu").weights == first.weights
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    assert load_checkpoint(str(moved), device="cpu").weights != first.weights


def test_the_choice_of_device_and_dtype_is_logged(hot_checkpoint: Path) -> None:
    with capture_logs() as logs:
        engine = load_engine(str(hot_checkpoint), device="cpu")
    (entry,) = [e for e in logs if e["event"] == "model loaded"]
    assert (entry["device"], entry["dtype"]) == ("cpu", "float32")
    assert entry["scorer"] == engine.identity.name


CHAT_TEMPLATE = """\
{{ bos_token }}You are a policy expert, dear model.

{% for m in messages %}<start_of_turn>
{{ 'Human Question: ' if m.role == 'user' else 'Chatbot Response: ' }}{{ m.content | trim }}
<end_of_turn>
{% endfor %}
* {{ guideline }}

Violated?
"""


def test_the_tokenizers_own_moderation_template_wins_and_the_difference_is_said(
    checkpoint: Path,
) -> None:
    (checkpoint / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    with capture_logs() as logs:
        engine = load_engine(str(checkpoint), device="cpu")
    (entry,) = [e for e in logs if e["event"] == "chat template differs"]
    assert "first at character 28: ', dear model." in entry["detail"]
    assert engine.template.strip
    text = render(engine.template.segments(Exchange(" U "), "G"))
    assert text == (
        "<bos>You are a policy expert, dear model.\n\n<start_of_turn>\nHuman Question: U\n"
        "<end_of_turn>\n* G\n\nViolated?"
    )
    assert (
        load_engine(str(checkpoint), device="cpu", template="paper").template == TEMPLATES["paper"]
    )


def test_a_moderation_template_that_breaks_is_said_and_ours_is_used(checkpoint: Path) -> None:
    source = "{{ guideline }}{{ raise_exception('no assistants') if messages | length > 1 }}"
    (checkpoint / "chat_template.jinja").write_text(source)
    with capture_logs() as logs:
        engine = load_engine(str(checkpoint), device="cpu")
    assert engine.template == TEMPLATES["chat"]
    assert any("no assistants" in e.get("detail", "") for e in logs)


def test_a_moderation_template_that_leaves_out_the_response_is_not_used(checkpoint: Path) -> None:
    source = "{{ bos_token }}{{ messages[0].content }} {{ guideline }}"
    (checkpoint / "chat_template.jinja").write_text(source)
    with capture_logs() as logs:
        engine = load_engine(str(checkpoint), device="cpu")
    assert engine.template == TEMPLATES["chat"]
    assert any("leaves the response out" in e.get("detail", "") for e in logs)


def test_a_chat_template_without_guideline_is_not_one_for_moderation(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    assert load_engine(str(checkpoint), device="cpu").template == TEMPLATES["chat"]


def test_the_template_is_part_of_the_identity_and_of_the_name(hot_checkpoint: Path) -> None:
    identities = {
        name: load_engine(str(hot_checkpoint), device="cpu", template=name).identity
        for name in TEMPLATES
    }
    assert len({i.key for i in identities.values()}) == len(TEMPLATES)
    bare = identities["chat"].name
    assert {n: i.name.removeprefix(bare) for n, i in identities.items()} == {
        "chat": "",
        "paper": "+paper",
        "notebook": "+notebook",
        "blog": "+blog",
    }
