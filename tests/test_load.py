"""Loading: what can't be a scorer is refused in one sentence that says how to mend it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
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
    assert "lack 1 tensors" in refused(checkpoint)


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
