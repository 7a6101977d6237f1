"""Hold explanations to what they say: does the score hang on the words that they name?

    python -m benchmarks.explanations DATA/eval/*.jsonl.gz --rows 150

Of each file of labelled rows, texts that the default profile flags as they are, drawn by a fixed
seed, each under the policy with the highest probability. A fifth of a text's words, those that a
way of explaining names first, is left out, replaced by a harmless word, and kept alone; beside it
stands what as many words drawn at random do (the mean of several draws). Intervals are 95 %, by
bootstrap over texts, and differences are paired by text. The two ways are leaving out, which is
what is served, and gradient times input.
"""

import argparse
import asyncio
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import process_time

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from shieldgate.evaluation.adapters import ADAPTERS, OURS
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.sources import open_source
from shieldgate.explanations.explain import MOST_CHARACTERS, MOST_WORDS, TESTED, explain_whole
from shieldgate.explanations.spans import Span, only, without, words
from shieldgate.policy import Policy, Rules, decide, load_book
from shieldgate.scoring.batched import Batched
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.statistics import Estimate, Figures, Weights, bootstrap
from shieldgate.types import Exchange, Judgement

DRAWS = 5
LEAST_WORDS = 5
FILLER = "something"
LEAVING_OUT, GRADIENT, RANDOM = "leaving out", "gradient", "random"
# Whether it takes gradients.
WAYS = {LEAVING_OUT: False, GRADIENT: True}

Cut = Callable[[str, Sequence[Span]], str]


def replaced(text: str, spans: Sequence[Span]) -> str:
    """Put a harmless word in the place of each span."""
    for start, end in sorted(spans, reverse=True):
        text = text[:start] + FILLER + text[end:]
    return text


CUTS: Mapping[str, Cut] = {"left out": without, "replaced": replaced, "kept alone": only}


@dataclass(frozen=True)
class Measured:
    """One text: its margin, the margins of what is left of it, and what it took.

    `margins` is keyed by (cut, way), RANDOM being the mean of its draws; `overlap` is the share of
    words that both ways name, `chance` what two random draws share; `seconds` of the processor have
    the ways, and "score" for the plain score under the profile's policies.
    """

    margin: float
    threshold: float
    margins: Mapping[tuple[str, str], float]
    overlap: float
    chance: float
    seconds: Mapping[str, float]


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explanations", description=__doc__)
    parser.add_argument("files", nargs="+", help="labelled rows")
    parser.add_argument("--adapter", choices=ADAPTERS, default=OURS.name)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=150, help="flagged texts of each file")
    arguments = parser.parse_args()
    engine = load_engine(arguments.model, dtype=arguments.dtype)
    found = asyncio.run(_measure(engine, arguments.files, arguments.adapter, arguments.rows))
    console = Console(highlight=False, width=160)
    console.print(f"{engine.identity.name}, {engine.identity.dtype}")
    for table in (faithfulness(found), agreement(found)):
        console.print(table)


async def _measure(
    engine: PackedEngine, files: Sequence[str], adapter: str, most: int
) -> dict[str, list[Measured]]:
    book = load_book()
    rules = book.rules(book.profile("default"))
    found: dict[str, list[Measured]] = {}
    async with Batched(engine, max_batch_tokens=4096, max_waiting=sys.maxsize) as scorer:
        for file in files:
            subject = Subject(scorer, engine, rules)
            measured = found.setdefault(file.rpartition("/")[2].partition(".")[0], [])
            rows = [
                row.example.exchange for row in Dataset(open_source(file), ADAPTERS[adapter]).rows()
            ]
            random.Random(0).shuffle(rows)
            for number, exchange in enumerate(rows):
                if len(measured) == most:
                    break
                if (one := await subject.measure(exchange, random.Random(number))) is not None:
                    measured.append(one)
            print(f"{file}: {len(measured)} texts", file=sys.stderr, flush=True)
    return found


@dataclass(frozen=True)
class Subject:
    """A scorer, with the engine behind it, and by what it judges."""

    scorer: Batched
    engine: PackedEngine
    rules: Rules

    async def measure(self, exchange: Exchange, draw: random.Random) -> Measured | None:
        """Measure one text; None for one that isn't flagged, or is too short or too long."""
        text = exchange.judged
        parts = words(text)
        if len(parts) < LEAST_WORDS or len(text) > MOST_CHARACTERS:
            return None
        began = process_time()
        worst = await self._worst(exchange)
        seconds = {"score": process_time() - began}
        if not worst.violated:
            return None
        policy = next(p for p in self.rules.policies if p.id == worst.policy)
        count = math.ceil(TESTED * min(len(parts), MOST_WORDS))
        named: dict[str, list[list[Span]]] = {
            RANDOM: [draw.sample(parts, count) for _ in range(DRAWS)]
        }
        for way, gradients in WAYS.items():
            began = process_time()
            found = await explain_whole(
                self.scorer, exchange, [policy], self.engine.gradients if gradients else None
            )
            seconds[way] = process_time() - began
            ranked = sorted(found[policy.id].words, key=lambda word: word.lost, reverse=True)
            named[way] = [[(word.start, word.end) for word in ranked[:count]]]
        margins = {
            (cut, way): await self._margin(exchange, policy, [CUTS[cut](text, s) for s in spans])
            for cut in CUTS
            for way, spans in named.items()
        }
        both = set(named[LEAVING_OUT][0]) & set(named[GRADIENT][0])
        return Measured(
            margin=worst.score.margin,
            threshold=self._threshold(policy, exchange, worst),
            margins=margins,
            overlap=len(both) / count,
            chance=count / len(parts),
            seconds=seconds,
        )

    async def _worst(self, exchange: Exchange) -> Judgement:
        scores = await self.scorer.score(exchange, self.rules.policies)
        pairs = list(zip(self.rules.policies, scores, strict=True))
        name = self.scorer.identity.name
        verdict = decide(self.rules.profile, pairs, exchange.direction, name)
        return max(verdict.judgements, key=lambda j: (j.violated, j.probability))

    def _threshold(self, policy: Policy, exchange: Exchange, judged: Judgement) -> float:
        """Give the threshold in force as a margin."""
        fitted = policy.calibration(self.scorer.identity.name, exchange.direction)
        if fitted is None:
            return math.log(judged.threshold / (1 - judged.threshold))
        return fitted.margin(judged.threshold)

    async def _margin(self, exchange: Exchange, policy: Policy, texts: Sequence[str]) -> float:
        """Give the mean margin of several texts in the place of the one under judgement."""
        asked = (self.scorer.score(exchange.judging(text), [policy]) for text in texts)
        scores = await asyncio.gather(*asked)
        return float(np.mean([score.margin for [score] in scores]))


def faithfulness(found: Mapping[str, Sequence[Measured]]) -> Table:
    """Say what margins lose, beside what they lose by chance."""
    table = _table(
        "What the margin loses, in logits: by the words named / by words at random, and the "
        "difference; and the share of texts that are flagged no longer",
        "file", "texts", "cut",
        *(f"{way}{what}" for way in WAYS for what in ("", ": flagged no longer")),
    )  # fmt: skip
    for file, measured in _with_all(found).items():
        for cut in CUTS:
            cells = [c for way in WAYS for c in _cells(measured, cut, way)]
            table.add_row(file, f"{len(measured)}", cut, *cells)
    return table


def _cells(measured: Sequence[Measured], cut: str, way: str) -> tuple[str, str]:
    before = np.array([m.margin for m in measured])
    named, chance = (np.array([m.margins[cut, w] for m in measured]) for w in (way, RANDOM))
    ends = np.array([m.threshold for m in measured])
    estimates = _means(
        {
            "named": before - named,
            "chance": before - chance,
            "more": chance - named,
            "unflagged": (named < ends).astype(float),
        }
    )
    return (
        f"{estimates['named'].value:.2f} / {estimates['chance'].value:.2f}: "
        f"{_shown(estimates['more'], '+.2f')}",
        f"{_shown(estimates['unflagged'], '.2f')}",
    )


def agreement(found: Mapping[str, Sequence[Measured]]) -> Table:
    """Say how far the ways agree, and what they cost beside the plain score."""
    table = _table(
        "How far the two agree, and what they cost",
        "file", "words both name", "by chance", "plain score, ms",
        *(f"{way}, times that" for way in WAYS),
    )  # fmt: skip
    for file, measured in _with_all(found).items():
        estimates = _means(
            {name: np.array([getattr(m, name) for m in measured]) for name in ("overlap", "chance")}
        )
        seconds = {w: sum(m.seconds[w] for m in measured) for w in ("score", *WAYS)}
        table.add_row(
            file,
            _shown(estimates["overlap"], ".2f"),
            f"{estimates['chance'].value:.2f}",
            f"{1000 * seconds['score'] / len(measured):.1f}",
            *(f"{seconds[way] / seconds['score']:.1f}" for way in WAYS),
        )
    return table


def _with_all(found: Mapping[str, Sequence[Measured]]) -> dict[str, Sequence[Measured]]:
    kept = {file: measured for file, measured in found.items() if measured}
    return {**kept, "all": [m for measured in kept.values() for m in measured]}


def _means(columns: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    rows = len(next(iter(columns.values())))

    def figures(weights: Weights | None) -> Figures:
        return {name: float(np.average(c, weights=weights)) for name, c in columns.items()}

    return bootstrap(figures, rows)


def _shown(estimate: Estimate, form: str) -> str:
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


if __name__ == "__main__":
    main()
