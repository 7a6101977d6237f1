"""Wire types of `/v1/chat/completions` and `/v1/completions`, as far as they must be understood.

Requests and replies stay the JSON objects that they came as, because unknown fields pass through
untouched. What is declared here is a view of them.
"""

from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from shieldgate.openai.text import Text

# The data of the event that ends a stream.
DONE = "[DONE]"


def writable(value: Any) -> Any:
    """Give back a value that can be written as JSON; a validator."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise PydanticCustomError(
            "unwritable",
            "The body holds half of a surrogate pair, an integer of more than 64 bits, "
            "or more than 250 levels",
        ) from None
    return value


class Screening(BaseModel):
    """What a caller asks to be done with one direction; `score` reports, `block` also stops."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mode: Literal["score", "block"]


class ScreeningPolicy(BaseModel):
    """Both directions; a direction that is left out is judged only as the profile demands."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    input: Screening | None = None
    output: Screening | None = None


class InlineModeration(BaseModel):
    """The request field `moderation`; `model` selects a profile where it names one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Text = Field(max_length=200)
    policy: ScreeningPolicy | None = None


class StreamOptions(BaseModel):
    """The request field `stream_options`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    include_usage: bool | None = None


class WritableRequest(BaseModel):
    """A body that can be written as JSON again, and so be read by a tokenizer."""

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, body: Any) -> Any:
        return writable(body)


class ScreenedRequest(WritableRequest):
    """What all routes to a model share; fields that are not declared are kept as they came."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    moderation: InlineModeration | None = None

    def for_upstream(self) -> dict[str, Any]:
        """Give the body as it came, without what is meant for us (`moderation`)."""
        # Not model_dump, which would copy all that is in it.
        given = self.model_fields_set - {"moderation"}
        return {name: value for name, value in self if name in given}


class StreamedRequest(ScreenedRequest):
    """What those share whose answers may be streamed as OpenAI's are."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def for_upstream(self) -> dict[str, Any]:
        """Give the body as it came, without what is meant for us (`moderation`)."""
        body = super().for_upstream()
        if self.stream_options is not None:
            body["stream_options"] = self.stream_options.model_dump(exclude_unset=True)
        return body


class AnyCompletionRequest(StreamedRequest):
    """What both routes of completions share."""

    n: int | None = Field(None, ge=1, le=128)


# A megabyte of empty messages would keep everybody waiting while they are walked through.
_MOST_ITEMS = 10_000


class ChatRequest(AnyCompletionRequest):
    """A chat; `messages` are read one by one, whatever they hold."""

    messages: list[Any] = Field(
        max_length=_MOST_ITEMS, examples=[[{"role": "user", "content": "How do I bake bread?"}]]
    )


class CompletionRequest(AnyCompletionRequest):
    """A text to be continued: a string, a list of them, or tokens (which can't be screened)."""

    prompt: str | list[Any] | None = Field(None, examples=["To bake bread, first"])

    @field_validator("prompt")
    @classmethod
    def _can_be_walked_through(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and len(prompt) > _MOST_ITEMS and type(prompt[0]) is not int:
            raise PydanticCustomError(
                "too_long", "A request holds at most {most} prompts", {"most": _MOST_ITEMS}
            )
        return prompt
