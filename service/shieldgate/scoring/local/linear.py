"""Linear layers as a CPU multiplies fastest: weights in oneDNN's own layout, or in int8 there."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, SiLUActivation

from shieldgate.errors import ModelError

# The activations that oneDNN computes while it writes a product, by its names.
_FUSED: dict[type[nn.Module], tuple[str, str]] = {
    GELUTanh: ("gelu", "tanh"),
    SiLUActivation: ("swish", ""),
    nn.SiLU: ("swish", ""),
}


class _Product(torch.autograd.Function):
    """The product of a PackedLinear, with the gradient of what is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # The plain weight is made for this product alone, so that memory holds one of them.
        return gradients[0] @ ctx.weight.to_dense(), None, None


class PackedLinear(nn.Module):
    """Computes `x @ weight.T + bias`; the weight is laid out once, and not at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor, activation: tuple[str, str] = ("none", "")) -> Tensor:
        """Map [..., in] to [..., out]; differentiable in `x` where there is no activation."""
        if x.requires_grad and torch.is_grad_enabled():
            product: Tensor = _Product.apply(x, self._weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        name, algorithm = activation
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self.bias, name, [], algorithm
        )
        return found

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """Map [..., in] to [..., out], multiplied by `factor` of that shape."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, factor, self._weight, self.bias, "mul"
        )
        return found


class Int8Linear(nn.Module):
    """Multiplies in int8: weights with a scale for each output, activations with one a row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        weight = linear.weight.detach().float()
        self._scale = weight.abs().amax(dim=1).clamp_(min=1e-12) / 127
        rounded = (weight / self._scale[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        rows = x.reshape(-1, x.shape[-1])
        # 126, for the scale is rounded to the dtype of x. Multiplying by it is then exact.
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(126)
        signed = rows.div(scale).round_().to(torch.int8)
        # oneDNN is fast for unsigned activations only: q + 128 is q with its first bit flipped.
        unsigned = signed.view(torch.uint8).bitwise_xor_(128)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 128, self._weight, self._scale, self._zeros,
            None, 1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        found.mul_(scale)
        if self.bias is not None:
            found.add_(self.bias)
        return found.view(*x.shape[:-1], -1)


def gated(gate: nn.Module, up: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """Compute `act(gate(x)) * up(x)`, in two passes over memory where oneDNN can."""
    fused = _FUSED.get(type(act))
    if fused and isinstance(gate, PackedLinear) and isinstance(up, PackedLinear):
        return up.times(x, gate(x, fused))
    found: Tensor = act(gate(x)).mul_(up(x))
    return found


def has_onednn(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN computes in this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_linears(model: PreTrainedModel, quantize: str | None = None) -> None:
    """Lay the linear layers of a decoder on the CPU out for scoring; what trains needs them plain.

    Each weight is let go as soon as it is packed. `quantize` is int8 or None. Raises ModelError
    where this machine can't.
    """
    if quantize and not (model.device.type == "cpu" and torch.cpu._is_vnni_supported()):
        raise ModelError(
            "--quantize int8 is for processors with AVX512-VNNI. Leave it away here; for a GPU "
            "take a checkpoint that is quantised."
        )
    if model.device.type != "cpu" or not has_onednn(model.dtype):
        return
    decoder: Any = model.base_model
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in part.named_children():
                if isinstance(child, nn.Linear):
                    setattr(part, name, Int8Linear(child) if quantize else PackedLinear(child))


def multiplies_as(model: PreTrainedModel) -> str:
    """Name what a decoder computes in: float32, bfloat16, or int8 and what stands between."""
    dtype = str(model.dtype).removeprefix("torch.")
    quantised = any(isinstance(module, Int8Linear) for module in model.modules())
    return f"int8+{dtype}" if quantised else dtype
