"""The baseline that the starter is held against: TF-IDF and logistic regression, in good faith.

One head per policy, over words and pairs of words, characters within words, and for a response
the words of its prompt. Each head's regularisation is the one with the best average precision on
dev.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from recipes.starter.rows import Row
from recipes.starter.soft_labels import Features

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Baseline:
    """One logistic regression per policy."""

    features: Features
    heads: dict[str, LogisticRegression]

    @classmethod
    def trained(
        cls, train: Sequence[Row], dev: Sequence[Row], policies: Sequence[str]
    ) -> "Baseline":
        """Train each head at each strength, and keep the best on dev; unknown is no negative."""
        features = Features.fitted(train)
        seen, unseen = features.of(train), features.of(dev)
        heads = {}
        for policy in policies:
            rows, labels = _known(train, policy)
            asked, answers = _known(dev, policy)
            best = -1.0
            for head in _candidates(seen[rows], labels):
                found = average_precision_score(answers, head.decision_function(unseen[asked]))
                print(f"  {policy:12} C {head.C:<5} dev AU-PRC {found:.3f}", flush=True)
                if found > best:
                    best, heads[policy] = found, head
        return cls(features, heads)

    def probabilities(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
        """Give each policy's probability of each row."""
        features = self.features.of(rows)
        return {policy: head.predict_proba(features)[:, 1] for policy, head in self.heads.items()}


def _candidates(features: csr_matrix, labels: NDArray[np.int64]) -> Iterator[LogisticRegression]:
    for strength in STRENGTHS:
        yield LogisticRegression(C=strength, solver="liblinear", tol=1e-3).fit(features, labels)


def _known(rows: Sequence[Row], policy: str) -> tuple[list[int], NDArray[np.int64]]:
    places = [place for place, row in enumerate(rows) if policy in row.labels]
    return places, np.array([rows[place].labels[policy] for place in places])
