"""Which features fire in the states that a text is scored by, and which its margins need."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from shieldgate.errors import ConfigurationError
from shieldgate.features.ablation import CONTROLS, Ablation, Place, Removal, changes, removals
from shieldgate.features.autoencoder import Firing, SparseAutoencoder
from shieldgate.features.passes import (
    check_layer,
    content,
    forward,
    judged,
    starts,
    states,
    windows,
)
from shieldgate.policy import Policy
from shieldgate.scoring.local import PackedEngine
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange

# Features that are listed of each token.
_OF_A_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Fit:
    """How well states are rebuilt from their features.

    `fvu` is the fraction of their variance that is left unexplained, `l0` how many features fire
    on a token, on average.
    """

    fvu: float
    l0: float


@dataclass(frozen=True, slots=True)
class ActiveFeature:
    """A feature that fires in some place: on how many `tokens`, and its highest activation.

    `span` are the characters of the text where that is, None where it isn't in the text.
    `ablations` say by policy what the margin does without it there.
    """

    index: int
    activation: float
    tokens: int
    span: tuple[int, int] | None
    ablations: Mapping[str, Ablation]


@dataclass(frozen=True, slots=True)
class OfPolicy:
    """A policy's margin, and what fires at the position where the scorer answers.

    `rebuilt` is the margin where the states of all tokens are those rebuilt from the features.
    """

    margin: float
    rebuilt: float
    fit: Fit
    features: Sequence[ActiveFeature]


@dataclass(frozen=True, slots=True)
class OfToken:
    """A token of the text, characters [start, end), and what fires on it most, {index: value}."""

    start: int
    end: int
    features: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in one window of a text, the one with the highest margin.

    `text` is what is under judgement in it, `prompt` the fit on all of the prompts, `content` on
    the tokens of the text; `features` are those that fire on the text.
    """

    text: str
    window: int
    windows: int
    prompt: Fit
    content: Fit | None
    policies: Mapping[str, OfPolicy]
    features: Sequence[ActiveFeature]
    tokens: Sequence[OfToken]


@dataclass(frozen=True, slots=True)
class Inspector:
    """Inspects texts by the features of the states after a layer.

    Lists the `top` features of each place, and takes each out, and others for it.
    """

    engine: PackedEngine
    autoencoder: SparseAutoencoder
    top: int = 5

    @classmethod
    def of(cls, engine: PackedEngine, autoencoder: SparseAutoencoder, top: int = 5) -> "Inspector":
        """Put the two together; raise ConfigurationError where they don't fit."""
        mend = "Give the model that the autoencoder was trained on."
        check_layer(engine, autoencoder.layer, mend)
        hidden = engine.model.config.hidden_size
        if autoencoder.hidden != hidden:
            raise ConfigurationError(
                f"The autoencoder takes states {autoencoder.hidden:,} wide, and those of "
                f"{engine.identity.name} are {hidden:,} wide. Give the autoencoder of "
                "a model of that size, trained on the residual stream."
            )
        return cls(engine, autoencoder.to(engine.model.device), top)

    @torch.no_grad()
    def inspect(self, exchange: Exchange, policies: Sequence[Policy]) -> Inspection:
        """Inspect an exchange under policies.

        Raises ConfigurationError where it can't be judged, and where the features explain nothing
        of the states.
        """
        scored = windows(self.engine, exchange, policies)
        margins = [max(self.engine.forward([item])[0]) for _, item in scored]
        worst = margins.index(max(margins))
        shown, item = scored[worst]
        seen = _Seen.of(self, item, shown, policies)
        if seen.prompt.fvu >= 1:
            raise ConfigurationError(
                "The autoencoder explains nothing of the states after layer "
                f"{self.autoencoder.layer} of {self.engine.identity.name}: "
                f"{seen.prompt.fvu:.2f} times their variance is left. "
                "It was trained on another layer, on another place in it, or for another model."
            )
        return Inspection(
            text=shown.judged,
            window=worst + 1,
            windows=len(scored),
            prompt=seen.prompt,
            content=seen.fit(seen.content.any(0)) if seen.content.any() else None,
            policies=seen.of_policies(),
            features=seen.of_text(),
            tokens=seen.of_tokens(),
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """The states of one pack [rows, hidden], and what fires in those that are `judged`.

    `answers` are the rows where the policies are answered; `content` tells for each policy the
    rows of the text, [policies, rows].
    """

    by: Inspector
    item: Pack
    policies: Sequence[Policy]
    margins: Tensor
    rows: Tensor
    rebuilt: Tensor
    firing: Firing
    judged: Tensor
    answers: Tensor
    content: Tensor
    spans: Sequence[tuple[int, int, int]]

    @classmethod
    def of(cls, by: Inspector, item: Pack, shown: Exchange, policies: Sequence[Policy]) -> "_Seen":
        rows, margins = states(by.engine, by.autoencoder.layer, [item])
        counted = judged([item]).to(rows.device)
        spans = content(by.engine, item, shown, policies)
        of_text = torch.zeros(len(policies), len(rows), dtype=torch.bool, device=rows.device)
        for number, found in enumerate(spans):
            of_text[number, [row for row, _, _ in found]] = True
        return cls(
            by=by,
            item=item,
            policies=policies,
            margins=margins,
            rows=rows,
            rebuilt=by.autoencoder.reconstruct(rows),
            firing=by.autoencoder.encode(rows).on(counted),
            judged=counted,
            answers=torch.tensor(starts(item)[1:], device=rows.device) - 1,
            content=of_text & counted,
            spans=spans[int(margins.argmax())],
        )

    def spliced(self) -> Tensor:
        """Compute the margins with the states that are rebuilt, fp32 [policies]."""
        whole = torch.where(self.judged[:, None], self.rebuilt, self.rows)
        return forward(self.by.engine, self.by.autoencoder.layer, [self.item], whole.to)

    @property
    def prompt(self) -> Fit:
        return self.fit(self.judged)

    def fit(self, rows: Tensor) -> Fit:
        """Say how well some rows are rebuilt; variance is about the mean of all that are judged."""
        mean = self.rows[self.judged].mean(0)
        left = (self.rows[rows] - self.rebuilt[rows]).square().sum()
        whole = (self.rows[rows] - mean).square().sum()
        fires = len(self.firing.on(rows).rows)
        return Fit(float(left / whole), fires / max(1, int(rows.sum())))

    def of_policies(self) -> dict[str, OfPolicy]:
        """Say of each policy what fires where it is answered."""
        places = [self._place(answer[None]) for answer in self.answers]
        listed = [self._top(place) for place in places]
        taken = [list(self._removals(*given)) for given in zip(places, listed, strict=True)]
        # No branch sees another, so that each policy may be asked about a feature of its own.
        together = (_joined(given) for given in zip_longest(*taken))
        changed = list(changes(self.by.engine, self.by.autoencoder.layer, self.item, together))
        spliced = self.spliced()
        found = {}
        for number, (policy, place, top) in enumerate(
            zip(self.policies, places, listed, strict=True)
        ):
            row = torch.zeros_like(self.judged)
            row[self.answers[number]] = True
            ablations = self._ablations(
                [float(change[number]) for change in changed[: len(taken[number])]], place, top
            )
            found[policy.id] = OfPolicy(
                margin=float(self.margins[number]),
                rebuilt=float(spliced[number]),
                fit=self.fit(row),
                features=[
                    self._active(place, at, {policy.id: ablation})
                    for at, ablation in zip(top, ablations, strict=True)
                ],
            )
        return found

    def of_text(self) -> list[ActiveFeature]:
        """List what fires on the text, most in all; taken out, it is from all policies' prompts."""
        place = self._place(self.content.any(0).nonzero()[:, 0])
        top = self._top(place)
        taken = self._removals(place, top)
        changed = list(changes(self.by.engine, self.by.autoencoder.layer, self.item, taken))
        by_policy = {
            policy.id: self._ablations([float(change[number]) for change in changed], place, top)
            for number, policy in enumerate(self.policies)
        }
        return [
            self._active(place, at, {id: ablations[n] for id, ablations in by_policy.items()})
            for n, at in enumerate(top)
        ]

    def of_tokens(self) -> list[OfToken]:
        """List what fires most on each token of the text."""
        found = []
        for row, start, end in self.spans:
            here = self.firing.rows == row
            values, order = self.firing.values[here].sort(descending=True, stable=True)
            features = self.firing.features[here][order][:_OF_A_TOKEN].tolist()
            found.append(OfToken(start, end, dict(zip(features, values.tolist(), strict=False))))
        return found

    def _place(self, rows: Tensor) -> Place:
        here = torch.zeros_like(self.judged)
        here[rows] = True
        firing = self.firing.on(here)
        active, column = torch.unique(firing.features, return_inverse=True)
        activations = self.rows.new_zeros(len(rows), len(active))
        activations[torch.searchsorted(rows, firing.rows), column] = firing.values
        return Place(rows, active, activations)

    def _top(self, place: Place) -> list[int]:
        sizes = place.sizes(self.by.autoencoder)
        order = sizes.argsort(descending=True, stable=True)
        found: list[int] = order[: self.by.top].tolist()
        return found

    def _removals(self, place: Place, top: Sequence[int]) -> Iterator[Removal]:
        return removals(self.by.autoencoder, place, top)

    def _ablations(
        self, changed: Sequence[float], place: Place, top: Sequence[int]
    ) -> list[Ablation]:
        """Part the changes of features and of their others, which come one after the other."""
        size = min(CONTROLS, len(place.active) - 1) + 1
        parts = [changed[size * n : size * (n + 1)] for n in range(len(top))]
        return [Ablation(part[0], tuple(part[1:])) for part in parts]

    def _active(self, place: Place, at: int, ablations: Mapping[str, Ablation]) -> ActiveFeature:
        values = place.activations[:, at]
        row = int(place.rows[values.argmax()])
        return ActiveFeature(
            index=int(place.active[at]),
            activation=float(values.max()),
            tokens=int((values > 0).sum()),
            span=next(((start, end) for at, start, end in self.spans if at == row), None),
            ablations=ablations,
        )


def _joined(given: Sequence[Removal | None]) -> Removal:
    some = [removal for removal in given if removal]
    return Removal(torch.cat([r.rows for r in some]), torch.cat([r.vectors for r in some]))
