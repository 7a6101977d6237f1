"""Trunk and branches: many prompts in one forward pass, each token computed once.

The prompts of one exchange begin alike. The trunk is their longest common prefix of token ids,
a branch is what is left of one prompt. Packs stand one behind the other in a single sequence,

    trunk 1 | branch | branch | trunk 2 | branch | ...

where a trunk sees itself, and a branch its trunk and itself. Positions restart at the end of the
trunk for each branch, so every prompt is computed as if it stood alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shieldgate.scoring.local.prefix_cache import PrefixKV
from shieldgate.scoring.pack import Pack

# Rows of one attention block: bounds the scores in memory to heads x ROWS x context.
BLOCK_ROWS = 128


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that are computed together, and the keys that at least one of them sees.

    `rows` is a range of the rows computed, `keys` are ranges of the rows remembered and then those
    computed. The keys, one range after the other, have consecutive positions and end with the last
    query's own. `hidden` lists the parts that need a mask: a range of those keys, and a bool
    tensor [rows, keys in range] that is True where the query must not see the key.
    """

    rows: slice
    keys: tuple[slice, ...]
    hidden: tuple[tuple[slice, Tensor], ...]


class Memory(Protocol):
    """Says for each layer which keys and values the rows of a layout see."""

    def extend(
        self, layer: int, keys: Tensor, values: Tensor, trunks: Sequence[tuple[slice, ...]]
    ) -> tuple[Tensor, Tensor]:
        """Take the rows' own and give all, [groups, keys, dim]."""
        ...


class Packed(Protocol):
    """What the model itself needs of a packed sequence; the rest is for its attention.

    `ids` and `positions` are long tensors [tokens]; `reads` holds the row of each branch's last
    token, in order.
    """

    @property
    def ids(self) -> Tensor: ...  # noqa: D102
    @property
    def positions(self) -> Tensor: ...  # noqa: D102
    @property
    def reads(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed sequence, ready for the model.

    `ids` and `positions` are long tensors [tokens]; `reads` holds the row of each branch's last
    token, in order. The blocks cover all rows, in order: `full` for layers that see everything
    before them, `sliding` for those with a window; `read_full` and `read_sliding` cover only the
    rows read, one block each. `trunks` are the keys of each pack's trunk.
    `memory` holds what is remembered of trunks, and takes what shall be.
    """

    ids: Tensor
    positions: Tensor
    reads: Tensor
    full: tuple[Block, ...]
    sliding: tuple[Block, ...]
    read_full: tuple[Block, ...]
    read_sliding: tuple[Block, ...]
    trunks: tuple[tuple[slice, ...], ...]
    memory: Memory | None = None

    @classmethod
    def of(
        cls,
        packs: Sequence[Pack],
        window: int | None,
        device: torch.device,
        memory: PrefixKV | None = None,
    ) -> "Layout":
        """Lay packs out one behind the other; `window` is the model's, in tokens, if it has one."""
        known = memory.lengths if memory else [0] * len(packs)
        past = 0  # the keys remembered come first, pack by pack
        before = sum(known)
        ids: list[int] = []
        positions: list[int] = []
        reads: list[int] = []
        full: list[Block] = []
        sliding: list[Block] = []
        read_full: list[Block] = []
        read_sliding: list[Block] = []
        trunks: list[tuple[slice, ...]] = []

        def add(tokens: Sequence[int], context: tuple[slice, ...]) -> slice:
            start, first = len(ids), sum(s.stop - s.start for s in context)
            rows = slice(start, start + len(tokens))
            own = slice(before + rows.start, before + rows.stop)
            ids.extend(tokens)
            positions.extend(range(first, first + len(tokens)))
            full.extend(_blocks(rows, (*context, own), None, device))
            sliding.extend(_blocks(rows, (*context, own), window, device))
            return own

        for item, length in zip(packs, known, strict=True):
            remembered = slice(past, past + length)
            past += length
            trunk = remembered, add(item.trunk[length:], (remembered,))
            trunks.append(trunk)
            for branch in item.branches:
                keys = *trunk, add(branch, trunk)
                row = slice(len(reads), len(reads) + 1)
                read_full.append(_last(row, keys, None))
                read_sliding.append(_last(row, keys, window))
                reads.append(len(ids) - 1)

        def long(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            long(ids),
            long(positions),
            long(reads),
            tuple(full),
            tuple(sliding),
            tuple(read_full),
            tuple(read_sliding),
            tuple(trunks),
            memory,
        )


def _blocks(
    rows: slice, keys: tuple[slice, ...], window: int | None, device: torch.device
) -> Iterator[Block]:
    """Cut rows into blocks; `keys` are all that the last row may see, its own position last."""
    after = rows.stop - rows.start
    context = sum(k.stop - k.start for k in keys) - after
    for start in range(0, after, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, after)
        first = context + start  # the position of the first query
        left = 0 if window is None else max(0, first - window + 1)
        hidden = _hidden(stop - start, first - left, window, device)
        yield Block(
            slice(rows.start + start, rows.start + stop),
            _part(keys, left, context + stop),
            tuple(hidden),
        )


def _last(row: slice, keys: tuple[slice, ...], window: int | None) -> Block:
    """Make the block of a single row that stands at the end of its keys."""
    size = sum(k.stop - k.start for k in keys)
    left = 0 if window is None else max(0, size - window)
    return Block(row, _part(keys, left, size), ())


def _part(keys: tuple[slice, ...], start: int, stop: int) -> tuple[slice, ...]:
    """Take the keys at positions [start, stop) out of ranges that stand one after the other.

    Ranges that are side by side in memory, too, become one.
    """
    found: list[slice] = []
    passed = 0
    for k in keys:
        first, last = k.start + max(0, start - passed), min(k.stop, k.start + stop - passed)
        passed += k.stop - k.start
        if first < last:
            if found and found[-1].stop == first:
                first = found.pop().start
            found.append(slice(first, last))
    return tuple(found)


def _hidden(
    rows: int, first: int, window: int | None, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Mask what lies ahead, and what has left the window; `first` is the first query's column."""
    row = torch.arange(rows, device=device)[:, None]
    if rows > 1:
        ahead = torch.arange(rows, device=device)[None, :] > row
        yield slice(first, first + rows), ahead
    if window is not None:
        # Query i sees columns above first + i - window; the last one has lost the most.
        lost = first + rows - window
        if lost > 0:
            column = torch.arange(lost, device=device)[None, :]
            yield slice(0, lost), column <= first + row - window
