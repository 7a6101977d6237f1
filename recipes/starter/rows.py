"""Labelled rows: one JSON object a line, plain or gzipped."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shieldgate.errors import ConfigurationError
from shieldgate.types import Exchange


class Row(BaseModel):
    """One text with what is known of it.

    `labels` maps a harm to 1 or 0; a harm that is absent is unknown, which is no negative. Where
    there is no response the labels describe the prompt, otherwise the response given the prompt.
    `label_src` says where each label comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    prompt: str
    response: str | None
    labels: dict[str, Literal[0, 1]]
    harmful: Literal[0, 1]
    source: str
    label_src: dict[str, str] = Field(default_factory=dict)
    split: str = ""
    license: str = ""

    @property
    def exchange(self) -> Exchange:
        """Give the text as what is judged."""
        return Exchange(self.prompt, self.response)

    @property
    def text(self) -> str:
        """Give the text that the labels describe."""
        return self.prompt if self.response is None else self.response


def read_rows(path: Path) -> Iterator[Row]:
    """Read rows one by one; raise ConfigurationError with file and line, and never the text."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield Row.model_validate_json(line)
                except ValidationError as wrong:
                    first = wrong.errors(include_input=False, include_context=False)[0]
                    where = ".".join(map(str, first["loc"])) or "the line"
                    raise ConfigurationError(
                        f"{path}:{number}: {where}: {first['msg']}. A row needs id, prompt, "
                        "response (or null), labels, harmful and source."
                    ) from None
    except OSError as missing:
        raise ConfigurationError(
            f"{path} can't be read: {missing.strerror}. Give the folder that holds it."
        ) from missing
