"""Wire types of `/v1/chat/completions` and `/v1/completions`, as far as they must be understood.

Requests and replies stay the JSON objects that they came as, because unknown fields pass through
untouched. What is declared here is a view of them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from shieldgate.openai.text import Text


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


class _Request(BaseModel):
    """What both routes share; fields that are not declared are kept as they came."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    moderation: InlineModeration | None = None

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, body: Any) -> Any:
        try:
            orjson.dumps(body)
        except orjson.JSONEncodeError:
            raise PydanticCustomError(
                "unwritable",
                "The body holds half of a surrogate pair, an integer of more than 64 bits, "
                "or more than 250 levels",
            ) from None
        return body

    def for_upstream(self) -> dict[str, Any]:
        """Give the body as it came, without what is meant for us (`moderation`)."""
        # Not model_dump, which would copy all that is in it.
        given = self.model_fields_set - {"moderation"}
        body = {name: value for name, value in self if name in given}
        if self.stream_options is not None:
            body["stream_options"] = self.stream_options.model_dump(exclude_unset=True)
        return body


class ChatRequest(_Request):
    """A chat; `messages` are read by `contents`, one by one, whatever they hold."""

    # A megabyte of empty messages would keep everybody waiting while they are walked through.
    messages: list[Any] = Field(
        max_length=10_000, examples=[[{"role": "user", "content": "How do I bake bread?"}]]
    )


class CompletionRequest(_Request):
    """A text to be continued: a string, a list of them, or tokens (which can't be screened)."""

    prompt: str | list[Any] | None = Field(None, examples=["To bake bread, first"])


@dataclass(frozen=True, slots=True)
class Strand:
    """One text of a message and the field it stands in, such as `content[1].text`.

    The field tells texts apart. It is not for people: an unknown field's name may be any text.
    """

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a message says: its texts in order, and the fields that hold anything else.

    In `unscreenable`, an empty name stands for the message as a whole.
    """

    strands: tuple[Strand, ...]
    unscreenable: tuple[str, ...]

    @property
    def text(self) -> str:
        """Join the texts, one to a line."""
        return "\n".join(strand.text for strand in self.strands)


def contents(message: Any) -> Contents:
    """Read a message of a request.

    Every string counts as text, in known and in unknown fields alike, and so does every name of a
    field that is not the protocol's. Exceptions are roles, types and ids that look like such, and
    marks for the server's cache. What is no text is unscreenable: content parts of other types,
    audio, what is nested too deeply, and a message that is no object.
    """
    return _contents(_message(message, marks=True))


def material(value: Any) -> Contents:
    """Read what stands beside the messages of a request: every string, and every name in it."""
    return _contents(_any(value, "", 0, ours=False))


def answer(choice: Mapping[str, Any], around: Mapping[str, Any] | None = None) -> Contents:
    """Read a choice of a reply or of a stream: its message or delta, and what stands beside it.

    `around` is the reply or the chunk that the choice stands in; of that, all counts that is not
    in its `envelope`. The tokens of `logprobs` are texts of their own, each rank of alternatives
    one. Left out is what tells how the answer came about, where it consists of words.

    The strands of a delta bear the `index` that a tool call brings along, not its place in the
    list, so that the pieces of one text have one field.
    """
    found: list[tuple[str, str | None]] = []
    rest = dict(choice)
    for key in ("message", "delta"):
        if said := rest.pop(key, None):
            found += _message(said, marks=False)
    tokens: dict[str, list[str]] = {}
    for field, text in _tokens(rest.pop("logprobs", None), "logprobs", 0, 0):
        if text is None:
            found.append((field, None))
        else:
            tokens.setdefault(field, []).append(text)
    found += ((field, "".join(texts)) for field, texts in tokens.items())
    if rest.get("token_ids"):
        found.append(("token_ids", None))
    rest = {k: v for k, v in rest.items() if not (k in _ABOUT_THE_ANSWER and _words_only(v))}
    found += _message(rest, marks=False)
    if around is not None:
        passed = {"choices", *envelope(around)}
        beside = {key: item for key, item in around.items() if key not in passed}
        found += _object(beside, "around", 0, ours=True)
    return _contents(found)


def envelope(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Give what stands around the choices of a reply or chunk and needs no judging.

    That is what holds no text, and of the fields that every server sends those made of words.
    """
    return {
        key: item
        for key, item in reply.items()
        if key != "choices"
        and (_words_only(item) if key in _ENVELOPE else not any(_any(item, "", 0, ours=False)))
    }


# A field and its text, or None in place of what can't be screened.
_Found = Iterator[tuple[str, str | None]]

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "thinking", "reasoning")
_NAMING = {"role", "type", "id", "tool_call_id"}
_WORD = re.compile(r"[A-Za-z0-9_.:/@+-]{0,64}")
_FOR_THE_SERVER = ("cache_control", "prompt_cache_breakpoint")
_ABOUT_THE_ANSWER = {
    "index",
    "finish_reason",
    "stop_reason",
    "content_filter_results",
    "content_filter_offsets",
}
_ENVELOPE = {
    "id",
    "object",
    "created",
    "model",
    "system_fingerprint",
    "service_tier",
    "usage",
    "prompt_filter_results",
    "obfuscation",
}
# Names of fields that are the protocol's; any other name may be somebody's words.
_PROTOCOL = {
    *("role", "content", "name", "refusal", "tool_calls", "function_call", "tool_call_id"),
    *("function", "custom", "arguments", "input", "audio", "transcript", "annotations"),
    *("reasoning", "reasoning_content", "reasoning_details", "thinking", "text", "type", "id"),
    *("index", "url_citation", "title", "url", "start_index", "end_index", "format", "signature"),
    *("finish_reason", "stop_reason", "model", "object", "usage", "citations"),
}
_FREE = {"arguments", "input"}
_TOKENS = {"content", "refusal", "token", "logprob", "bytes", "top_logprobs"}
_TOKENS |= {"tokens", "token_logprobs", "text_offset"}
_MOST_LEVELS = 100


def _contents(found: Iterable[tuple[str, str | None]]) -> Contents:
    found = list(found)
    return Contents(
        strands=tuple(Strand(field, text) for field, text in found if text),
        unscreenable=tuple(field for field, text in found if text is None),
    )


def _message(message: Any, *, marks: bool) -> _Found:
    if not isinstance(message, dict):
        yield "", None
        return
    rest = _unmarked(message) if marks else dict(message)
    if isinstance(rest.get("content"), list):
        for place, part in enumerate(rest.pop("content")):
            yield from _part(part, f"content[{place}]", marks)
    elif isinstance(rest.get("content"), dict):
        yield "content", None
    audio = rest.pop("audio", None)
    if audio is not None:
        yield "audio", None
    if isinstance(audio, dict):
        yield from _any(audio.get("transcript"), "audio.transcript", 0, ours=True)
    yield from _object(rest, "", 0, ours=True)


def _part(part: Any, field: str, marks: bool) -> _Found:
    if isinstance(part, str):
        yield field, part
    elif isinstance(part, dict) and part.get("type") in _TEXT_PARTS:
        yield from _object(_unmarked(part) if marks else part, field, 0, ours=True)
    else:
        yield field, None


def _unmarked(said: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in said.items() if key not in _FOR_THE_SERVER}


def _object(value: dict[str, Any], field: str, level: int, *, ours: bool) -> _Found:
    """Walk an object; `ours` says that its fields are the protocol's, as far as it has them."""
    for key, item in value.items():
        at = f"{field}.{key}" if field else key
        known = ours and key in _PROTOCOL
        if not known:
            yield f"{at}:", key
        names = ours and key in _NAMING and isinstance(item, str) and _WORD.fullmatch(item)
        if not names:
            yield from _any(item, at, level + 1, ours=known and key not in _FREE)


def _any(value: Any, field: str, level: int, *, ours: bool) -> _Found:
    if level > _MOST_LEVELS:
        yield "", None
    elif isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        yield from _object(value, field, level, ours=ours)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if not isinstance(item, (str, dict, list)):
                continue
            index = item.get("index") if isinstance(item, dict) else None
            at = index if isinstance(index, int) else place
            yield from _any(item, f"{field}[{at}]", level + 1, ours=ours)


def _tokens(value: Any, field: str, level: int, lists: int) -> _Found:
    """Walk `logprobs`; what follows one another in its outermost lists is one text."""
    if level > _MOST_LEVELS:
        yield "", None
    elif isinstance(value, str):
        yield field, value
    elif isinstance(value, list):
        for place, item in enumerate(value):
            at = f"{field}[{place}]" if lists else field
            yield from _tokens(item, at, level + 1, lists + 1)
    elif isinstance(value, dict):
        for place, (key, item) in enumerate(value.items()):
            # The alternatives of plain completions are keys.
            if key not in _TOKENS:
                yield f"{field}.{place}:", key
            if key == "bytes" and item is not None:
                yield f"{field}.bytes", _unlike(value.get("token"), item)
            else:
                at = key if key in _TOKENS else str(place)
                yield from _tokens(item, f"{field}.{at}", level + 1, lists)


def _unlike(token: Any, given: Any) -> str | None:
    """Read the bytes of a token; nothing where they say what the token says."""
    try:
        text = bytes(given).decode(errors="ignore")
    except (TypeError, ValueError):
        return None
    return "" if text == token else text


def _words_only(value: Any) -> bool:
    found = _any(value, "", 0, ours=False)
    return all(text is not None and _WORD.fullmatch(text) for _, text in found)
