"""Whether a scorer's margins need a feature: they are computed again with it taken out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from shieldgate.features.autoencoder import SparseAutoencoder
from shieldgate.features.passes import forward
from shieldgate.scoring.local import PackedEngine
from shieldgate.scoring.pack import Pack

# With so many a feature moves a margin where it does so most among 20 of like size.
CONTROLS = 19


@dataclass(frozen=True, slots=True)
class Ablation:
    """How a margin changes without a feature, in logits, and without others in its place.

    `others` are features that fire in the same place, each scaled to be as large.
    """

    change: float
    others: tuple[float, ...]

    @property
    def moves(self) -> bool:
        """Tell whether the margin moves more than without any of CONTROLS others."""
        return len(self.others) >= CONTROLS and abs(self.change) > max(map(abs, self.others))


@dataclass(frozen=True, slots=True)
class Place:
    """Rows of a prompt in which features are taken out together: activations [rows, active].

    `active` are the features that fire there, [active].
    """

    rows: Tensor
    active: Tensor
    activations: Tensor

    def sizes(self, autoencoder: SparseAutoencoder) -> Tensor:
        """Give the length of what each feature adds to the states there, [active]."""
        sizes: Tensor = self.activations.norm(dim=0) * autoencoder.w_dec[self.active].norm(dim=1)
        return sizes


@dataclass(frozen=True, slots=True)
class Removal:
    """What is taken from the states of some rows of a prompt: vectors [rows, hidden]."""

    rows: Tensor
    vectors: Tensor


def changes(
    engine: PackedEngine, layer: int, item: Pack, removals: Iterable[Removal], *, tokens: int = 4096
) -> Iterator[Tensor]:
    """Give for each removal how the margins of a pack change, fp32 [policies].

    A pass computes several, with at most `tokens` where two copies have no more.
    """
    at_once = max(1, tokens // item.tokens - 1)
    waiting = iter(removals)
    while batch := list(islice(waiting, at_once)):
        # The first copy stays as it is: rounding hangs on what shares a pass.
        copies = [item] * (len(batch) + 1)
        margins = forward(engine, layer, copies, partial(_without, removals=batch))
        margins = margins.cpu().view(len(copies), -1)
        yield from margins[1:] - margins[0]


def _without(states: Tensor, removals: Sequence[Removal]) -> Tensor:
    copies = states.float().view(len(removals) + 1, -1, states.shape[-1]).clone()
    for copy, removal in zip(copies[1:], removals, strict=True):
        copy[removal.rows.to(states.device)] -= removal.vectors.to(states.device)
    return copies.view_as(states).to(states.dtype)


def removals(
    autoencoder: SparseAutoencoder, place: Place, features: Iterable[int]
) -> Iterator[Removal]:
    """Take each of some features out, given by their number among the active, then others for it.

    The others are the CONTROLS features that are nearest to it in size, each scaled to it.
    """
    sizes = place.sizes(autoencoder)
    for feature in features:
        apart = (sizes / sizes[feature]).log().abs()
        apart[feature] = torch.inf
        nearest = apart.argsort(stable=True)[: min(CONTROLS, len(sizes) - 1)].tolist()
        for at in (feature, *nearest):
            direction = autoencoder.w_dec[place.active[at]] * (sizes[feature] / sizes[at])
            yield Removal(place.rows, torch.outer(place.activations[:, at], direction))
