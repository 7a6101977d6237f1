"""Soft labels are right where a linear model can know, and never by its own labels."""

import random
from pathlib import Path

import pytest
import torch

from recipes.starter.rows import Row
from recipes.starter.soft_labels import soft_labels

WORDS = "apple bread cloud door engine flower garden house island jacket".split()


def row(number: int, text: str, **labels: int) -> Row:
    return Row(
        id=str(number),
        prompt=text,
        response=None,
        labels=labels,
        harmful=int(any(labels.values())),
        source="source",
    )


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Rows in which `zork` is hateful; every third is not labelled. One in ten has a response."""
    rng = random.Random(0)
    found = []
    for number in range(400):
        hate = number % 4 == 0
        text = " ".join([*rng.choices(WORDS, k=5), *["zork"] * hate, str(number)])
        labels = {} if number % 3 == 0 else {"hate": int(hate)}
        found.append(row(number, text, **labels))
        if number % 10 == 0:
            answer = {"prompt": "Tell me", "response": text}
            found.append(found[-1].model_copy(update=answer))
    return found


def test_soft_labels_tell_what_the_labels_do_not(rows: list[Row], tmp_path: Path) -> None:
    done: list[int] = []
    nothing = torch.zeros(len(rows), 4)
    found = soft_labels(rows, nothing, ["hate"], tmp_path / "soft_labels.npy", done.append)["hate"]
    assert done == [1]
    unknown = [
        (soft, "zork" in r.text) for soft, r in zip(found, rows, strict=True) if not r.labels
    ]
    assert len(unknown) > 100
    assert all((soft > 0.5) == hateful for soft, hateful in unknown)


def test_a_label_is_not_its_own_witness(rows: list[Row], tmp_path: Path) -> None:
    """A wrong label moves the soft labels of the rows in the other half, and not of its own."""
    nothing = torch.zeros(len(rows), 4)
    place = next(i for i, r in enumerate(rows) if r.labels == {"hate": 1})
    wrong = [*rows]
    wrong[place] = rows[place].model_copy(update={"labels": {"hate": 0}})
    first, second = (
        soft_labels(some, nothing, ["hate"], tmp_path / f"{name}.npy", lambda done: None)["hate"]
        for name, some in (("right", rows), ("wrong", wrong))
    )
    assert first[place] == second[place] > 0.5
    assert first != second


def test_embeddings_tell_too(tmp_path: Path) -> None:
    """Here no word tells, and the embedding does."""
    rng = random.Random(0)
    hateful = [rng.random() < 0.5 for _ in range(200)]
    rows = [row(i, " ".join(rng.choices(WORDS, k=5)), hate=int(h)) for i, h in enumerate(hateful)]
    rows += [row(200, "Tell me").model_copy(update={"response": "apple bread"})] * 3
    vectors = torch.tensor([[1.0 if h else -1.0] for h in [*hateful, *[False] * 3]])
    kept = tmp_path / "soft_labels.npy"
    found = soft_labels(rows, vectors, ["hate"], kept, lambda done: None)["hate"]
    agree = [(soft > 0.5) == h for soft, h in zip(found, hateful, strict=False)]
    assert sum(agree) / len(agree) > 0.95


def test_soft_labels_are_kept(rows: list[Row], tmp_path: Path) -> None:
    kept = tmp_path / "soft_labels.npy"
    nothing = torch.zeros(len(rows), 4)
    first = soft_labels(rows, nothing, ["hate"], kept, lambda done: None)
    assert soft_labels([], nothing, ["hate"], kept, lambda done: None) == first
