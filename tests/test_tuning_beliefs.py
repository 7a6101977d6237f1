"""What a linear model believes: right where it can know, and never by its own labels."""

import random
from pathlib import Path

import pytest
import torch

from shieldgate.tuning.beliefs import beliefs
from shieldgate.tuning.rows import Row

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


def test_beliefs_tell_what_the_labels_do_not(rows: list[Row], tmp_path: Path) -> None:
    done: list[int] = []
    nothing = torch.zeros(len(rows), 4)
    believed = beliefs(rows, nothing, ["hate"], tmp_path / "beliefs.npy", done.append)["hate"]
    assert done == [1]
    unknown = [
        (belief, "zork" in r.text) for belief, r in zip(believed, rows, strict=True) if not r.labels
    ]
    assert len(unknown) > 100
    assert all((belief > 0.5) == hateful for belief, hateful in unknown)


def test_a_label_is_not_its_own_witness(rows: list[Row], tmp_path: Path) -> None:
    """A wrong label moves what is believed of the rows in the other half, and not of its own."""
    nothing = torch.zeros(len(rows), 4)
    place = next(i for i, r in enumerate(rows) if r.labels == {"hate": 1})
    wrong = [*rows]
    wrong[place] = rows[place].model_copy(update={"labels": {"hate": 0}})
    first, second = (
        beliefs(some, nothing, ["hate"], tmp_path / f"{name}.npy", lambda done: None)["hate"]
        for name, some in (("right", rows), ("wrong", wrong))
    )
    assert first[place] == second[place] > 0.5
    assert first != second


def test_meanings_are_believed_too(tmp_path: Path) -> None:
    """Here no word tells, and the meaning does."""
    rng = random.Random(0)
    hateful = [rng.random() < 0.5 for _ in range(200)]
    rows = [row(i, " ".join(rng.choices(WORDS, k=5)), hate=int(h)) for i, h in enumerate(hateful)]
    rows += [row(200, "Tell me").model_copy(update={"response": "apple bread"})] * 3
    meant = torch.tensor([[1.0 if h else -1.0] for h in [*hateful, *[False] * 3]])
    believed = beliefs(rows, meant, ["hate"], tmp_path / "beliefs.npy", lambda done: None)["hate"]
    agree = [(b > 0.5) == h for b, h in zip(believed, hateful, strict=False)]
    assert sum(agree) / len(agree) > 0.95


def test_beliefs_are_kept(rows: list[Row], tmp_path: Path) -> None:
    kept = tmp_path / "beliefs.npy"
    nothing = torch.zeros(len(rows), 4)
    first = beliefs(rows, nothing, ["hate"], kept, lambda done: None)
    assert beliefs([], nothing, ["hate"], kept, lambda done: None) == first
