"""The training loop: seeded, resumable, the same steps whether interrupted or not."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from shieldgate.errors import ConfigurationError


class Objective(Protocol):
    """A module to train, and its loss at each step, which depends on the step alone."""

    def losses(self, step: int) -> Iterator[Tensor]:
        """Yield the parts of a step's loss; they add up to it."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """List what is trained."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Give what is trained, to save it."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> object:
        """Take up what was saved."""
        ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """`steps` in all; the rate climbs to `rate` over `warm_up` steps, then falls linearly to 0."""

    steps: int
    rate: float
    warm_up: int = 50
    decay: float = 0.05

    def at(self, step: int) -> float:
        """Give the factor on the rate at a step."""
        up = min(1.0, (step + 1) / self.warm_up)
        return up * (1 - step / self.steps)


@dataclass(frozen=True, slots=True)
class Check:
    """What was measured after so many steps; figures compare as tuples, higher is better."""

    steps: int
    figures: tuple[float, ...]


def best(checks: Sequence[Check]) -> Check:
    """Give the best check by the mean of it and the two before, the first of equals.

    On few rows a single check can be good by luck.
    """
    means = [
        tuple(
            mean(column)
            for column in zip(*(c.figures for c in checks[max(0, at - 2) : at + 1]), strict=True)
        )
        for at in range(len(checks))
    ]
    return checks[means.index(max(means))]


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Measures before the first step and each `every` steps, to keep the best state of all.

    Training stops after `patience` checks without a better one.
    """

    measure: Callable[[], tuple[float, ...]]
    every: int
    patience: int
    on_check: Callable[[Check], None] = lambda check: None


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Raise ConfigurationError where what is written inside does not fit the disk."""
    try:
        yield
    # The writers of PyTorch and safetensors have errors of their own, which don't say why.
    except (OSError, RuntimeError, SafetensorError) as refused:
        raise ConfigurationError(
            f"{path} can't be written: {refused}. See whether the disk is full; the same command "
            "goes on from what was saved last."
        ) from refused


def train(
    objective: Objective,
    schedule: Schedule,
    state: Path,
    *,
    save_every: int = 100,
    muon: bool = True,
    early_stopping: EarlyStopping | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[Check]:
    """Train to the end of the schedule, from where the file `state` left off if there is one.

    With `muon` it trains the matrices of the layers; the embedding and everything else, or all,
    are trained by AdamW. With `early_stopping` it may end before, and the objective is left in its
    best state; returns what was measured. `on_step(step, loss)` is called after each step. Raises
    ConfigurationError if `state` belongs to another schedule or can't be written,
    FloatingPointError if the loss is not finite.
    """
    run = _Run(objective, schedule, muon, early_stopping)
    start = run.resume(state)
    if early_stopping and not run.checks:
        run.check(0)
    for step in range(start, schedule.steps):
        if early_stopping and run.checks_without_gain >= early_stopping.patience:
            break
        loss = run.step(step)
        on_step(step, loss)
        last = step + 1 == schedule.steps
        if early_stopping and ((step + 1) % early_stopping.every == 0 or last):
            run.check(step + 1)
        if (step + 1) % save_every == 0 or last:
            run.save(state, step + 1)
    run.restore_best()
    return run.checks


class _Run:
    """One objective with its optimizers, as one thing to step, save and resume."""

    def __init__(
        self,
        objective: Objective,
        schedule: Schedule,
        muon: bool,
        early_stopping: EarlyStopping | None,
    ) -> None:
        self._objective = objective
        self._schedule = schedule
        self._early_stopping = early_stopping
        self.checks: list[Check] = []
        self._best: dict[str, Tensor] = {}
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in objective.named_parameters():
            matrix = muon and ".layers." in name and parameter.ndim == 2
            (matrices if matrix else others).append(parameter)
        self._optimizers: list[Optimizer] = [
            AdamW(others, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.0)
        ]
        if matrices:
            matrix_optimizer = Muon(
                matrices,
                lr=schedule.rate,
                weight_decay=schedule.decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._optimizers.append(matrix_optimizer)
        self._rates = [LambdaLR(optimizer, schedule.at) for optimizer in self._optimizers]

    def step(self, step: int) -> float:
        """Take one step; returns its loss."""
        loss = 0.0
        for part in self._objective.losses(step):
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        if not math.isfinite(loss):
            raise FloatingPointError("The loss is not finite.")
        nn.utils.clip_grad_norm_((p for _, p in self._objective.named_parameters()), 1.0)
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rate.step()
        return loss

    @property
    def checks_without_gain(self) -> int:
        """Count the checks since the best one."""
        return len(self.checks) - 1 - self.checks.index(best(self.checks))

    def check(self, done: int) -> None:
        """Measure, and remember the state if it is the best so far."""
        if self._early_stopping is None:
            raise RuntimeError("There is nothing to measure with.")
        found = Check(done, self._early_stopping.measure())
        self.checks.append(found)
        if best(self.checks) is found:
            state = self._objective.state_dict()
            self._best = {name: tensor.detach().clone() for name, tensor in state.items()}
        self._early_stopping.on_check(found)

    def restore_best(self) -> None:
        """Leave the objective as it was at its best, where that was measured."""
        if self._best:
            self._objective.load_state_dict(self._best)

    def save(self, state: Path, done: int) -> None:
        """Write everything beside the old file, then put it in its place: neither can be half."""
        new = state.with_suffix(".new")
        saved = {
            "schedule": repr(self._schedule),
            "done": done,
            "objective": self._objective.state_dict(),
            "optimizers": [o.state_dict() for o in self._optimizers],
            "rates": [r.state_dict() for r in self._rates],
            "checks": [(check.steps, check.figures) for check in self.checks],
            "best": self._best,
        }
        with saving(new):
            torch.save(saved, new)
            new.replace(state)

    def resume(self, state: Path) -> int:
        """Take up what was saved; returns how many steps are done."""
        if not state.exists():
            return 0
        saved = torch.load(state, weights_only=True)
        if saved["schedule"] != repr(self._schedule):
            raise ConfigurationError(
                f"{state} was left by a run with another schedule, {saved['schedule']}. "
                "Ask for the same steps again, or give another folder."
            )
        self._objective.load_state_dict(saved["objective"])
        for optimizer, part in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        for rate, part in zip(self._rates, saved["rates"], strict=True):
            rate.load_state_dict(part)
        if self._early_stopping:
            self.checks = [Check(steps, tuple(figures)) for steps, figures in saved["checks"]]
            self._best = saved["best"]
        return int(saved["done"])
