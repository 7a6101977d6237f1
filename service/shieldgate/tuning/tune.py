"""From a base and labelled rows to a checkpoint, and to what it is worth on rows held out.

The folder that comes out is a checkpoint like any other. Beside it, in `tuning/`, where it is no
part of the checkpoint's identity, lies `report.json`: what was run, and the figures before and
after. It holds no text of the rows. While training, `state.pt` lies there too.
"""

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shieldgate.policy import Policy
from shieldgate.prompt import Template
from shieldgate.scoring.local import PackedEngine, load_checkpoint
from shieldgate.statistics import Estimate, Figures, Labels, Ranking, Scores, Weights, bootstrap
from shieldgate.tuning.adapt import Method, TrainableScorer, method_for
from shieldgate.tuning.fit import Hyperparameters, by_group, fit
from shieldgate.tuning.labelled import Labelled, Splits, counts
from shieldgate.tuning.loop import Check, best, saving
from shieldgate.tuning.run_folder import RunFolder
from shieldgate.types import Direction

Estimates = Mapping[str, Estimate]

FIGURES = ("average_precision", "optimal_f1")
# Rows of the test part on which staying with the base is measured.
KEPT_ROWS = 100


@dataclass(frozen=True, slots=True)
class TuningTask:
    """What is to be tuned on what: `policies` learn from the rows, `kept` shall stay as they are.

    `method` and `changes` (fields of Hyperparameters) override what would be chosen.
    """

    base: str
    out: Path
    template: Template
    policies: Mapping[str, Policy]
    kept: Sequence[Policy]
    splits: Splits
    seed: int = 0
    revision: str | None = None
    device: str = "auto"
    method: Method | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures on the test rows of one policy and direction, each with its 95 % interval.

    `gain` is after minus before on the same resamples: an interval above 0 is no accident of
    which rows were drawn. Each has the FIGURES, by name.
    """

    policy: str
    direction: Direction
    rows: int
    harmful: int
    before: Estimates
    after: Estimates
    gain: Estimates


@dataclass(frozen=True, slots=True)
class TuningReport:
    """What came out.

    `scorer` is the name under which the checkpoint serves. `best` is the number of steps after
    which the validation rows were ranked best; 0 is the base itself. `drift` is the mean change of
    probability on the kept policies, None without any.
    """

    scorer: str
    rows: Mapping[str, int]
    best: int
    checks: Sequence[Check]
    measured: Sequence[Measured]
    drift: float | None


class TuningCallback:
    """Hears how far tuning is; this one does nothing of it."""

    def phase(self, what: str) -> None:
        """Hear what is done next."""

    def begin(self, recipe: Hyperparameters) -> None:
        """Hear that training begins."""

    def step(self, step: int, loss: float) -> None:
        """Hear of a step, and its loss."""

    def check(self, check: Check) -> None:
        """Hear what was measured on the validation rows."""


def tune(task: TuningTask, callback: TuningCallback | None = None) -> TuningReport:
    """Tune, save and measure; a run that was stopped goes on, one that was done is read again.

    Raises ConfigurationError, also when the folder belongs to something else or is full, and
    FloatingPointError when training diverges.
    """
    callback = callback or TuningCallback()
    callback.phase("loading the base")
    scorer = _scorer(task, task.base)
    method = task.method or method_for(scorer.model)
    recipe = Hyperparameters.for_rows(len(task.splits.train), method, task.seed, **task.changes)
    run = _run(task, scorer, recipe)
    folder = RunFolder(task.out, run, made_by="tuning", inner="tuning")
    done = folder.claim(_read)
    if done is not None:
        return done
    callback.phase("asking the base about the test rows")
    before = _Scores.of(scorer, task)
    if method == "full" and scorer.model.dtype != torch.float32:
        scorer = _scorer(task, task.base, "float32")
    trainable = TrainableScorer.of(scorer, method, tokens=recipe.tokens, seed=task.seed)
    callback.begin(recipe)
    checks = fit(
        trainable,
        task.splits,
        task.policies,
        task.kept,
        recipe,
        state=folder.state,
        on_step=callback.step,
        on_check=callback.check,
    )
    callback.phase("saving, and asking what was learnt about the test rows")
    with saving(task.out):
        trainable.save(task.out)
    del trainable, scorer
    gc.collect()  # two large models don't fit one GPU
    tuned = _scorer(task, str(task.out))
    tuned.check()
    after = _Scores.of(tuned, task)
    report = TuningReport(
        scorer=tuned.identity.name,
        rows={name: len(getattr(task.splits, name)) for name in ("train", "validation", "test")},
        best=best(checks).steps,
        checks=checks,
        measured=_measured(task, before, after),
        drift=after.distance(before),
    )
    folder.finish({"report": asdict(report)})
    return report


@dataclass(frozen=True, slots=True)
class _Scores:
    """What a scorer says of the test rows, as it would say it when serving; lists by row."""

    tested: Sequence[Sequence[float]]
    kept: Sequence[Sequence[float]]

    @classmethod
    def of(cls, scorer: PackedEngine, task: TuningTask) -> "_Scores":
        def margins(row: Labelled, policies: Sequence[Policy]) -> list[float]:
            prepared = scorer.prepare(row.exchange, policies)
            windows = [scorer.forward([work])[0] for work in prepared.work]
            return [score.margin for score in prepared.scores(windows)]

        rows = task.splits.test
        return cls(
            [margins(row, [task.policies[policy] for policy in row.labels]) for row in rows],
            [margins(row, task.kept) for row in rows[:KEPT_ROWS]] if task.kept else [],
        )

    def distance(self, other: "_Scores") -> float | None:
        """Give the mean difference of the probabilities of the kept policies."""
        if not self.kept:
            return None
        ours, theirs = (_probabilities(np.array(scores.kept)) for scores in (self, other))
        return float(np.abs(ours - theirs).mean())


def _scorer(task: TuningTask, model: str, dtype: str = "auto") -> PackedEngine:
    revision = task.revision if model == task.base else None
    checkpoint = load_checkpoint(model, revision=revision, device=task.device, dtype=dtype)
    return PackedEngine(checkpoint, task.template)


def _run(task: TuningTask, scorer: PackedEngine, recipe: Hyperparameters) -> dict[str, Any]:
    """Write down all that decides what comes out, without a text."""
    return {
        "base": scorer.identity.name,
        "weights": scorer.identity.weights,
        "template": scorer.identity.template,
        "policies": {id: _digest(policy.guidelines) for id, policy in task.policies.items()},
        "kept": {policy.id: _digest(policy.guidelines) for policy in task.kept},
        "data": {name: _digest(list(getattr(task.splits, name))) for name in Splits.__slots__},
        "labels": {
            policy: {"violating": found[True], "harmless": found[False]}
            for policy, found in counts(
                [*task.splits.train, *task.splits.validation, *task.splits.test]
            ).items()
        },
        "recipe": asdict(recipe),
    }


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def _read(found: dict[str, Any]) -> TuningReport | None:
    report = found.get("report")
    if report is None:
        return None

    def estimates(by_name: Mapping[str, Any]) -> Estimates:
        return {name: Estimate(**estimate) for name, estimate in by_name.items()}

    checks = [Check(c["steps"], tuple(c["figures"])) for c in report["checks"]]
    measured = [
        Measured(**{**m, **{when: estimates(m[when]) for when in ("before", "after", "gain")}})
        for m in report["measured"]
    ]
    return TuningReport(**{**report, "checks": checks, "measured": measured})


def _measured(task: TuningTask, before: _Scores, after: _Scores) -> list[Measured]:
    rows = task.splits.test
    old, new = (by_group(rows, scores.tested) for scores in (before, after))
    found = []
    for (policy, direction), (labels, margins) in old.items():
        truth, now = np.array(labels), np.array(new[policy, direction][1])
        figures = _figures(truth, np.array(margins), now, task.seed)
        found.append(Measured(policy, direction, len(labels), sum(labels), *figures))
    return found


def _figures(labels: Labels, before: Scores, after: Scores, seed: int) -> list[Estimates]:
    """Estimate the figures before, after, and their gain."""
    rankings = (Ranking(labels, before), Ranking(labels, after))

    def figures(weights: Weights | None) -> Figures:
        found: dict[str, float | None] = {}
        old, new = (ranking.curve(weights) for ranking in rankings)
        for name in FIGURES:
            b, a = (getattr(curve, name)() for curve in (old, new))
            gain = None if a is None or b is None else a - b
            found |= {f"before {name}": b, f"after {name}": a, f"gain {name}": gain}
        return found

    estimates = bootstrap(figures, len(labels), seed=seed)
    return [
        {name: estimates[f"{when} {name}"] for name in FIGURES}
        for when in ("before", "after", "gain")
    ]


def _probabilities(margins: Scores) -> Scores:
    probabilities: Scores = 1 / (1 + np.exp(-margins))
    return probabilities
