"""What a checkpoint's files hold, checked before and after its weights are loaded.

transformers leaves out what it doesn't know: a scale, an adapter, a head for classification. The
rest then loads, and its scores are wrong. What is refused here is a ValueError, with the end of
a sentence about the checkpoint.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shieldgate.plural import counted
from shieldgate.scoring.local.families import ModelFamily
from shieldgate.scoring.local.quantization import Quantization, linear_layers, read_quantization

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_STORED = {"F32", "F16", "BF16"}
# Buffers that old checkpoints hold and that are computed today.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")
_PLAIN = "Use its weights in bfloat16, float16 or float32."


def check_adapter(folder: Path) -> None:
    """Refuse an adapter, which transformers applies only where peft is installed."""
    found = sorted(path.name for path in folder.glob("adapter_*"))
    if found:
        raise ValueError(
            f"holds an adapter ({found[0]}), which is not applied. Merge it into its model first: "
            "`AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
            ".save_pretrained(merged)`, and save the tokenizer there, too."
        )


def check_config(folder: Path, config: PretrainedConfig) -> Quantization | None:
    """Refuse other heads and code of its own, as far as files say so; tell how it is quantised."""
    written = _json(folder / "config.json")
    quantization = _quantization(folder, written)
    # A "mistral" may be read as a ministral, and a gemma3's decoder stand alone.
    kinds = {written.get("model_type"), config.model_type, config.get_text_config().model_type}
    known = {head for kind, head in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if kind in kinds}
    for head in written.get("architectures") or ():
        if head not in known:
            raise ValueError(
                f"is a {head}, which isn't scored by the words that it would answer. "
                f"Use a {' or '.join(sorted(known))}."
            )
    if any("Model" in name for name in written.get("auto_map") or ()):
        raise ValueError(
            "brings code of its own (auto_map), which isn't run. Use one that doesn't."
        )
    if written.get("transformers_weights"):
        raise ValueError(f"names a file of its own for its weights. Name it {_WHOLE}.")
    return quantization


def _quantization(folder: Path, written: Mapping[str, Any]) -> Quantization | None:
    found = [
        (key, part[key])
        for part in (written, written.get("text_config") or {})
        for key in ("quantization_config", "compression_config")
        if part.get(key)
    ]
    found += [
        (name, None)
        for name in ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
        if (folder / name).is_file()
    ]
    if not found:
        return None
    key, said = found[0]
    alone = len(found) == 1 and "text_config" not in written
    if alone and key == "quantization_config" and isinstance(said, dict):
        return read_quantization(said)
    method = said.get("quant_method", key) if isinstance(said, dict) else key
    raise ValueError(f"is quantised ({method}), and such weights aren't read. {_PLAIN}")


def check_tensors(
    folder: Path,
    family: ModelFamily,
    decoder: PretrainedConfig,
    quantization: Quantization | None = None,
) -> set[str]:
    """Refuse tensors that the decoder wouldn't use, or can't, by the headers of the files.

    Gives the layers that are stored as `quantization` says. Raises OSError and SafetensorError,
    too, where the files can't be read.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(decoder)
    except Exception as broken:  # a shape that can't be raises whatever it comes upon
        raise ValueError("has a config.json that describes no model. Fetch it again.") from broken
    tensors = _tensors(folder, family)
    layers, expected = _expected(model, tensors, quantization)
    unknown = []
    for name, (stored, dtype, shape) in tensors.items():
        dtypes, right = expected.get(name, (set(), None))
        if not dtypes:
            unknown.append(stored)
        elif dtype not in dtypes:
            raise ValueError(f"stores {stored} as {dtype}, which isn't read. {_PLAIN}")
        elif right not in (None, shape):
            raise ValueError(
                f"has a {stored} of {shape}, and by its config.json it is {right}. "
                "The two don't belong together."
            )
    if unknown:
        raise ValueError(
            f"holds {counted(len(unknown), 'tensor')} that a {family.name} doesn't have, "
            f"{unknown[0]} first, and without them its scores would be wrong. Use a checkpoint of "
            "that architecture, not quantised, and with its adapters merged."
        )
    return layers


def _tensors(folder: Path, family: ModelFamily) -> dict[str, tuple[str, str, list[int]]]:
    """Give the decoder's tensors: as they are named in the files, their dtypes and shapes."""
    places: dict[str, str] = {}
    tensors: dict[str, tuple[str, str, list[int]]] = {}
    for file in _shards(folder):
        for stored, dtype, shape in _header(folder / file):
            name = family.named(stored)
            if name is None or _COMPUTED.search(name):
                continue
            if name in places:
                raise ValueError(f"holds {stored} twice, in {places[name]} and {file}. Remove one.")
            places[name] = file
            tensors[name] = stored, dtype, shape
    return tensors


def _expected(
    model: PreTrainedModel,
    tensors: Mapping[str, tuple[str, str, list[int]]],
    quantization: Quantization | None,
) -> tuple[set[str], dict[str, tuple[set[str], list[int] | None]]]:
    """Give the layers that are quantised, and the dtypes and shapes that all tensors may have."""
    expected: dict[str, tuple[set[str], list[int] | None]] = {
        name: (_STORED, list(tensor.shape)) for name, tensor in model.state_dict().items()
    }
    layers: set[str] = set()
    if quantization is None:
        return layers, expected
    for layer, shape in linear_layers(model).items():
        parts = quantization.parts(layer, shape)
        if not any(name in tensors and tensors[name][1] == parts[name][0] for name in parts):
            continue
        for name in sorted(parts.keys() - tensors.keys()):
            raise ValueError(f"is quantised and lacks {name}. Fetch it again.")
        layers.add(layer)
        del expected[f"{layer}.weight"]
        expected |= {name: ({dtype}, shape) for name, (dtype, shape) in parts.items()}
    return layers, expected


def check_numbers(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that are not finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise ValueError(
                f"has numbers in {name} that are not finite. Train it again, or fetch it again."
            )


def stored_tensors(folder: Path, family: ModelFamily) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of the decoder from the files, one after the other."""
    for shard in _shards(folder):
        with safe_open(folder / shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if family.named(name) is not None:
                    yield name, file.get_tensor(name)


def _shards(folder: Path) -> list[str]:
    """List the files that transformers reads the weights from."""
    if (folder / _WHOLE).is_file() or not (folder / _INDEX).is_file():
        return [_WHOLE]
    places = _json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise ValueError(f"has no weight_map in its {_INDEX}. Fetch it again.")
    shards = sorted(set(places.values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ValueError(f"lacks {shard}, which its {_INDEX} names. Fetch it again.")
    return shards


def _header(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Read the names, dtypes and shapes of a file's tensors."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            tensor = file.get_slice(name)
            yield name, tensor.get_dtype(), tensor.get_shape()


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"has a {path.name} that is no JSON object. Fetch it again.")
    return content
