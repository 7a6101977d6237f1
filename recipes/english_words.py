"""Write the words of labelled data by their frequency, as `shieldgate/english_words.txt` has them.

    python -m recipes.english_words train.jsonl.gz benign.jsonl.gz > english_words.txt

A word counts once for each text, and has to stand in 20 of them, so that none is anybody's own.
"""

import argparse
import re
import textwrap
from collections import Counter

from shieldgate.evaluation.adapters import ADAPTERS, OURS
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.sources import open_source

LEAST = 20
# Most of two letters are parts of words, or names.
LEAST_OF_TWO = 300
WORD = re.compile(r"(?<![\w'\u2019])[a-z]+(?![\w'\u2019])")


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m recipes.english_words", description=__doc__)
    parser.add_argument("data", nargs="+", help="labelled rows")
    counts: Counter[str] = Counter()
    for path in parser.parse_args().data:
        for row in Dataset(open_source(path), ADAPTERS[OURS.name]).rows():
            exchange = row.example.exchange
            counts.update({*WORD.findall(f"{exchange.prompt} {exchange.response or ''}".lower())})
    frequent = [word for word, count in sorted(counts.items(), key=rank) if count >= least(word)]
    print("\n".join(textwrap.wrap(" ".join(frequent), 99)))


def rank(counted: tuple[str, int]) -> tuple[int, str]:
    """Order by frequency, then by the alphabet."""
    word, count = counted
    return -count, word


def least(word: str) -> float:
    """Say how many texts a word has to stand in."""
    if len(word) == 1:
        return LEAST if word in "ai" else float("inf")
    return LEAST_OF_TWO if len(word) == 2 else LEAST


if __name__ == "__main__":
    main()
