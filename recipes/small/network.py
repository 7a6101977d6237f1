"""A Llama with an adapter, written out for training: packed rows in, last hidden states out.

The adapter is low-rank (LoRA, arXiv 2106.09685) and added to the weights before each pass, so a
layer is a few large products whatever its rank.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what everybody calls it

from shieldgate.scoring.local.adapted import read_llama

Attend = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""Query [rows, heads, length, dim], key and value with fewer heads, a mask; shaped as the query."""

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class Network(nn.Module):
    """The base, frozen, with an adapter of `rank` on each linear layer."""

    def __init__(
        self, weights: Mapping[str, Tensor], *, heads: int, theta: float, eps: float, rank: int
    ) -> None:
        super().__init__()
        self.layers = 1 + max(int(n.split(".")[2]) for n in weights if n.startswith("model.layers"))
        self.heads, self.theta, self.eps = heads, theta, eps
        self.embedding = nn.Buffer(weights["model.embed_tokens.weight"])
        self.norm = nn.Buffer(weights["model.norm.weight"])
        self.before_attention = nn.Buffer(self._each(weights, "input_layernorm"))
        self.before_mlp = nn.Buffer(self._each(weights, "post_attention_layernorm"))
        self.frozen = nn.ParameterDict()
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name in LINEARS:
            stacked = self._each(weights, name)
            key = name.split(".")[1]
            self.frozen[key] = nn.Parameter(stacked, requires_grad=False)
            layers, wide, narrow = stacked.shape
            bound = narrow**-0.5
            self.down[key] = nn.Parameter(torch.empty(layers, rank, narrow).uniform_(-bound, bound))
            self.up[key] = nn.Parameter(torch.zeros(layers, wide, rank))

    def _each(self, weights: Mapping[str, Tensor], name: str) -> Tensor:
        return torch.stack([weights[f"model.layers.{n}.{name}.weight"] for n in range(self.layers)])

    def merged(self, dtype: torch.dtype) -> list[dict[str, Tensor]]:
        """Add the adapter to the weights; gives the linear layers by name, for each layer."""
        whole = {
            key: torch.baddbmm(self.frozen[key], self.up[key], self.down[key]).to(dtype).unbind(0)
            for key in self.down
        }
        return [{key: parts[n] for key, parts in whole.items()} for n in range(self.layers)]

    def hidden(  # noqa: PLR0917 - as its callers have them
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Any,
        attend: Attend,
        dtype: torch.dtype,
        block: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Compute the last hidden states [rows, length, width] of packed rows of token ids.

        `block` is `layer`, or a compiled one.
        """
        block = block or layer
        width = self.embedding.shape[1] // self.heads
        turn = 1.0 / self.theta ** (
            torch.arange(0, width, 2, device=ids.device, dtype=torch.float32) / width
        )
        angles = positions[..., None].float() * turn
        angles = torch.cat((angles, angles), -1)[:, None]
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        states = F.embedding(ids, self.embedding).to(dtype)
        for number, weights in enumerate(self.merged(dtype)):
            states = block(
                states, weights, self.before_attention[number], self.before_mlp[number],
                cos, sin, mask, attend, self.eps, width,
            )  # fmt: skip
        return rms_norm(states, self.norm, self.eps)

    def margins(self, states: Tensor, yes: int, no: int) -> Tensor:
        """Compute z_yes - z_no of last hidden states [reads, width]; fp32."""
        return states.float() @ (self.embedding[yes] - self.embedding[no]).float()

    @torch.no_grad()
    def shrink(self, share: float) -> None:
        """Keep this share of what was learnt: a model between base and tuned (arXiv 2109.01903)."""
        for up in self.up.values():
            up.mul_(share)

    def adapter(self) -> dict[str, Tensor]:
        """Give the adapter in the names and shapes that peft writes; bf16."""
        found = {}
        for name in LINEARS:
            key = name.split(".")[1]
            for number in range(self.layers):
                at = f"base_model.model.model.layers.{number}.{name}"
                for part, tensor in (("A", self.down[key]), ("B", self.up[key])):
                    found[f"{at}.lora_{part}.weight"] = tensor[number].detach().bfloat16().cpu()
        return found


def layer(  # noqa: PLR0917 - one compiled function, which takes no objects
    states: Tensor,
    weights: Mapping[str, Tensor],
    before_attention: Tensor,
    before_mlp: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Any,
    attend: Attend,
    eps: float,
    width: int,
) -> Tensor:
    """Compute one layer as transformers' Llama does."""
    rows, length, _ = states.shape
    x = rms_norm(states, before_attention, eps)
    q, k, v = (
        F.linear(x, weights[name]).view(rows, length, -1, width).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    q, k = (t * cos + _turned(t) * sin for t in (q, k))
    found = attend(q, k, v, mask).transpose(1, 2).reshape(rows, length, -1)
    states = states + F.linear(found, weights["o_proj"])
    x = rms_norm(states, before_mlp, eps)
    inner = F.silu(F.linear(x, weights["gate_proj"])) * F.linear(x, weights["up_proj"])
    return states + F.linear(inner, weights["down_proj"])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale to unit root mean square, in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(
        x.dtype
    )


def _turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def from_gguf(path: Path, config: Mapping[str, Any], rank: int) -> Network:
    """Build the network on a base in GGUF; `config` is its config.json."""
    return Network(
        read_llama(path, config),
        heads=config["num_attention_heads"],
        theta=config["rope_parameters"]["rope_theta"],
        eps=config["rms_norm_eps"],
        rank=rank,
    )


def parameters(network: Network) -> Iterable[nn.Parameter]:
    """List what is trained."""
    return [*network.down.values(), *network.up.values()]
