"""Prompts that begin alike, as token ids: what one forward pass, or a cache of prefixes, shares."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pack:
    """Prompts that begin alike: one trunk, and at least one branch of at least one token each.

    The trunk of a `growing` pack is the beginning of one that will come.
    """

    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    growing: bool = False

    @property
    def tokens(self) -> int:
        """Count the tokens that a forward pass spends on it."""
        return len(self.trunk) + sum(map(len, self.branches))


def pack(prompts: Sequence[list[int]], *, growing: bool = False) -> Pack:
    """Split prompts, as token ids, into their longest common prefix and what is left of each."""
    # What the smallest and the largest share, all share.
    low, high = min(prompts), max(prompts)
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    # The answer is read at a branch's last token, so each branch keeps one.
    shared = min(shared, min(map(len, prompts)) - 1)
    return Pack(tuple(prompts[0][:shared]), tuple(tuple(p[shared:]) for p in prompts), growing)
