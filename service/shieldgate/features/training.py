"""Trains a sparse autoencoder on the states that a scorer has while it scores.

BatchTopK (Bussmann, Leask and Nanda, arXiv 2412.06410): of a batch, as many activations as `l0`
to each row are kept, the largest; at the end, what the smallest of them is on average becomes the
threshold of a JumpReLU. Features that no longer fire learn what the others leave (Gao et al.,
arXiv 2406.04093).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.files import replace_file
from shieldgate.features.autoencoder import SparseAutoencoder
from shieldgate.features.passes import check_layer, judged, states, windows
from shieldgate.features.quality import Quality, measure, strongest_tokens
from shieldgate.plural import counted
from shieldgate.policy import Policy
from shieldgate.scoring.local import PackedEngine
from shieldgate.scoring.pack import Pack
from shieldgate.tuning.loop import Schedule, saving, train
from shieldgate.tuning.run_folder import RunFolder
from shieldgate.types import Exchange

# One text in ten, and no more than so many, is held out to measure on.
_HELD_OUT, _MOST_HELD_OUT = 10, 512
# A feature that has not fired on so many rows is revived; so many are at a time, at this weight.
_IDLE_ROWS, _REVIVED, _REVIVAL = 200_000, 256, 1 / 32
_FEWEST = 20
SAVE_EVERY = 500  # steps
_THRESHOLD_STEPS = 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an autoencoder is trained: `features` in all, of which `l0` fire on a row on average.

    A step takes the states of `texts` texts, each under one policy.
    """

    layer: int
    features: int
    l0: int = 32
    steps: int = 2000
    texts: int = 16
    rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """Where the autoencoder was written, and how good it is."""

    file: Path
    quality: Quality

    @classmethod
    def read(cls, out: Path, report: Mapping[str, Any]) -> "Trained | None":
        """Read it off a report in the folder `out`, where there is a result."""
        if "quality" not in report:
            return None
        return cls(out / report["file"], Quality(**report["quality"]))


def train_autoencoder(
    engine: PackedEngine,
    exchanges: Sequence[Exchange],
    policies: Sequence[Policy],
    recipe: Recipe,
    out: Path,
    *,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """Train an autoencoder, write it as Gemma Scope has it, and measure it.

    In the folder `out` lie layer_N/width_W/average_l0_L/params.npz, beside it labels.json with the
    tokens that features fire on, and report.json; a run that was stopped goes on from state.pt.
    Raises ConfigurationError, also where `out` is another run's, and FloatingPointError where the
    loss is not finite.
    """
    _check(engine, exchanges, recipe)
    folder = RunFolder(out, _run(engine, exchanges, policies, recipe), made_by="training")
    if done := folder.claim(partial(Trained.read, out)):
        return done
    order = Random(recipe.seed).sample(range(len(exchanges)), len(exchanges))
    held_out = order[: min(len(order) // _HELD_OUT, _MOST_HELD_OUT)]
    corpus = _Corpus(engine, [exchanges[n] for n in order[len(held_out) :]], policies, recipe)
    objective = BatchTopK(corpus.rows, engine.model.config.hidden_size, recipe)
    schedule = Schedule(recipe.steps, recipe.rate, warm_up=max(1, min(100, recipe.steps // 10)))
    train(objective, schedule, folder.state, muon=False, on_step=on_step, save_every=SAVE_EVERY)
    found = objective.autoencoder(range(recipe.steps, recipe.steps + _THRESHOLD_STEPS))
    unseen = [exchanges[n] for n in held_out]
    quality = measure(engine, found, unseen, policies)
    labels = strongest_tokens(engine, found, unseen, policies)
    file = _save(found, quality, labels, out)
    folder.finish({"file": file, "quality": asdict(quality)})
    return Trained(out / file, quality)


class BatchTopK(nn.Module):
    """The loss of an autoencoder; an Objective.

    `rows` gives the states of a step, [rows, hidden], which depend on the step alone.
    """

    idle: Tensor

    def __init__(self, rows: Callable[[int], Tensor], hidden: int, recipe: Recipe) -> None:
        super().__init__()
        self._rows, self._l0, self._layer = rows, recipe.l0, recipe.layer
        first = rows(0)
        # States of one size for all models and layers, as Gemma Scope scales them.
        self._scale = first.square().mean().sqrt()
        generator = torch.Generator().manual_seed(recipe.seed)
        directions = torch.randn(recipe.features, hidden, generator=generator).to(first.device)
        directions = nn.functional.normalize(directions)
        mean = first.mean(0) / self._scale
        self.w_dec = nn.Parameter(directions)
        self.w_enc = nn.Parameter(directions.T.clone())
        self.b_dec = nn.Parameter(mean)
        self.b_enc = nn.Parameter(-mean @ directions.T)
        self.register_buffer("idle", torch.zeros(recipe.features, device=first.device))

    def losses(self, step: int) -> Iterator[Tensor]:
        """Yield a step's loss: what is left of the variance, and what could be revived of it."""
        with torch.no_grad():
            self.w_dec.copy_(nn.functional.normalize(self.w_dec))
        x = self._rows(step) / self._scale
        variance = (x - x.mean(0)).square().mean()
        found, least = self._activations(x)
        kept = torch.where(found >= least, found, 0)
        left = x - kept @ self.w_dec - self.b_dec
        loss = left.square().mean() / variance
        with torch.no_grad():
            self.idle.add_(len(x)).masked_fill_((kept > 0).any(0), 0)
        dead = (self.idle > _IDLE_ROWS).nonzero()[:, 0]
        if len(dead):
            woken = x @ self.w_enc[:, dead] + self.b_enc[dead]
            best = woken.topk(min(_REVIVED, len(dead)), dim=1)
            woken = torch.zeros_like(woken).scatter(1, best.indices, best.values)
            missed = left.detach() - woken @ self.w_dec[dead]
            loss = loss + _REVIVAL * missed.square().mean() / variance
        yield loss

    def _activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give all activations of a batch, and the smallest of those that are kept."""
        found = (x @ self.w_enc + self.b_enc).relu()
        kept = found.detach().flatten().topk(self._l0 * len(x), sorted=False).values
        return found, kept.min()

    @torch.no_grad()
    def autoencoder(self, steps: range) -> SparseAutoencoder:
        """Make it an autoencoder of the states as they are, whose directions are of length 1.

        Its threshold is made from the states of `steps`.
        """
        least = [self._activations(self._rows(step) / self._scale)[1] for step in steps]
        threshold = torch.stack(least).mean()
        length = self.w_dec.norm(dim=1)
        parts = {
            "w_enc": self.w_enc * length,
            "b_enc": self.b_enc * length * self._scale,
            "w_dec": self.w_dec / length[:, None],
            "b_dec": self.b_dec * self._scale,
            "threshold": threshold * length * self._scale,
        }
        return SparseAutoencoder(
            **{n: part.clone() for n, part in parts.items()}, layer=self._layer
        )


class _Corpus:
    """Texts as states: which make a step is drawn by the seed, each once before any twice."""

    def __init__(
        self,
        engine: PackedEngine,
        exchanges: Sequence[Exchange],
        policies: Sequence[Policy],
        recipe: Recipe,
    ) -> None:
        self._engine, self._exchanges, self._policies = engine, exchanges, policies
        self._recipe = recipe
        self._order = cache(self._draw)

    def rows(self, step: int) -> Tensor:
        """Give the states of a step's prompts, fp32 [rows, hidden]."""
        first = step * self._recipe.texts
        packs = [self._pack(n) for n in range(first, first + self._recipe.texts)]
        rows, _ = states(self._engine, self._recipe.layer, packs)
        return rows[judged(packs).to(rows.device)]

    def _pack(self, number: int) -> Pack:
        turn, place = divmod(number, len(self._exchanges))
        policy = Random(f"{self._recipe.seed} {number}").choice(self._policies)
        exchange = self._exchanges[self._order(turn)[place]]
        return windows(self._engine, exchange, [policy])[0][1]

    def _draw(self, turn: int) -> list[int]:
        size = len(self._exchanges)
        return Random(f"{self._recipe.seed} {turn}").sample(range(size), size)


def _check(engine: PackedEngine, exchanges: Sequence[Exchange], recipe: Recipe) -> None:
    check_layer(engine, recipe.layer)
    if len(exchanges) < _FEWEST:
        raise ConfigurationError(
            f"{counted(len(exchanges), 'text')} can't be enough, where one in {_HELD_OUT} is held "
            f"out to measure on: give at least {_FEWEST}, and better thousands."
        )
    if recipe.l0 >= recipe.features:
        raise ConfigurationError(
            f"Of {recipe.features:,} features {recipe.l0:,} can't fire at once: give a lower "
            "--l0, or more --features."
        )


def _run(
    engine: PackedEngine,
    exchanges: Sequence[Exchange],
    policies: Sequence[Policy],
    recipe: Recipe,
) -> dict[str, Any]:
    """Write down all that decides what comes out, without a text."""
    texts = hashlib.sha256(repr(exchanges).encode("utf-8", "surrogatepass")).hexdigest()
    wordings = hashlib.sha256(repr([p.guidelines for p in policies]).encode()).hexdigest()
    return {
        "scorer": engine.identity.name,
        "identity": engine.identity.key,
        "policies": [policy.id for policy in policies],
        "wordings": wordings[:12],
        "texts": len(exchanges),
        "digest": texts[:12],
        **asdict(recipe),
    }


def _save(found: SparseAutoencoder, quality: Quality, labels: Mapping[int, str], out: Path) -> str:
    """Write the autoencoder and its labels; give its file in the folder `out`."""
    width = found.features
    name = f"{width // 1024}k" if width % 1024 == 0 else str(width)
    file = f"layer_{found.layer}/width_{name}/average_l0_{quality.l0:.0f}/params.npz"
    with saving(out / file):
        found.save(out / file)
        content = json.dumps(labels, indent=0, ensure_ascii=False)
        replace_file((out / file).with_name("labels.json"), content.encode(errors="replace"))
    return file
