"""OpenAI's error envelope: `{"error": {"message", "type", "param", "code"}}`."""

import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class ErrorBody(BaseModel):
    """What went wrong; `message` is always a string, because clients concatenate it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(BaseModel):
    """The body of every reply that is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error: ErrorBody


def field_path(place: Iterable[int | str]) -> str | None:
    """Name a place in a request's body; a key that can't be one of ours may be user text."""
    words = (str(key) for key in place)
    named = (w if re.fullmatch(r"[A-Za-z0-9_]{1,40}", w) else "(a key)" for w in words)
    return ".".join(named) or None
