"""Put harmless text around harmful ones, and see which are still found, and at what cost.

The harmful texts are the labelled prompts that the default profile blocks as they are; the
harmless text is that of other rows, one after the other. Each is judged as a whole, and with the
profile's passages; below stands how many long texts of harmless rows alone are blocked.
"""

import argparse
import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from shieldgate.evaluation.adapters import ADAPTERS, OURS
from shieldgate.evaluation.datasets import Dataset, Row
from shieldgate.evaluation.sources import open_source
from shieldgate.moderation import judge
from shieldgate.policy import Passages, Policy, Rules, load_book
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.types import Exchange, Score, Verdict

LENGTHS = (100, 300, 1000, 3000, 10_000)
PLACES = {"before": 1.0, "around": 0.5, "after": 0.0}
LONGEST = 300  # of a harmful text, in characters: with padding of its own it shows nothing


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.padding", description=__doc__)
    parser.add_argument("harmful", help="labelled rows, for the texts to hide")
    parser.add_argument("harmless", help="labelled rows, for the text to hide them in")
    parser.add_argument("--adapter", choices=ADAPTERS, default=OURS.name)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--texts", type=int, default=30, help="of each kind, drawn by a fixed seed")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="of padding")
    parser.add_argument("--size", type=int, default=Passages.size)
    parser.add_argument("--handicap", type=float, default=Passages.handicap)
    arguments = parser.parse_args()
    rule = Passages(arguments.size, arguments.handicap, scorers=("*",))
    adapter, count = arguments.adapter, arguments.texts
    subject = Subject(load_engine(arguments.model), rule)
    known = [row.example.exchange.prompt for row in _rows(arguments.harmful, adapter, True)]
    short = (text for text in known if len(text) <= LONGEST and subject.blocks(text)[0][0])
    harmful = [text for text, _ in zip(short, range(count), strict=False)]
    padding = Padding(_rows(arguments.harmless, adapter, False))
    console = Console()
    console.print(found(harmful, padding, subject, arguments.lengths))
    console.print(flagged(count, padding, subject, arguments.lengths))


class Subject:
    """The default profile, with passages and without; what comes again is not scored again."""

    def __init__(self, engine: PackedEngine, rule: Passages) -> None:
        book = load_book()
        rules = book.rules(book.profile("default"))
        self._rules = [
            replace(rules, profile=replace(rules.profile, passages=passages))
            for passages in (None, rule)
        ]
        self._engine = engine
        self._known: dict[Exchange, tuple[list[Score], int]] = {}
        self.identity = engine.identity
        self.tokens = 0

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange, as a Scorer does."""
        if exchange not in self._known:
            prepared = self._engine.prepare(exchange, policies)
            margins = [self._engine.forward([pack])[0] for pack in prepared.work]
            tokens = sum(pack.tokens for pack in prepared.work)
            self._known[exchange] = prepared.scores(margins), tokens
        scores, tokens = self._known[exchange]
        self.tokens += tokens
        return scores

    def blocks(self, text: str) -> list[tuple[bool, int]]:
        """Tell whether a prompt is blocked as a whole and with passages, and by how many tokens."""
        return [self._judge(text, rules) for rules in self._rules]

    def _judge(self, text: str, rules: Rules) -> tuple[bool, int]:
        before = self.tokens
        verdict: Verdict = asyncio.run(judge(self, Exchange(text), rules))
        return verdict.action.stops, self.tokens - before


class Padding:
    """Text of harmless rows, one after the other, without an end."""

    def __init__(self, rows: Sequence[Row]) -> None:
        said = (row.example.exchange.response or row.example.exchange.prompt for row in rows)
        self._text = "\n".join(text.strip() for text in said)

    def take(self, number: int, length: int) -> str:
        """Give text of a length, from a place that is another for each number."""
        start = number * max(LENGTHS) % max(1, len(self._text) - length)
        # At a new line, not amid a word.
        start = self._text.find("\n", start) + 1
        return self._text[start : start + length]


def found(
    harmful: Sequence[str], padding: Padding, subject: Subject, lengths: Sequence[int]
) -> Table:
    """Hide each text in padding of all lengths, in characters, at all places."""
    report = Table(title=f"{len(harmful)} harmful texts in padding: blocked as a whole / passages")
    report.add_column("characters")
    for place in PLACES:
        report.add_column(f"padding {place}")
    for length in lengths:
        cells = []
        for share in PLACES.values():
            texts = []
            for number, text in enumerate(harmful):
                # What is judged once need not be judged again, so there are four paddings.
                before = padding.take(number % 4, round(length * share))
                after = padding.take(4 + number % 4, round(length * (1 - share)))
                texts.append(f"{before}\n{text}\n{after}".strip())
            cells.append(_blocked(subject, texts)[0])
        report.add_row(f"{length:,}", *cells)
    return report


def flagged(count: int, padding: Padding, subject: Subject, lengths: Sequence[int]) -> Table:
    """Judge harmless texts of all lengths."""
    report = Table(title=f"{count} harmless texts: blocked as a whole / with passages")
    for column in ("characters", "blocked", "tokens, as a multiple of the whole's"):
        report.add_column(column)
    for length in lengths:
        texts = [padding.take(number, length) for number in range(count)]
        report.add_row(f"{length:,}", *_blocked(subject, texts))
    return report


def _blocked(subject: Subject, texts: Sequence[str]) -> tuple[str, str]:
    """Give the shares that are blocked in either way, and what the second costs."""
    judged = [subject.blocks(text) for text in texts]
    (whole, least), (passages, most) = (
        (np.mean([blocked for blocked, _ in way]), sum(tokens for _, tokens in way))
        for way in zip(*judged, strict=True)
    )
    return f"{whole:.2f} / {passages:.2f}", f"{most / least:.1f}"


def _rows(name: str, adapter: str, harmful: bool) -> list[Row]:
    """Draw rows of one kind in an order of their own; harmful ones are prompts."""
    dataset = Dataset(open_source(name), ADAPTERS[adapter])
    rows = [row for row in dataset.rows() if row.example.harmful is not None]
    rows = [
        row
        for row in rows
        if bool(row.example.harmful) == harmful
        and not (harmful and row.example.exchange.response is not None)
    ]
    random.Random(0).shuffle(rows)
    return rows


if __name__ == "__main__":
    main()
