"""Questions as arrays of token ids, in a file that training reads without a tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Questions:
    """Texts and what is asked of each; ragged arrays are one long array and where each part starts.

    `trunks` [trunk_starts] are the token ids of a prompt up to its guideline, `branches`
    [branch_starts] those from there to the answer. Text n is asked `asked[asked_starts[n] :
    asked_starts[n + 1]]`, numbers of branches; `target` is how probable a yes is and `weight` what
    that counts, both in 255ths.
    """

    trunks: NDArray[np.uint16]
    trunk_starts: NDArray[np.int32]
    branches: NDArray[np.uint16]
    branch_starts: NDArray[np.int32]
    asked: NDArray[np.int32]
    asked_starts: NDArray[np.int32]
    target: NDArray[np.uint8]
    weight: NDArray[np.uint8]

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.trunk_starts) - 1

    def save(self, path: Path) -> None:
        """Write the arrays to a .npz file."""
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Questions":
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(**{f.name: stored[f.name] for f in fields(cls)})

    def trunk(self, text: int) -> NDArray[np.uint16]:
        """Give the token ids of a text's trunk."""
        return self.trunks[self.trunk_starts[text] : self.trunk_starts[text + 1]]

    def branch(self, number: int) -> NDArray[np.uint16]:
        """Give the token ids of a branch."""
        return self.branches[self.branch_starts[number] : self.branch_starts[number + 1]]


@dataclass
class Batch:
    """Packed rows: `ids`, `positions`, `group` and `part` are int [rows, length].

    A token sees those before it of its group that are of the trunk (part 0) or of its own part.
    `reads` are the places, in the rows laid end to end, of each question's last token; `target`
    and `weight` are theirs. `texts` are the numbers of the texts, in the order of `reads`.
    """

    ids: Tensor
    positions: Tensor
    group: Tensor
    part: Tensor
    reads: Tensor
    target: Tensor
    weight: Tensor
    texts: list[int]

    def to(self, device: torch.device) -> "Batch":
        """Move it to the device that trains."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "texts"}
        return Batch(
            **{n: x.to(device, non_blocking=True) for n, x in moved.items()}, texts=self.texts
        )


def batches(
    questions: Questions, order: NDArray[np.int64], rows: int, length: int
) -> Iterator[Batch]:
    """Lay texts out in batches of the same shape, in this order.

    A trunk that is too long for a row with its branches is cut at its end.
    """
    at = 0
    while at < len(order):
        ids = np.zeros((rows, length), np.int32)
        positions, group, part = (np.zeros_like(ids) for _ in range(3))
        group[:] = -1
        reads: list[int] = []
        picked: list[int] = []
        texts: list[int] = []
        row = used = 0
        while at < len(order):
            text = int(order[at])
            asked = slice(questions.asked_starts[text], questions.asked_starts[text + 1])
            own = [questions.branch(n) for n in questions.asked[asked]]
            room = length - sum(map(len, own))
            trunk = questions.trunk(text)[:room]
            size = len(trunk) + length - room
            if used + size > length:
                row, used = row + 1, 0
                if row == rows:
                    break
            here = slice(used, used + size)
            ids[row, here] = np.concatenate([trunk, *own])
            group[row, here] = len(texts)
            positions[row, used : used + len(trunk)] = np.arange(len(trunk))
            used += len(trunk)
            for number, branch in enumerate(own, 1):
                here = slice(used, used + len(branch))
                positions[row, here] = np.arange(len(trunk), len(trunk) + len(branch))
                part[row, here] = number
                used += len(branch)
                reads.append(row * length + used - 1)
            picked.extend(range(asked.start, asked.stop))
            texts.append(text)
            at += 1
        yield Batch(
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            group=torch.from_numpy(group),
            part=torch.from_numpy(part),
            reads=torch.tensor(reads),
            target=torch.from_numpy(questions.target[picked] / np.float32(255)),
            weight=torch.from_numpy(questions.weight[picked] / np.float32(255)),
            texts=texts,
        )
