"""Weights in 8 or 4 bits: quantised while they are loaded, or read as they were stored.

How they are rounded, and computed with, is bitsandbytes' and torchao's affair, and how they are
loaded transformers'. What is taken here is what was seen to be read right: a ValueError is the end
of a sentence about the checkpoint that says what isn't.
"""

import importlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from shieldgate.errors import ModelError, needed

_UNQUANTISED = "Use the checkpoint that it was made from, with --quantize."
_TORCHAO_INT8 = {
    "_type": "Int8WeightOnlyConfig",
    "_version": 2,
    "_data": {
        "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}},
        "group_size": None,
        "set_inductor_config": True,
    },
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """A way to hold the weights of linear layers in fewer bits, by its `--quantize` name.

    `skipped` are the names of layers that stay as they are; None for the head alone. `codes` is
    what bitsandbytes' 4 bits stand for: nf4 or fp4, and `nested` whether their scales are
    quantised, too.
    """

    name: str
    skipped: tuple[str, ...] | None = None
    codes: str = "nf4"
    nested: bool = False

    def config(self, dtype: torch.dtype) -> Any:
        """Write it as transformers wants it, for weights that compute in `dtype`.

        Whatever a checkpoint says of two things: no product in 4 bits computes in float16, in
        which Gemma 2 overflows; and 8 bits have no threshold for outliers. Columns that exceed it
        anywhere in a batch are computed otherwise in all of it, so that a score would hang on the
        texts that happen to share its pass.
        """
        library, _ = self.name.split("-")
        with needed(f"The quantisation {self.name}", "quantize"):
            importlib.import_module(library)
        skipped = None if self.skipped is None else list(self.skipped)
        if self.name == "torchao-int8":
            quantization = importlib.import_module("torchao.quantization")
            return TorchAoConfig(
                quantization.Int8WeightOnlyConfig(), modules_to_not_convert=skipped
            )
        if self.name == "torchao-int4":
            quantization = importlib.import_module("torchao.quantization")
            # The one packing whose kernel is in PyTorch itself.
            return TorchAoConfig(
                quantization.Int4WeightOnlyConfig(int4_packing_format="tile_packed_to_4d")
            )
        # It says at each product that its inputs are cast.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(
            load_in_8bit=self.name == "bitsandbytes-8bit",
            load_in_4bit=self.name == "bitsandbytes-4bit",
            llm_int8_threshold=0.0,
            llm_int8_skip_modules=skipped,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=self.codes,
            bnb_4bit_use_double_quant=self.nested,
        )

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raise ModelError where it can't compute."""
        if self.name == "torchao-int4" and (device.type, dtype) != ("cuda", torch.bfloat16):
            raise ModelError(
                "--quantize torchao-int4 computes in bfloat16 on an NVIDIA GPU alone. Use "
                "torchao-int8 or bitsandbytes-4bit here."
            )
        if device.type == "mps":
            raise ModelError(f"--quantize {self.name} doesn't compute on mps. Use --device cpu.")

    def check_layers(self, model: PreTrainedModel, expected: Iterable[str]) -> None:
        """Raise ValueError unless just the `expected` layers of a loaded model are quantised."""
        found = {
            name
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear)
            and any(
                type(part).__module__.split(".")[0] in ("bitsandbytes", "torchao")
                for part in (layer, layer.weight)
            )
        }
        for name in sorted(found.symmetric_difference(expected)):
            raise ValueError(
                f"can't be quantised to {self.name} as a whole: not its {name}. Use another "
                "--quantize."
            )

    def parts(self, layer: str, shape: list[int]) -> dict[str, tuple[str, list[int] | None]]:
        """Give the tensors that stand for the weight of a layer, with their dtypes and shapes.

        A shape is None where it is the library's own affair.
        """
        rows, columns = shape
        if self.name == "bitsandbytes-8bit":
            return {
                f"{layer}.weight": ("I8", shape),
                f"{layer}.SCB": ("F32", [rows]),
                f"{layer}.weight_format": ("U8", []),
            }
        if self.name == "torchao-int8":
            return {
                f"{layer}._weight_qdata": ("I8", shape),
                f"{layer}._weight_scale": ("F32", [rows, 1]),
                f"{layer}._weight_zero_point": ("I8", [rows, 1]),
            }
        blocks = -(-rows * columns // 64)
        scales: dict[str, tuple[str, list[int] | None]] = {
            f"{layer}.weight.absmax": ("F32", [blocks])
        }
        if self.nested:
            scales = {
                f"{layer}.weight.absmax": ("U8", [blocks]),
                f"{layer}.weight.nested_absmax": ("F32", [-(-blocks // 256)]),
                f"{layer}.weight.nested_quant_map": ("F32", [256]),
            }
        return scales | {
            f"{layer}.weight": ("U8", [-(-rows * columns // 2), 1]),
            f"{layer}.weight.quant_map": ("F32", [16]),
            f"{layer}.weight.quant_state.bitsandbytes__{self.codes}": ("U8", None),
        }


def read_quantization(written: Mapping[str, Any]) -> Quantization:
    """Read a checkpoint's `quantization_config`; raise ValueError for what isn't read right."""
    method = written.get("quant_method")
    if method == "bitsandbytes":
        return _bitsandbytes(written)
    if method == "torchao":
        _only(
            written,
            method,
            quant_type={"default": _TORCHAO_INT8},
            include_input_output_embeddings=False,
            untie_embedding_weights=False,
            modules_to_not_convert=...,
        )
        return Quantization("torchao-int8", _names(written.get("modules_to_not_convert")))
    raise ValueError(f"is quantised ({method}), and such weights aren't read. {_UNQUANTISED}")


def _bitsandbytes(written: Mapping[str, Any]) -> Quantization:
    four = written.get("load_in_4bit", False)
    codes = written.get("bnb_4bit_quant_type", "fp4")
    _only(
        written,
        "bitsandbytes",
        load_in_4bit=bool(four),
        load_in_8bit=not four,
        _load_in_4bit=bool(four),
        _load_in_8bit=not four,
        llm_int8_has_fp16_weight=False,
        llm_int8_enable_fp32_cpu_offload=False,
        llm_int8_threshold=...,
        llm_int8_skip_modules=...,
        bnb_4bit_quant_type=codes if codes in ("nf4", "fp4") else "nf4",
        bnb_4bit_quant_storage="uint8",
        bnb_4bit_compute_dtype=...,
        bnb_4bit_use_double_quant=...,
    )
    skipped = _names(written.get("llm_int8_skip_modules"))
    if not four:
        return Quantization("bitsandbytes-8bit", skipped)
    nested = bool(written.get("bnb_4bit_use_double_quant"))
    return Quantization("bitsandbytes-4bit", skipped, codes, nested)


def _only(written: Mapping[str, Any], method: str, **taken: Any) -> None:
    """Raise ValueError unless each field has the value that is taken; ... takes any."""
    for field, value in written.items():
        if field != "quant_method" and taken.get(field, field) not in (..., value):
            raise ValueError(
                f"is quantised ({method}) with {field} {value!r:.60}, which isn't read. "
                f"{_UNQUANTISED}"
            )


def _names(names: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def linear_layers(model: PreTrainedModel) -> dict[str, list[int]]:
    """Give the shape of the weight of each linear layer but the head."""
    head = model.get_output_embeddings()
    return {
        name: list(layer.weight.shape)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    }
