"""Wire types of `/v1/responses`, as far as they must be understood; the rest stays as it came."""

from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from shieldgate.openai.chat import StreamedRequest
from shieldgate.openai.text import Text


class ResponsesRequest(StreamedRequest):
    """A response to be made; the items of `input` are read one by one, whatever they hold."""

    input: str | list[Any] | None = Field(
        None, max_length=10_000, examples=["How do I bake bread?"]
    )
    background: bool | None = None
    store: bool | None = None
    previous_response_id: Text | None = Field(None, max_length=200)

    @field_validator("background")
    @classmethod
    def _is_answered_here(cls, background: bool | None) -> bool | None:
        if background:
            raise PydanticCustomError(
                "background_unscreened",
                "The answer of a background response is fetched later, by a route that is not "
                "screened. Leave it out, and take `stream: true` for answers that take long",
            )
        return background
