"""Scored rows as `decide` would judge them: probabilities and decisions, in columns."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.score_columns import UNKNOWN, ScoreColumns
from shieldgate.evaluation.score_file import Header, wording_digest
from shieldgate.policy import Calibration, Policy, PolicyBook, Profile
from shieldgate.statistics import Sample, Scores
from shieldgate.types import Direction


@dataclass(frozen=True, slots=True)
class Decisions:
    """The rows of one direction whose label is known, under one policy or all together.

    `policy` is None for all together: then the probability is the maximum over the policies, a
    row is flagged where any policy flags it, and there is no one threshold. `at` indexes the
    columns, and `by` the policies of the scores: for each row the most probable of those that flag
    it, or of all where none does. They and the arrays of `sample` are [rows].
    """

    direction: Direction
    policy: str | None
    threshold: float | None
    calibrated: bool
    at: NDArray[np.intp]
    by: NDArray[np.intp]
    sample: Sample


def decide_columns(
    columns: ScoreColumns, book: PolicyBook, profile: Profile
) -> Iterator[Decisions]:
    """Judge each direction: all policies together first, then each of them against all else.

    Raises ConfigurationError where the book lacks a policy of the scores.
    """
    for direction in columns.directions():
        here = columns.of(direction)
        highest = np.full(here.size, -1.0)
        flagged = np.zeros(here.size, np.bool_)
        first, by = np.full(here.size, -1.0), np.zeros(here.size, np.intp)
        each = []
        for place, policy in enumerate(policies(columns, book)):
            fitted = policy.calibration(columns.header.scorer, direction)
            calibration = fitted or Calibration(policy.thresholds[direction])
            threshold = profile.threshold(policy, direction, columns.header.scorer)
            probability = probabilities(columns.margins[policy.id], calibration)
            scored = here & ~np.isnan(probability)
            violated = scored & (probability >= threshold)
            np.fmax(highest, probability, out=highest)
            flagged |= violated
            rank = np.where(violated, 1.0, 0.0) + np.where(scored, probability, -1.0)
            by[rank > first] = place
            np.fmax(first, rank, out=first)
            label = columns.labels[policy.id]
            at = np.flatnonzero(scored & (label != UNKNOWN))
            sample = Sample(label[at] == 1, probability[at], violated[at], _weights(columns, at))
            own = np.full(at.size, place)
            each.append(
                Decisions(direction, policy.id, threshold, fitted is not None, at, own, sample)
            )
        at = np.flatnonzero(here & (highest >= 0) & (columns.harmful != UNKNOWN))
        harmful = columns.harmful[at] == 1
        together = Sample(harmful, highest[at], flagged[at], _weights(columns, at))
        calibrated = all(j.calibrated for j in each)
        yield Decisions(direction, None, None, calibrated, at, by[at], together)
        yield from each


def _weights(columns: ScoreColumns, at: NDArray[np.intp]) -> NDArray[np.float64] | None:
    return None if columns.weights is None else columns.weights[at]


def policies(columns: ScoreColumns, book: PolicyBook) -> list[Policy]:
    """Find the policies of the scores in a book; raise ConfigurationError where it lacks one."""
    missing = [policy for policy in columns.header.policies if policy not in book.policies]
    if missing:
        raise ConfigurationError(
            f"The scores are of policies that the policy book lacks: {', '.join(missing)}. "
            "Give the book that they were scored with, or score again."
        )
    return [book.policies[policy] for policy in columns.header.policies]


def probabilities(margins: NDArray[np.float32], calibration: Calibration) -> Scores:
    """Turn margins into probabilities as `Calibration.probability` does; NaN stays NaN."""
    logits = margins.astype(np.float64) / calibration.temperature + calibration.bias
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def reworded(header: Header, book: PolicyBook) -> list[str]:
    """List the policies whose guidelines are not those that were scored."""
    return [
        policy
        for policy, digest in header.guidelines.items()
        if policy in book.policies and wording_digest(book.policies[policy]) != digest
    ]
