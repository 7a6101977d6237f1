"""Attention for training: the computation of the packed layout, in few large kernels.

Scoring attends block by block, which is right for reading, but the gradient of each block's slice
is as large as the whole sequence. Here packs of similar size are padded to one square, so a layer
is two batched products. Everything outside attention stays packed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from shieldgate.scoring.pack import Pack

PADDED = "shieldgate_padded"


@dataclass(frozen=True)
class Padded:
    """A packed sequence for training.

    `ids` and `positions` are long [tokens]. `reads` holds the row of the last token of each
    branch, in order, or of each trunk that has no branch; `ends` of the last token of each trunk.
    `gather` [packs x size] holds the row
    of each place of the padded square, `scatter` the places of the real rows, in order. `place`
    and `part`, [packs, size], say of each place its position and whether it belongs to the trunk
    (0), to the branch of that number, or to nothing (-1). `window` is the model's, in tokens, if
    it has one.
    """

    ids: Tensor
    positions: Tensor
    reads: Tensor
    ends: Tensor
    gather: Tensor
    scatter: Tensor
    place: Tensor
    part: Tensor
    window: int | None

    @classmethod
    def of(cls, packs: Sequence[Pack], window: int | None) -> "Padded":
        """Lay packs out; `window` is the model's, in tokens, if it has one."""
        size = max(item.tokens for item in packs)
        ids: list[int] = []
        reads: list[int] = []
        ends: list[int] = []
        place = torch.zeros(len(packs), size, dtype=torch.long)
        part = torch.full((len(packs), size), -1)
        gather = torch.zeros(len(packs), size, dtype=torch.long)
        for row, item in enumerate(packs):
            first, trunk = len(ids), len(item.trunk)
            ids += item.trunk
            ends.append(len(ids) - 1)
            place[row, :trunk] = torch.arange(trunk)
            part[row, :trunk] = 0
            for number, branch in enumerate(item.branches, 1):
                own = slice(len(ids) - first, len(ids) - first + len(branch))
                place[row, own] = torch.arange(trunk, trunk + len(branch))
                part[row, own] = number
                ids += branch
                reads.append(len(ids) - 1)
            if not item.branches:
                reads.append(len(ids) - 1)
            gather[row, : item.tokens] = torch.arange(first, len(ids))
        real = part >= 0
        return cls(
            ids=torch.tensor(ids),
            positions=place[real],
            reads=torch.tensor(reads),
            ends=torch.tensor(ends),
            gather=gather.flatten(),
            scatter=real.flatten().nonzero().flatten(),
            place=place,
            part=part,
            window=window,
        )

    def to(self, device: torch.device) -> "Padded":
        """Move it to the device that trains."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "window"}
        moved = {name: x.to(device, non_blocking=True) for name, x in tensors.items()}
        return Padded(**moved, window=self.window)

    @cached_property
    def hidden(self) -> Tensor:
        """The keys that a query must not see, bool [packs, size, size], without the window."""
        key = self.part[:, None, :]
        seen = (self._back >= 0) & ((key == 0) | (key == self.part[:, :, None]))
        # A padded place sees itself: a row with nothing to see would be NaN.
        return ~(seen | torch.eye(self.part.shape[1], dtype=torch.bool, device=seen.device))

    @cached_property
    def far(self) -> Tensor:
        """The same with the sliding window."""
        return self.hidden if self.window is None else self.hidden | (self._back >= self.window)

    @property
    def _back(self) -> Tensor:
        return self.place[:, :, None] - self.place[:, None, :]


def by_size(packs: Sequence[Pack], tokens: int) -> Iterator[list[int]]:
    """Group packs of similar size, by index, so that a group pads to about `tokens` at most."""
    group: list[int] = []
    for index in sorted(range(len(packs)), key=lambda i: packs[i].tokens):
        if group and packs[index].tokens * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def padded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    layout: Padded,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attend within each trunk, and from each branch to its trunk and itself.

    `query` is [1, heads, tokens, dim], `key` and `value` [1, kv heads, tokens, dim]; returns
    [1, tokens, heads, dim]. The same function as `packed_attention`, and differentiable.
    """
    _, heads, tokens, dim = query.shape
    kv_heads = key.shape[1]
    shared = heads // kv_heads
    scale = scaling / (softcap or 1.0)
    rows = [x[0].transpose(0, 1).flatten(1) for x in (query * scale, key, value)]
    packs, size = layout.part.shape
    q, k, v = (x.index_select(0, layout.gather).view(packs, size, -1, dim) for x in rows)
    asked = q.view(packs, size, kv_heads, shared, dim).permute(0, 2, 3, 1, 4)
    asked = asked.reshape(packs * kv_heads, shared * size, dim)
    scores = asked @ k.permute(0, 2, 3, 1).reshape(packs * kv_heads, dim, size)
    if softcap is not None:
        scores = torch.tanh(scores) * softcap
    scores = scores.view(packs, heads, size, size)
    hidden = layout.hidden if sliding_window is None else layout.far
    weights = torch.softmax(scores.masked_fill(hidden[:, None], float("-inf")), -1)
    values = v.transpose(1, 2).reshape(packs * kv_heads, size, dim)
    found = weights.to(v.dtype).view(packs * kv_heads, shared * size, size) @ values
    found = found.view(packs, heads, size, dim).transpose(1, 2).reshape(packs * size, heads * dim)
    return found.index_select(0, layout.scatter).view(1, tokens, heads, dim), None


AttentionInterface.register(PADDED, padded_attention)
