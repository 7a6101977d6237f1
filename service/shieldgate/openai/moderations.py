"""Wire types of `POST /v1/moderations`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from shieldgate.openai.text import Text


class TextPart(BaseModel):
    """One part of an input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: Text


def _inputs(given: Any) -> Any:
    """Read `input` as the texts to judge, one for each result.

    A list of strings is many inputs; a list of parts is one input in several parts, as in
    OpenAI's service, so its texts are joined.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return given
    if isinstance(given, list) and all(isinstance(item, dict) for item in given):
        return ["\n".join(_text(part) for part in given)]
    raise PydanticCustomError(
        "input_type", "Give a string, a list of strings, or a list of text parts"
    )


def _text(part: dict[str, Any]) -> str:
    if part.get("type") in ("image_url", "input_image"):
        raise PydanticCustomError(
            "input_image", "Images can't be judged by this scorer; send parts of the type 'text'"
        )
    if part.keys() != {"type", "text"} or part["type"] != "text" or type(part["text"]) is not str:
        raise PydanticCustomError(
            "input_part", 'A part has the form {"type": "text", "text": "..."}'
        )
    return part["text"]


class ModerationRequest(BaseModel):
    """Texts to judge; `model` selects a profile where it names one, and is else ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Annotated[
        list[Text],
        BeforeValidator(_inputs, json_schema_input_type=Text | list[Text] | list[TextPart]),
    ] = Field(min_length=1, examples=["How do I bake a sourdough loaf?"])
    model: Annotated[Text, StringConstraints(max_length=200)] | None = Field(
        None, examples=["default"]
    )


class Moderation(BaseModel):
    """The result for one input.

    Holds OpenAI's 13 categories and, beside them, the ids of the policies that were judged.
    A category for which no policy speaks is false, 0.0, and has an empty list in
    `category_applied_input_types`. `unsupported_language` is there as a warning only: the language
    of a part of the text, as an ISO 639 code, where the scorer is not said to know it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    unsupported_language: str | None = Field(None, exclude_if=lambda language: language is None)


class ModerationReply(BaseModel):
    """One result for each input, in their order; `model` names the real scorer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    model: str
    results: list[Moderation]
