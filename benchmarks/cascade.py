"""Time a cascade against the scorer that it ends with alone, on the same rows.

    python -m benchmarks.cascade rows.jsonl --cascade cascade.yaml --model small [--skip 5888]

`shieldgate calibrate --cascade` writes the file (docs/cascade.md); take rows that it did not
see. Both score short heats of the rows in turn, so that a busy machine slows both; each begins
every other heat. The time is that from rows to margins, `--at-once` texts at a time, as `serve`
has them under load.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from shieldgate.evaluation.adapters import ADAPTERS, OURS
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import Policy, decide, load_book
from shieldgate.scoring import Scorer
from shieldgate.scoring.cascade import Cascade, load_cascade
from shieldgate.scoring.factory import open_scorer
from shieldgate.settings import ScoringSettings
from shieldgate.types import Exchange, Score

HEAT = 8  # texts
RESAMPLES = 2000


class Shares:
    """Counts how many questions the first scorer answered; a CascadeObserver."""

    def __init__(self) -> None:
        self.texts = self.asked_texts = self.questions = self.asked = 0

    def cascaded(self, *, sure: int, asked: int) -> None:
        self.texts += 1
        self.asked_texts += asked > 0
        self.questions += sure + asked
        self.asked += asked


def main() -> None:
    """Race both on the rows and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cascade",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="rows, as evaluate reads them")
    parser.add_argument("--cascade", type=Path, required=True, help="what calibrate wrote")
    parser.add_argument("--model", default="small", help="the scorer that decides")
    parser.add_argument("--profile", default="default", help="whose policies are asked")
    parser.add_argument("--adapter", choices=ADAPTERS, default=OURS.name)
    parser.add_argument("--rows", type=int, default=96, help="rows to race on")
    parser.add_argument("--skip", type=int, default=0, help="rows at the beginning to leave out")
    parser.add_argument("--at-once", type=int, default=8, help="texts that are scored at a time")
    arguments = parser.parse_args()
    asyncio.run(_race(arguments, Console(highlight=False, soft_wrap=True)))


async def _race(arguments: argparse.Namespace, console: Console) -> None:
    dataset = Dataset(open_source(arguments.data), ADAPTERS[arguments.adapter])
    rows = islice(dataset.rows(), arguments.skip, arguments.skip + arguments.rows)
    exchanges = [row.example.exchange for row in rows]
    book = load_book()
    profile = book.profile(arguments.profile)
    policies = book.select(profile)
    file = load_cascade(arguments.cascade)
    settings = ScoringSettings(model=arguments.model)
    limits = {"max_batch_tokens": 16_384, "max_waiting": 256, "max_pass_seconds": 0.25}
    shares = Shares()
    async with (
        open_scorer(file.first.settings(settings), **limits) as first,
        open_scorer(settings, **limits) as second,
    ):
        both = Cascade(first, second, file, shares)
        for scorer in (first, second):
            await _score(scorer, exchanges[:2], policies, 2)
        found: list[tuple[float, float]] = []
        changed = 0
        for number in range(0, len(exchanges), HEAT):
            heat = exchanges[number : number + HEAT]
            seconds, scores = {}, {}
            for scorer in (second, both) if number // HEAT % 2 else (both, second):
                began = time.process_time()
                scores[scorer] = await _score(scorer, heat, policies, arguments.at_once)
                seconds[scorer] = time.process_time() - began
            found.append((seconds[second], seconds[both]))
            decisions = (
                [
                    judged.violated
                    for exchange, row in zip(heat, scores[scorer], strict=True)
                    for judged in decide(
                        profile,
                        list(zip(policies, row, strict=True)),
                        exchange.direction,
                        scorer.identity.name,
                    ).judgements
                ]
                for scorer in (second, both)
            )
            changed += sum(a != b for a, b in zip(*decisions, strict=True))
    alone, together = (sum(column) for column in zip(*found, strict=True))
    low, high = _interval(found)
    console.print(
        f"{len(exchanges)} rows of {dataset.source.name} from row {arguments.skip} on, "
        f"{len(policies)} policies, {torch.get_num_threads()} thread(s), processor time.\n"
        f"{second.identity.name} alone: {len(exchanges) / alone:.2f} texts/s. "
        f"Behind {first.identity.name}: {len(exchanges) / together:.2f} texts/s, "
        f"{alone / together:.2f} times as many (95 %: {low:.2f} to {high:.2f}).\n"
        f"{shares.asked_texts / shares.texts:.0%} of the texts and "
        f"{shares.asked / shares.questions:.0%} of the questions went on; "
        f"{changed} of {shares.questions} decisions changed."
    )


async def _score(
    scorer: Scorer, exchanges: Sequence[Exchange], policies: Sequence[Policy], at_once: int
) -> list[list[Score]]:
    places = asyncio.Semaphore(at_once)

    async def score(exchange: Exchange) -> list[Score]:
        async with places:
            return await scorer.score(exchange, policies)

    return await asyncio.gather(*map(score, exchanges))


def _interval(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Give the 95 % interval of the ratio of sums, by the bootstrap over heats."""
    draw = random.Random(0)
    ratios = []
    for _ in range(RESAMPLES):
        alone, both = zip(*draw.choices(found, k=len(found)), strict=True)
        ratios.append(sum(alone) / sum(both))
    ratios.sort()
    return ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES)]


if __name__ == "__main__":
    main()
