"""A tokenizer's own chat template beside ours."""

from collections.abc import Callable
from dataclasses import replace

from shieldgate.prompt.template import Template
from shieldgate.types import Exchange


def adopt(rendered: Callable[[Exchange, str], str], ours: Template) -> tuple[Template, str | None]:
    """Compare a tokenizer's own chat template with `ours`, and take its own where they differ.

    `rendered(exchange, guideline)` is the tokenizer's rendering. Returns the template to use and,
    if it isn't ours, a sentence that names the first difference.
    """
    prompt, response, guideline = (
        "\u2983prompt\u2984",
        "\u2983response\u2984",
        "\u2983guideline\u2984",
    )

    def source(exchange: Exchange) -> str:
        text = rendered(exchange, guideline)
        for mark in (prompt, response, guideline):
            text = text.replace(mark, "{" + mark[1:-1] + "}")
        return text

    padded = rendered(Exchange(f"  {prompt}  "), guideline)
    theirs = replace(
        ours,
        name=f"{ours.name} (the tokenizer's own)",
        for_prompt=source(Exchange(prompt)),
        for_response=source(Exchange(prompt, response)),
        strip=f"  {prompt}  " not in padded,
    )
    for text, fields in (
        (theirs.for_prompt, ("{prompt}", "{guideline}")),
        (theirs.for_response or "", ("{prompt}", "{response}", "{guideline}")),
    ):
        for field in fields:
            if field not in text:
                return ours, (
                    f"The tokenizer's chat template leaves the {field[1:-1]} out, so it can't be "
                    "used. Ours is."
                )
    pairs = (
        ("prompt", ours.for_prompt, theirs.for_prompt),
        ("response", ours.for_response or "", theirs.for_response or ""),
    )
    for direction, a, b in pairs:
        if a != b:
            at = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)),
            )
            return theirs, (
                f"The tokenizer's chat template differs from {ours.name!r} when judging a "
                f"{direction}, first at character {at}: {b[at : at + 30]!r} instead of "
                f"{a[at : at + 30]!r}. The tokenizer's own text is used."
            )
    if theirs.strip != ours.strip:
        return theirs, (
            "The tokenizer's chat template strips white space around the content and "
            f"{ours.name!r} does not. The tokenizer's own rule is used."
        )
    return ours, None
