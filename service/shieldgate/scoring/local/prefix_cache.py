"""A KV cache of prefixes: how all prompts begin is computed once, of growing answers what is new.

Keys and values are kept by token ids: whatever text follows, the longest common prefix of its
ids and of ids that were seen is reused, and the rest computed. Forgetting costs time, never
correctness. Nothing here is thread-safe: only `PackedEngine.forward` uses it, under a lock.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

# An answer that has grown shares all of its earlier trunk but the few tokens that came after it.
_TAIL = 48

Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Trunk:
    """Token ids, and for each layer their keys and values [groups, tokens, dim]."""

    ids: np.ndarray
    layers: tuple[Layer, ...]

    @property
    def bytes(self) -> int:
        """Count the memory that the keys and values take."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer)

    def shared(self, ids: np.ndarray) -> int:
        """Count the tokens that `ids` begins with, too."""
        size = min(len(self.ids), len(ids))
        differs = self.ids[:size] != ids[:size]
        return int(differs.argmax()) if differs.any() else size


class PrefixCache:
    """Trunks seen lately, up to `max_bytes`; the least recently used are forgotten first.

    `preambles` are what prompts begin with. They are never forgotten, and not counted.
    """

    def __init__(self, max_bytes: int, preambles: Sequence[Trunk] = ()) -> None:
        self.max_bytes = max_bytes
        self.preambles = preambles
        self._trunks: OrderedDict[int, Trunk] = OrderedDict()
        self._added = 0
        self.bytes = 0

    def find(self, ids: np.ndarray) -> tuple[Trunk | None, int]:
        """Find the trunk that shares most with `ids`, and how many tokens that is.

        A trunk of which less than half of `ids` is shared is not worth the copying: that is the
        preamble.
        """
        best = max(self._trunks, key=lambda n: self._trunks[n].shared(ids), default=None)
        if best is not None and 2 * (shared := self._trunks[best].shared(ids)) >= len(ids):
            self._trunks.move_to_end(best)
            return self._trunks[best], shared
        found = ((preamble, preamble.shared(ids)) for preamble in self.preambles)
        return max(found, key=itemgetter(1), default=(None, 0))

    def keep(self, trunk: Trunk) -> None:
        """Keep a trunk, in place of those that it has outgrown."""
        for number, old in list(self._trunks.items()):
            if len(old.ids) - old.shared(trunk.ids) <= _TAIL:
                self._forget(number)
        self._trunks[self._added] = trunk
        self._added += 1
        self.bytes += trunk.bytes
        while self.bytes > self.max_bytes:
            self._forget(next(iter(self._trunks)))

    def _forget(self, number: int) -> None:
        self.bytes -= self._trunks.pop(number).bytes


@dataclass(slots=True)
class PrefixKV:
    """What one forward pass remembers of each pack's trunk, and gathers for the next.

    `found` has, for each pack, a trunk and how many of its tokens to use; `growing` says for
    which packs to gather. The model calls `extend` once a layer.
    """

    found: Sequence[tuple[Trunk | None, int]]
    growing: Sequence[bool]
    gathered: list[list[Layer]] = field(init=False)

    def __post_init__(self) -> None:
        """Start with nothing gathered."""
        self.gathered = [[] for _ in self.found]

    @property
    def lengths(self) -> list[int]:
        """Give the number of tokens remembered of each pack."""
        return [length for _, length in self.found]

    def extend(
        self,
        layer: int,
        keys: Tensor,
        values: Tensor,
        trunks: Sequence[tuple[slice, ...]],
        room: int = 0,
    ) -> Layer:
        """Put what is remembered before the keys and values [groups, rows, dim] of one layer.

        `trunks` are the ranges of the result that make up each pack's trunk. What is remembered
        is padded with zeros to `room` tokens.
        """
        past = [trunk.layers[layer] for trunk, _ in self.found if trunk is not None]
        cut = [length for trunk, length in self.found if trunk is not None]
        if (missing := room - sum(cut)) > 0:
            nothing = keys.new_zeros(keys.shape[0], missing, keys.shape[2])
            past, cut = [*past, (nothing, nothing)], [*cut, missing]
        whole = (
            torch.cat([*(old[side][:, :n] for old, n in zip(past, cut, strict=True)), new], dim=1)
            for side, new in enumerate((keys, values))
        )
        all_keys, all_values = whole
        for place, ranges in enumerate(trunks):
            if self.growing[place]:
                kept = tuple(
                    torch.cat([side[:, part] for part in ranges], dim=1)
                    for side in (all_keys, all_values)
                )
                self.gathered[place].append((kept[0], kept[1]))
        return all_keys, all_values
