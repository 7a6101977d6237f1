"""Which dtype a model computes in: the fastest that the hardware has and that is exact enough."""

import platform
from typing import Any

import torch

# Narrower models take milliseconds in fp32 already.
NARROW = 512


def choose_dtype(
    wanted: str, device: torch.device, config: Any, narrow: int = NARROW
) -> tuple[torch.dtype, str]:
    """Choose a dtype, and say why; `wanted` is float32, bfloat16 or auto.

    `auto` takes bfloat16 where the hardware multiplies in it, else float32, and on a CPU for what
    is narrower than `narrow`. Never float16: Gemma overflows in it.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted], "as asked for"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        unit = "the GPU" if native else None
    else:
        unit = _cpu_unit() if device.type == "cpu" else None
    if unit is None:
        return torch.float32, f"this {device.type} doesn't multiply in bfloat16"
    if device.type == "cpu" and config.hidden_size < narrow:
        return torch.float32, "a narrow model is fast enough in it, and more exact"
    return torch.bfloat16, f"{unit} multiplies in it"


def _cpu_unit() -> str | None:
    """Name what the processor multiplies bf16 with, where PyTorch uses it; None if it converts."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if platform.machine() in ("aarch64", "arm64"):
        return "Arm BF16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    # oneDNN itself claims bf16 for any AVX512, and then converts: slower than fp32.
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else None
