"""Train the adapter on prepared questions.

    python -m recipes.small.train --questions questions.npz --out OUT

On a GPU layers are compiled and attention is FlexAttention; seven minutes on an H200. It goes on
where it was when started again, with the texts from their beginning. The base is the one that the
shipped scorer names.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - what everybody calls it
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.data import DataLoader, IterableDataset

from recipes.small.network import Network, from_gguf, layer, parameters
from recipes.small.questions import Batch, Questions, batches
from shieldgate.scoring.local.adapted import ADAPTER, base_file

# Token ids of the two answers, in SmolLM2's vocabulary.
YES, NO = 10539, 5230
RANK = 32


class Stream(IterableDataset[Batch]):
    """Batches without end, each worker's own; each round over the texts is in a new order."""

    def __init__(self, questions: Questions, seed: int, rows: int, length: int) -> None:
        self._questions, self._seed = questions, seed
        self._rows, self._length = rows, length

    def __iter__(self) -> Iterator[Batch]:
        """Yield this worker's batches."""
        worker = torch.utils.data.get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng([self._seed, number])
        own = np.arange(number, len(self._questions), count)
        while True:
            yield from batches(self._questions, rng.permutation(own), self._rows, self._length)


class Machine:
    """The network on a device, with the attention that the device is good at."""

    def __init__(self, network: Network, device: torch.device) -> None:
        self.network = network.to(device)
        self.device = device
        self._fast = device.type == "cuda"
        self._dtype = torch.bfloat16 if self._fast else torch.float32
        self._layer = torch.compile(layer, dynamic=False) if self._fast else layer

    def margins(self, batch: Batch) -> Tensor:
        """Compute the margin of each question, fp32 [reads]."""
        mask, attend = (self._sparse(batch), _flex) if self._fast else (dense(batch), _dense)
        states = self.network.hidden(
            batch.ids, batch.positions, mask, attend, self._dtype, self._layer
        )
        return self.network.margins(states.flatten(0, 1)[batch.reads], YES, NO)

    def _sparse(self, batch: Batch) -> Any:
        group, part = batch.group, batch.part

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            theirs = part[row, key]
            same = group[row, query] == group[row, key]
            return (key <= query) & same & ((theirs == 0) | (theirs == part[row, query]))

        rows, length = batch.ids.shape
        return create_block_mask(seen, rows, None, length, length, device=self.device)


def dense(batch: Batch) -> Tensor:
    """Tell which keys a query sees, bool [rows, 1, length, length]."""
    at = torch.arange(batch.ids.shape[1])
    theirs, mine = batch.part[:, None, :], batch.part[:, :, None]
    same = batch.group[:, None, :] == batch.group[:, :, None]
    seen: Tensor = (at <= at[:, None]) & same & ((theirs == 0) | (theirs == mine))
    return seen[:, None]


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    found: Tensor = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    return found


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def rate(progress: float, peak: float) -> float:
    """Give the learning rate: 3 % of the way up, then down a cosine."""
    if progress < 0.03:
        return peak * (progress / 0.03 + 0.02)
    return peak * (0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - 0.03) / 0.97)))


def train(
    machine: Machine,
    stream: Iterator[Batch],
    out: Path,
    *,
    steps: int,
    seconds: float,
    peak: float,
) -> None:
    """Train for so many steps, or for so many seconds if that is not 0."""
    optimizer = torch.optim.AdamW(
        parameters(machine.network), lr=peak, betas=(0.9, 0.98), weight_decay=0.0,
        fused=machine.device.type == "cuda",
    )  # fmt: skip
    step, spent = _resume(machine.network, optimizer, out)
    begun: float | None = None
    saved, losses, tokens = time.monotonic(), [], 0
    while True:
        progress = spent / seconds if seconds else step / steps
        if progress >= 1.0:
            break
        batch = next(stream).to(machine.device)
        loss = F.binary_cross_entropy_with_logits(
            machine.margins(batch), batch.target, batch.weight / batch.weight.sum(), reduction="sum"
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters(machine.network), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, peak)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        tokens += batch.ids.numel()
        step += 1
        if step % 50 == 0 or step < 3:
            mean = torch.stack(losses).mean().item()  # waits for the device
            if begun is None:
                # The first steps compile, which says nothing of the speed.
                begun, tokens = time.monotonic() - spent, 0
            spent = time.monotonic() - begun
            print(
                f"step {step}  loss {mean:.4f}  {spent:.0f} s  "
                f"{tokens / max(1e-3, time.monotonic() - begun):,.0f} tokens/s", flush=True
            )  # fmt: skip
            losses = []
            if time.monotonic() - saved > 60:
                _save(machine.network, optimizer, out, step, spent)
                saved = time.monotonic()
        elif begun is not None:
            spent = time.monotonic() - begun
    _save(machine.network, optimizer, out, step, spent)


def _resume(network: Network, optimizer: torch.optim.Optimizer, out: Path) -> tuple[int, float]:
    kept = out / "state.pt"
    if not kept.exists():
        return 0, 0.0
    state = torch.load(kept, map_location=network.norm.device, weights_only=True)
    network.load_state_dict(state["network"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    print(f"going on at step {state['step']}", flush=True)
    return int(state["step"]), float(state["spent"])


def _save(
    network: Network, optimizer: torch.optim.Optimizer, out: Path, step: int, spent: float
) -> None:
    new = out / "state.new"
    torch.save(
        {
            "network": {n: p for n, p in network.named_parameters() if p.requires_grad},
            "optimizer": optimizer.state_dict(),
            "step": step,
            "spent": spent,
        },
        new,
    )
    new.replace(out / "state.pt")


@torch.no_grad()
def measure(machine: Machine, questions: Questions, rows: int, length: int) -> NDArray[np.float32]:
    """Compute the margins of all questions, in order."""
    sizes = np.diff(questions.trunk_starts)
    order = np.argsort(-sizes, kind="stable")
    found = np.zeros(len(questions.asked), np.float32)
    for batch in batches(questions, order, rows, length):
        margins = machine.margins(batch.to(machine.device)).cpu().numpy()
        starts, ends = questions.asked_starts[batch.texts], questions.asked_starts[1:][batch.texts]
        at = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
        found[at] = margins
    return found


def main() -> None:
    """Train, and measure files of questions if some are given."""
    parser = argparse.ArgumentParser(prog="python -m recipes.small.train", description=__doc__)
    parser.add_argument("--questions", type=Path, required=True, help="what `prepare` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--measure", type=Path, nargs="*", default=[], help="margins of these, too")
    parser.add_argument("--steps", type=int, default=3850)
    parser.add_argument("--seconds", type=float, default=0.0, help="instead of --steps")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--keep", type=float, default=0.7, help="share of what was learnt")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.set_float32_matmul_precision("high")
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = Path(str(files("shieldgate") / "small"))
    config = json.loads((small / "config.json").read_bytes())
    machine = Machine(from_gguf(base_file(small), config, RANK), device)
    stream = Stream(Questions.load(given.questions), given.seed, given.rows, given.length)
    loader: DataLoader[Batch] = DataLoader(
        stream, batch_size=None, num_workers=given.workers, pin_memory=False,
        prefetch_factor=4 if given.workers else None,
    )  # fmt: skip
    train(
        machine, iter(loader), given.out, steps=given.steps, seconds=given.seconds, peak=given.rate
    )
    machine.network.shrink(given.keep)
    save_file(machine.network.adapter(), given.out / ADAPTER)
    for path in given.measure:
        began = time.monotonic()
        found = measure(machine, Questions.load(path), given.rows, given.length)
        np.save(given.out / f"{path.stem}.margins.npy", found)
        print(f"{path.stem}: {len(found):,} margins, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
