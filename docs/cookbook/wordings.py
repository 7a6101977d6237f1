"""Which wording of a policy tells your rows apart? `python wordings.py ROWS.csv LABEL WORDING...`.

ROWS.csv has a column `text`, and one named LABEL with 1 where the policy is violated and 0 where
it isn't. A wording is a statement that is true of what violates the policy.
"""

import csv
import sys
from itertools import product
from pathlib import Path

import openai


def probabilities(client: openai.OpenAI, text: str, wordings: list[str]) -> list[float]:
    """Ask all wordings about a text in one request; gives a probability for each."""
    reply = client.decisions.create(
        model="default",
        input=text,
        questions=[{"type": "predicate", "instructions": wording} for wording in wordings],
    )
    return [answer.probability for answer in reply.answers]


def ranked_well(violating: list[float], harmless: list[float]) -> float:
    """Give the share of pairs in which the violating row has the higher probability (ROC AUC)."""
    pairs = list(product(violating, harmless))
    return sum((high > low) + (high == low) / 2 for high, low in pairs) / len(pairs)


def main(path: str, label: str, *wordings: str) -> None:
    """Print how well each wording ranks, and the row on which it is most wrong."""
    client = openai.OpenAI()  # where it is, and its key, say OPENAI_BASE_URL and OPENAI_API_KEY
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    asked = [probabilities(client, row["text"], list(wordings)) for row in rows]
    for number, wording in enumerate(wordings):
        found = [
            (p[number], row[label] == "1", row["text"]) for p, row in zip(asked, rows, strict=True)
        ]
        violating = [p for p, is_violating, _ in found if is_violating]
        harmless = [p for p, is_violating, _ in found if not is_violating]
        print(f"{ranked_well(violating, harmless):.2f}  {wording}")
        print(f"      least of the violating: {min(f for f in found if f[1])[2]}")
        print(f"      most of the others:     {max(f for f in found if not f[1])[2]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
