"""Soft labels: what a linear model says of the training rows, for the starter to learn from.

Most rows are labelled for some harms only. A logistic regression over words, characters and
sentence embeddings is trained in a few minutes, and says for each row and harm what labels don't.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from recipes.starter.rows import Row


@dataclass(frozen=True)
class Features:
    """Rows in, one sparse matrix [rows, features] out.

    Words and pairs of words, characters within words, and for a response the words of its prompt.
    """

    words: TfidfVectorizer
    characters: TfidfVectorizer
    prompts: TfidfVectorizer

    @classmethod
    def fitted(cls, rows: Sequence[Row]) -> "Features":
        """Learn the vocabularies and document frequencies."""
        common: Any = {"min_df": 3, "sublinear_tf": True, "dtype": np.float32}
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b|[^\w\s]", **common)
        characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **common)
        prompts = TfidfVectorizer(ngram_range=(1, 1), **common)
        texts = [row.text for row in rows]
        words.fit(texts)
        characters.fit(texts)
        prompts.fit([row.prompt for row in rows if row.response is not None])
        return cls(words, characters, prompts)

    def of(self, rows: Sequence[Row]) -> csr_matrix:
        """Turn rows into features."""
        texts = [row.text for row in rows]
        before = ["" if row.response is None else row.prompt for row in rows]
        parts = [
            self.words.transform(texts),
            self.characters.transform(texts),
            self.prompts.transform(before),
        ]
        return hstack(parts, format="csr")


def soft_labels(
    rows: Sequence[Row],
    embeddings: Tensor,
    harms: Sequence[str],
    kept: Path,
    on_harm: Callable[[int], None],
) -> Mapping[str, Sequence[float]]:
    """Tell how probable each harm is in each row, where harm and harmless are equally frequent.

    Each half of the rows is judged by a model that was trained on the other (cross-fitting), so a
    label is not its own witness; rows with the same text are in the same half. `embeddings`
    [rows, width] is standardised. The result is kept in a file and taken from there the next time;
    `on_harm(done)` is called now and then.
    """
    if not kept.exists():
        scale = embeddings.shape[1] ** -0.5  # as long as a row of TF-IDF is
        seen = hstack(
            [Features.fitted(rows).of(rows), csr_matrix(embeddings.float().numpy() * scale)],
            format="csr",
            dtype=np.float32,
        )
        half = np.array([crc32(row.text.encode()) % 2 for row in rows])
        found = []
        for harm in harms:
            found.append(_crossed(seen, half, _labels(rows, harm)))
            on_harm(len(found))
        with kept.with_suffix(".new").open("wb") as new:
            np.save(new, found)
        kept.with_suffix(".new").replace(kept)
    return dict(zip(harms, np.load(kept).tolist(), strict=True))


def _labels(rows: Sequence[Row], harm: str) -> NDArray[np.int8]:
    """List 1, 0, or -1 where nothing is known."""
    return np.array([row.labels.get(harm, -1) for row in rows], np.int8)


def _crossed(
    seen: csr_matrix, half: NDArray[np.int64], labels: NDArray[np.int8]
) -> NDArray[np.float32]:
    soft = np.zeros(len(labels), np.float32)
    for side in (0, 1):
        taught = np.flatnonzero((half == side) & (labels >= 0))
        head = LogisticRegression(C=3.0, solver="liblinear", tol=1e-2, class_weight="balanced")
        head.fit(seen[taught], labels[taught])
        soft[half != side] = head.predict_proba(seen[half != side])[:, 1]
    return soft
