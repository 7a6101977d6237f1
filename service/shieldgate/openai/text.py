"""The text type of every request."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def _encodable(text: str) -> str:
    # JSON can spell half of a surrogate pair, which no tokenizer and no reply can encode.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "The text holds half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
