"""Wire types of `/v1/responses`, as far as they must be understood; the rest stays as it came."""

from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from shieldgate.openai.chat import StreamedRequest
from shieldgate.openai.text import Text

_MOST_ITEMS = 10_000


class ResponsesRequest(StreamedRequest):
    """A response to be made; the items of `input` are read one by one, whatever they hold."""

    input: str | list[Any] | None = Field(None, examples=["How do I bake bread?"])
    background: bool | None = None
    store: bool | None = None
    previous_response_id: Text | None = Field(None, max_length=200)

    @field_validator("input")
    @classmethod
    def _has_few_items(cls, input: str | list[Any] | None) -> str | list[Any] | None:
        # A megabyte of empty items would keep everybody waiting while they are walked through.
        if isinstance(input, list) and len(input) > _MOST_ITEMS:
            raise PydanticCustomError("too_long", f"A request holds at most {_MOST_ITEMS} items")
        return input

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
