"""A GGUF file as a checkpoint: what it says is checked here, and transformers dequantises it.

transformers leaves out what it doesn't know, of tensors and of what is said about them, and takes
the defaults of one model for it. A ValueError is the end of a sentence about the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from shieldgate.errors import needed

_SAID = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
}
# What is read of an architecture, in the words of llama.cpp.
_READ = {
    "gemma2": {
        *_SAID,
        "attention.sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    },
    "llama": _SAID,
}
_TYPES = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"}
_TYPES |= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}
_OTHERWISE = "Use the checkpoint that it was made from."


@contextmanager
def alone(file: Path) -> Iterator[dict[str, Any]]:
    """Give what transformers finds a file by, with no other file beside it.

    It would take what it finds there, a tokenizer's settings say, for part of it.
    """
    with TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file.resolve())
        yield {"pretrained_model_name_or_path": folder, "gguf_file": file.name}


def read_gguf(file: Path) -> PretrainedConfig:
    """Read the config of a file, and check all that it holds; raise ValueError, as said above."""
    with needed("Reading a GGUF file", "gguf"):
        import gguf  # noqa: PLC0415
    try:
        reader = gguf.GGUFReader(file)
        architecture = reader.fields["general.architecture"].contents()
    except Exception as broken:  # it indexes what it maps into memory, whatever is there
        raise ValueError("is no GGUF file, or a broken one. Fetch it again.") from broken
    if architecture not in _READ:
        raise ValueError(
            f"holds a model of the architecture {architecture!r:.40}, and of GGUF files those of "
            f"{' and '.join(_READ)} are read. {_OTHERWISE}"
        )
    prefix = f"{architecture}."
    said = {
        key.removeprefix(prefix): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(prefix)
    }
    general: dict[str, Any] = {
        key: reader.fields[key].contents() if key in reader.fields else usual
        for key, usual in (("general.type", "model"), ("split.count", 1))
    }
    if general["general.type"] != "model":
        raise ValueError(f"is a GGUF file of a {general['general.type']!r:.40}, and no model.")
    if general["split.count"] > 1:
        raise ValueError(
            "is one of several files. Merge them, with `llama-gguf-split --merge`, and give that."
        )
    for key, value in said.items():
        if key not in _READ[architecture] or not isinstance(value, int | float):
            raise ValueError(f"says {prefix}{key}, which isn't read. {_OTHERWISE}")
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    if types - _TYPES:
        raise ValueError(
            f"stores tensors as {min(types - _TYPES)}, which isn't read. Use a file of another "
            f"type, such as Q8_0."
        )
    config = _config(file, architecture, said)
    _check_tensors(reader, gguf, config)
    return config


def _config(file: Path, architecture: str, said: dict[str, Any]) -> PretrainedConfig:
    with alone(file) as where:
        config: Any = AutoConfig.from_pretrained(**where, local_files_only=True)
    head = config.head_dim
    others = (
        said.get(key, head)
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    )
    if config.model_type != architecture or any(other != head for other in others):
        raise ValueError(f"is a {architecture} of a kind that isn't read. {_OTHERWISE}")
    if architecture == "gemma2":
        # llama.cpp's own defaults; and it knows the 27B by its layers, whose queries are scaled by
        # another number than the size of their heads (llama_model_gemma2::load_arch_hparams).
        config.attn_logit_softcapping = said.get("attn_logit_softcapping", 50.0)
        config.final_logit_softcapping = said.get("final_logit_softcapping", 30.0)
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads
            if config.num_hidden_layers == 46
            else head
        )
    return config  # type: ignore[no-any-return]


def _check_tensors(reader: Any, gguf: Any, config: PretrainedConfig) -> None:
    """Refuse tensors that the model wouldn't use, and the lack of any."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    [kind] = [k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    expected = {
        f"{names.get_name(name.removesuffix('.weight'))}.weight": list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    held = {tensor.name: tensor.shape.tolist()[::-1] for tensor in reader.tensors}
    for name in sorted(held.keys() - expected.keys()):
        raise ValueError(
            f"holds {name}, which isn't read, and without it its scores would be wrong. "
            f"{_OTHERWISE}"
        )
    for name, shape in expected.items():
        if held.get(name) != shape:
            raise ValueError(f"lacks a {name} of {shape}. Fetch it again.")
