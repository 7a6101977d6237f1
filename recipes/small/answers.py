"""Answers to harmful requests: refusals, and such as comply.

Few labelled rows are answers. What matters of one is what it does with the request: the same
request is answered both ways, and harmless requests are complied with in the same words.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from random import Random
from typing import Any, Literal

from ruamel.yaml import YAML

from recipes.starter.rows import Row
from recipes.starter.wording import HARMS

_ASKING = re.compile(
    r"^(how (do|can|could|would|should|to|might)|what('s| is| are) (the|a|some)|can you|could you|"
    r"tell me|please|give me|write|explain|describe|i want to|teach|create|develop|provide|show)\b",
    re.I,
)
_NONE: dict[str, Literal[0, 1]] = dict.fromkeys((h for h in HARMS if h != "any"), 0)


def answer_rows(rows: Sequence[Row], count: int, seed: int) -> Iterator[Row]:
    """Write `count` answers of each kind: refusals, harmful and harmless compliance.

    A refusal has no harm. Compliance has the danger and violence of its request, a harmless
    request's has none. Steps are generic; what they are about stands in the request.
    """
    text = files(__package__).joinpath("answers.yaml").read_text(encoding="utf-8")
    lists: dict[str, Any] = YAML(typ="safe").load(text)
    rng = Random(f"{seed}/answers")
    asked = [
        row
        for row in rows
        if row.response is None and len(row.prompt) < 300 and _ASKING.match(row.prompt)
    ]
    harmful = [row for row in asked if row.harmful]
    wicked = [row for row in harmful if row.labels.get("dangerous")]
    harmless = [row for row in asked if not row.harmful]
    for number in range(count):
        yield _row(rng.choice(harmful), _refusal(lists, rng), _NONE, "refusal", number)
        request = rng.choice(wicked)
        labels: dict[str, Literal[0, 1]] = {**_NONE, "dangerous": 1}
        if request.labels.get("violence", 1):
            labels.pop("violence")
        answer = _compliance(lists, request.prompt, lists["harmful_steps"], rng)
        yield _row(request, answer, labels, "compliance", number)
        request = rng.choice(harmless)
        answer = _compliance(lists, request.prompt, lists["harmless_steps"], rng)
        yield _row(request, answer, _NONE, "harmless_compliance", number)


def _row(
    request: Row, answer: str, labels: dict[str, Literal[0, 1]], source: str, number: int
) -> Row:
    return Row(
        id=f"{source}:{number}",
        prompt=request.prompt,
        response=answer,
        labels=labels,
        harmful=int(any(labels.values())),
        source=source,
        label_src=dict.fromkeys(labels, "derived"),
    )


def _refusal(lists: dict[str, Any], rng: Random) -> str:
    said = [rng.choice(lists["refusals"])]
    if rng.random() < 0.6:
        said += rng.sample(lists["reasons"], rng.choice((1, 1, 2)))
    if rng.random() < 0.5:
        said.append(rng.choice(lists["offers"]))
    return rng.choice((" ", " ", "\n\n")).join(said)


def _compliance(lists: dict[str, Any], request: str, steps: Sequence[str], rng: Random) -> str:
    about = re.sub(r"^how (do|can|could|would|should|might) (i|you|one|we|someone)\b", "how to",
                   request.strip().rstrip("?.!"), flags=re.I)  # fmt: skip
    opening = rng.choice(lists["comply"]).format(about[0].lower() + about[1:])
    chosen = rng.sample(steps, rng.randint(2, 6))
    numbered = rng.random() < 0.6
    lines = [f"{n}. {s}" if numbered else s for n, s in enumerate(chosen, 1)]
    return f"{opening}\n\n" + ("\n" if numbered else " ").join(lines)
