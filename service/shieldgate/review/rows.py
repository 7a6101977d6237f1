"""Labelled rows as `evaluate`, `calibrate` and `tune` read them."""

import json
from collections.abc import Mapping
from typing import Any

from shieldgate.review.candidates import Candidate
from shieldgate.types import Label

Row = Mapping[str, Any]


def labelled_row(candidate: Candidate, labels: Mapping[str, Label], reviewed: str) -> Row:
    """Write the row of a text that was labelled at a time in ISO 8601.

    The labels that it came with count until they are asked about again.
    """
    text, chosen = candidate.text, candidate.chosen
    given = {p: label for p, label in text.labels.items() if p not in candidate.asked}
    prompt, response = writable_texts(candidate)
    return {
        "id": text.key.id,
        "prompt": prompt,
        **({} if response is None else {"response": response}),
        "labels": {**given, **labels} if labels else {},
        "weight": chosen.weight,
        "chosen": chosen.why,
        "source": text.key.source,
        **({} if text.key.row is None else {"row": text.key.row}),
        **text.about,
        "reviewed": reviewed,
    }


def line(row: Row) -> bytes:
    """Write a row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def writable_texts(candidate: Candidate) -> tuple[str, str | None]:
    """Give a candidate's texts as a file may hold them."""
    response = candidate.exchange.response
    return writable(candidate.exchange.prompt), None if response is None else writable(response)


def writable(text: str) -> str:
    """Replace halves of surrogate pairs, which no file of rows may hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
