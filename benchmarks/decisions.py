"""What 128 questions about one text cost in one request, and in as many as there are questions."""

import argparse
from functools import partial
from itertools import product

from rich.console import Console
from rich.table import Table

from benchmarks.timing import fastest
from shieldgate.decisions.questions import Question, ask
from shieldgate.policy import Policy, load_book
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.types import Exchange

TOPICS = "bread rye ovens rivers trains money maths cats dogs ships stars wood stone glass rain sea"
MANNERS = "kind crude false old new sad proud rude"
SENTENCE = "How long do I bake a loaf of bread, and at which temperature? "
TEXTS = (SENTENCE, SENTENCE * 20)


def questions() -> tuple[Policy, ...]:
    """128 questions that are no policies of the book."""
    book = load_book()
    asked = [
        Question("", "predicate", None, f"The text speaks of {topic} in a {manner} way.")
        for topic, manner in product(TOPICS.split(), MANNERS.split())
    ]
    return ask(asked, book, book.profile("default")).own


def score(engine: PackedEngine, text: str, requests: list[tuple[Policy, ...]]) -> list[float]:
    """Score each request by itself."""
    margins = []
    for policies in requests:
        prepared = engine.prepare(Exchange(text), policies)
        margins += [s.margin for s in prepared.scores(engine.forward(prepared.work))]
    return margins


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each text")
    arguments = parser.parse_args()
    engine = load_engine(arguments.model, device="cpu")
    asked = questions()
    ways = {"one request": [asked], "a request each": [(policy,) for policy in asked]}
    table = Table("characters", "asked in", "seconds", title=engine.identity.name)
    for text in TEXTS:
        found = [score(engine, text, requests) for requests in ways.values()]
        difference = max(abs(a - b) for a, b in zip(*found, strict=True))
        runs = {name: partial(score, engine, text, way) for name, way in ways.items()}
        for name, seconds in fastest(runs, arguments.seconds).items():
            table.add_row(f"{len(text):,}", name, f"{seconds:.3f}")
        table.caption = f"The margins differ by at most {difference:.1e}."
    Console().print(table)


if __name__ == "__main__":
    main()
