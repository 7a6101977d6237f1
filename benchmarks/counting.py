"""Multiply-adds of one scoring, counted from token counts and the model's shape.

Counted is what each side executes: eager attention multiplies whole [n, n] squares and masks
half of them afterwards; the packed one leaves out blocks in which nothing is visible, and of the
last layer all but the keys and values of rows that nobody reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Gemma2ForCausalLM

from shieldgate.scoring.local.packing import Block, Layout
from shieldgate.scoring.local.prefix_cache import PrefixKV
from shieldgate.scoring.pack import Pack


@dataclass(frozen=True)
class Counter:
    """Multiply-adds that the parts of a model cost."""

    config: Any
    body: int  # a token through all linear layers but the output embedding
    unread: int  # what of it a token whose last state isn't read needs not
    head: int  # a row of full logits

    @classmethod
    def of(cls, model: Gemma2ForCausalLM) -> "Counter":
        """Read the shapes of the linear layers."""
        linear = (m for m in model.model.modules() if isinstance(m, nn.Linear))
        body = sum(m.weight.numel() for m in linear)
        last = model.model.layers[-1]
        parts = last.self_attn.q_proj, last.self_attn.o_proj, *last.mlp.children()
        unread = sum(m.weight.numel() for m in parts if isinstance(m, nn.Linear))
        return cls(model.config, body, unread, model.lm_head.weight.numel())

    def prompts(self, lengths: Sequence[int], *, full_logits: bool) -> int:
        """Count one forward pass per prompt, with logits at all positions or at the last one."""
        return sum(
            n * self.body
            + self._attention(n * n, self.config.num_hidden_layers)
            + (n if full_logits else 1) * self.head
            for n in lengths
        )

    def packed(self, pack: Pack, known: int = 0) -> int:
        """Count one packed forward pass, with two rows of the output embedding a branch.

        `known` tokens of the trunk are remembered.
        """
        memory = PrefixKV([(None, known)], [False])
        layout = Layout.of([pack], self.config.sliding_window, torch.device("cpu"), memory)
        blocks = {"full_attention": layout.full, "sliding_attention": layout.sliding}
        read = {"full_attention": layout.read_full, "sliding_attention": layout.read_sliding}
        *kinds, last = self.config.layer_types
        return (
            (pack.tokens - known) * self.body
            - (pack.tokens - known - len(pack.branches)) * self.unread
            + sum(self._attention(_pairs(blocks[kind]), kinds.count(kind)) for kind in blocks)
            + self._attention(_pairs(read[last]), 1)
            + len(pack.branches) * 2 * self.config.hidden_size
        )

    def _attention(self, pairs: int, layers: int) -> int:
        # Each query meets a key once for its score and once for its value, in each head.
        return 2 * pairs * self.config.num_attention_heads * self.config.head_dim * layers


def _pairs(blocks: Sequence[Block]) -> int:
    """Count the pairs of a query and a key."""
    return sum(_size(b.rows) * sum(map(_size, b.keys)) for b in blocks)


def _size(part: slice) -> int:
    return int(part.stop - part.start)
