"""How good a sparse autoencoder is for a scorer: what it leaves of states, and of margins."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shieldgate.features.autoencoder import SparseAutoencoder
from shieldgate.features.passes import content, forward, judged, states, windows
from shieldgate.policy import Policy
from shieldgate.scoring.local import PackedEngine
from shieldgate.types import Exchange


@dataclass(frozen=True, slots=True)
class Quality:
    """How well an autoencoder does on texts that it was not trained on.

    `fvu` is the fraction of the states' variance that is left unexplained, on all `rows` of the
    prompts and on those of the texts alone; `l0` how many features fire on a row, on average;
    `dead` the share of features that fire on no row. Where the states of all rows are those
    rebuilt, `margin_kept` of the margins' variance between texts is kept (1: all of it), and a
    margin changes by `margin_change` logits on average.
    """

    texts: int
    rows: int
    fvu: float
    fvu_of_text: float
    l0: float
    dead: float
    margin_kept: float
    margin_change: float


@torch.no_grad()
def measure(
    engine: PackedEngine,
    autoencoder: SparseAutoencoder,
    exchanges: Sequence[Exchange],
    policies: Sequence[Policy],
) -> Quality:
    """Measure an autoencoder on the prompts of texts under all policies.

    Of a text that is longer than the context, on its first window.
    """
    whole, text = _Variance(autoencoder.hidden), _Variance(autoencoder.hidden)
    fires = torch.zeros(autoencoder.features, dtype=torch.long)
    margins, spliced = [], []
    for exchange in exchanges:
        shown, item = windows(engine, exchange, policies)[0]
        rows, plain = states(engine, autoencoder.layer, [item])
        inner = judged([item]).to(rows.device)
        rebuilt = torch.where(inner[:, None], autoencoder.reconstruct(rows), rows)
        margins.append(plain.cpu())
        spliced.append(forward(engine, autoencoder.layer, [item], rebuilt.to).cpu())
        fires += autoencoder.encode(rows[inner]).features.bincount(minlength=len(fires)).cpu()
        whole.add(rows[inner], rebuilt[inner])
        of_text = sorted({row for of in content(engine, item, shown, policies) for row, *_ in of})
        text.add(rows[of_text], rebuilt[of_text])
    before, after = torch.stack(margins).double(), torch.stack(spliced).double()
    lost = (after - before).square().sum() / (before - before.mean(0)).square().sum()
    return Quality(
        texts=len(exchanges),
        rows=whole.count,
        fvu=whole.unexplained,
        fvu_of_text=text.unexplained,
        l0=float(fires.sum()) / whole.count,
        dead=float((fires == 0).double().mean()),
        margin_kept=1 - float(lost),
        margin_change=float((after - before).abs().mean()),
    )


class _Variance:
    """The variance of rows, and how much of it is left unexplained, over any number of batches."""

    def __init__(self, hidden: int) -> None:
        self.count = 0
        self._sum = torch.zeros(hidden, dtype=torch.float64)
        self._squares = self._left = 0.0

    def add(self, rows: Tensor, rebuilt: Tensor) -> None:
        """Add rows [rows, hidden], and what was rebuilt of them."""
        self.count += len(rows)
        self._sum += rows.double().sum(0).cpu()
        self._squares += float(rows.double().square().sum())
        self._left += float((rows - rebuilt).double().square().sum())

    @property
    def unexplained(self) -> float:
        """Give the fraction that is left."""
        return self._left / (self._squares - float(self._sum.square().sum()) / self.count)


# Tokens that stand for a feature.
_TOKENS = 6


@torch.no_grad()
def strongest_tokens(
    engine: PackedEngine,
    autoencoder: SparseAutoencoder,
    exchanges: Sequence[Exchange],
    policies: Sequence[Policy],
) -> dict[int, str]:
    """List for each feature the tokens of the texts on which it fires most, the most first.

    A feature that fires on no text, but in the words around them, has none.
    """
    strongest: dict[int, dict[str, float]] = defaultdict(dict)
    for exchange in exchanges:
        shown, item = windows(engine, exchange, policies[:1])[0]
        rows, _ = states(engine, autoencoder.layer, [item])
        [spans] = content(engine, item, shown, policies[:1])
        firing = autoencoder.encode(rows[[row for row, _, _ in spans]])
        found = (firing.rows.tolist(), firing.features.tolist(), firing.values.tolist())
        for row, feature, value in zip(*found, strict=True):
            _, start, end = spans[row]
            if token := shown.judged[start:end].strip().casefold():
                tokens = strongest[feature]
                tokens[token] = max(value, tokens.get(token, 0.0))
    return {
        feature: " · ".join(sorted(tokens, key=tokens.__getitem__, reverse=True)[:_TOKENS])
        for feature, tokens in sorted(strongest.items())
    }
