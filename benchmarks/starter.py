"""Time a scorer on a text of 100 tokens under four policies: alone, and many texts at once."""

import argparse
import os
from itertools import islice

import torch
from rich.console import Console

from benchmarks.subject import SENTENCE
from benchmarks.timing import fastest
from shieldgate.policy import load_book
from shieldgate.scoring.local import load_engine
from shieldgate.types import Exchange

TOKENS = 100
BATCH = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starter", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for the rounds")
    parser.add_argument("--model", default="starter", help="what --model of serve takes")
    parser.add_argument("--dtype", default="auto", help="float32 or bfloat16")
    arguments = parser.parse_args()
    engine = load_engine(arguments.model, device="cpu", dtype=arguments.dtype)
    book = load_book()
    policies = book.select(book.profile("default"))
    empty = len(engine.prepare(Exchange(""), policies).work[0].trunk)

    def trunk(words: int) -> int:
        return len(engine.prepare(Exchange(_text(words)), policies).work[0].trunk)

    words = next(n for n in range(2 * TOKENS) if trunk(n) - empty >= TOKENS)
    exchange = Exchange(_text(words))
    work = engine.prepare(exchange, policies).work
    apart = [engine.prepare(exchange, [policy]).work for policy in policies]

    def one_by_one() -> None:
        for alone in apart:
            engine.forward(alone)

    seconds = fastest(
        {
            "packed": lambda: engine.forward(work),
            "one by one": one_by_one,
            "batch": lambda: engine.forward(work * BATCH),
            "tokenising": lambda: engine.prepare(exchange, policies),
        },
        arguments.seconds,
    )
    packed, each = seconds["packed"], seconds["batch"] / BATCH
    Console(highlight=False, soft_wrap=True).print(
        f"{engine.identity.name} in {engine.identity.dtype}, a text of {TOKENS} tokens, "
        f"{len(policies)} policies, {sum(w.tokens for w in work)} tokens in one pass; "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}:\n"
        f"  {packed * 1e3:.1f} ms for one text, {seconds['one by one'] / packed:.2f}x as long when "
        f"each policy has a pass of its own;\n"
        f"  {1 / each:.0f} texts/s in passes of {BATCH}, {packed / each:.2f}x as many as one by "
        f"one; tokenising takes {seconds['tokenising'] / packed:.0%} of a pass."
    )


def _text(words: int) -> str:
    return " ".join(islice((SENTENCE + " ").split() * TOKENS, words))


if __name__ == "__main__":
    main()
