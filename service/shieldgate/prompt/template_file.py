"""Templates by name or from a YAML file."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from shieldgate.errors import ConfigurationError
from shieldgate.prompt.published import TEMPLATES
from shieldgate.prompt.template import Template
from shieldgate.yaml_document import Document, reason, suggest


def find_template(given: str) -> Template:
    """Find a published format by its name, or read the YAML file at this path.

    Raises ConfigurationError; for a file with one line for each problem: `file:line: key: value:
    why; mend`. docs/templates.md says what a file holds.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    path = Path(given).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigurationError(
            f"There is no template {given!r}, and one of your own is a YAML file such as "
            f"my-guard.yaml; {suggest(given, TEMPLATES)}"
        )
    document = Document(path)
    document.read()
    entry = _validated(document) if document.readable else None
    if entry is None or document.report():
        raise ConfigurationError("\n".join(document.report()))
    return Template(
        name=path.name,
        for_prompt=entry.prompt,
        for_response=entry.response,
        strip=entry.strip,
        control_tokens=tuple(entry.control_tokens),
        positive=entry.positive,
        negative=entry.negative,
    )


_Text = Annotated[str, StringConstraints(min_length=1)]


class _TemplateFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: _Text
    response: _Text | None = None
    control_tokens: list[_Text] = []
    positive: _Text
    negative: _Text
    strip: bool = False


def _validated(document: Document) -> _TemplateFile | None:
    try:
        entry = _TemplateFile.model_validate(document.content)
    except ValidationError as refused:
        for error in refused.errors(include_url=False, include_input=False):
            document.refuse(error["loc"], _why(error))
        return None
    for key, text, needed in (
        ("prompt", entry.prompt, ("{prompt}",)),
        ("response", entry.response, ("{prompt}", "{response}")),
    ):
        for why in _faults(text, needed) if text else ():
            document.refuse((key,), why)
    for key in ("positive", "negative"):
        if not getattr(entry, key).strip():
            document.refuse((key,), "is blank; write the word that the model answers")
    for place, token in enumerate(entry.control_tokens):
        if "{" in token or "}" in token:
            why = "holds a brace, and braces are for fields; a control token can't have any"
            document.refuse(("control_tokens", place), why)
        if token not in entry.prompt + (entry.response or ""):
            why = "stands neither in prompt nor in response; write it there, or leave it out"
            document.refuse(("control_tokens", place), why)
    if entry.positive == entry.negative:
        document.refuse(("negative",), "is the positive answer, too; write the other one")
    return entry


def _why(error: ErrorDetails) -> str:
    match error["type"]:
        case "string_type" | "string_too_short":
            return "must be text, and not empty; write it out, in quotes if it is one word"
        case "bool_type":
            return "must be true or false, without quotes"
        case _:
            return reason(error, _TemplateFile.model_fields)


def _faults(text: str, needed: Collection[str]) -> Iterator[str]:
    fields = dict.fromkeys(re.findall(r"\{\w+\}", text))
    for field in needed:
        if field not in fields:
            yield f"has no {field}, where the text to be judged goes; add it"
    for field in fields:
        if field not in (*needed, "{guideline}"):
            yield f"nothing fills {field} in here; {suggest(field, (*needed, '{guideline}'))}"
    if text.endswith(tuple(fields)):
        yield "ends in a field, so the answer would be read behind any text; end in your own words"
    if text.endswith((" ", "\t")):
        yield "ends in a space, which tokenizers join to the answer; put it before both answers"
