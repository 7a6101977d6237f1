"""Replies in choices, whole and streamed, which OpenAI's two completions have in common."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from time import time
from typing import Any, ClassVar
from uuid import uuid4

from shieldgate.dialects.interface import Answer, JsonObject, Piece, Refusal, Verdicts
from shieldgate.dialects.looks import machine_made, many_words
from shieldgate.dialects.openai import OpenAIRoute, answering
from shieldgate.dialects.openai_moderation import filter_results
from shieldgate.dialects.openai_text import answer, split
from shieldgate.errors import UpstreamError
from shieldgate.openai.chat import DONE
from shieldgate.sse import Event, json_event
from shieldgate.types import Judged, Verdict

_NOTHING_SPENT = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_END = Event(DONE).encode()

# What chunks of ours repeat of the model's.
_ENVELOPE = ("id", "object", "created", "model", "system_fingerprint", "service_tier")

_NOT_AROUND = ("choices", "obfuscation")


class ChoicesRoute(OpenAIRoute):
    """One of OpenAI's completions."""

    choices_param: str | None = "n"
    responses: Mapping[int | str, dict[str, Any]] = answering(
        {"type": "object", "required": ["choices"]}
    )

    _id: ClassVar[str]
    _objects: ClassVar[tuple[str, str]]
    """The kind of a whole reply, and of a chunk."""

    @abstractmethod
    def stopped_choice(self, index: int, refusal: Refusal) -> dict[str, Any]:
        """Write a choice of a whole reply that was stopped."""

    @abstractmethod
    def last_choices(self, index: int, refusal: Refusal, *, begun: bool) -> list[dict[str, Any]]:
        """Write a stopped choice of the last chunks; `begun` says that some of it has left."""

    def answers(self, reply: JsonObject, body: JsonObject | None = None) -> list[Answer]:
        """Read the choices of a whole reply."""
        choices = reply.get("choices")
        if not isinstance(choices, list) or any(type(choice) is not dict for choice in choices):
            return []
        beside = split(reply)[1]
        found = [(_index(choice), answer(choice, beside)) for choice in choices]
        return [Answer(index, said.strands, bool(said.unscreenable)) for index, said in found]

    def screened(
        self,
        reply: JsonObject,
        stopped: Sequence[bool],
        refusal: Refusal,
        verdicts: Verdicts | None,
    ) -> dict[str, Any]:
        """Write a reply without the choices that are stopped."""
        choices = [
            self.stopped_choice(_index(choice), refusal) if stops else choice
            for choice, stops in zip(reply["choices"], stopped, strict=True)
        ]
        # What was judged with the choices leaves with all of them.
        around = split(reply)[0] if any(stopped) else reply
        return {**around, "choices": choices, **self.told(verdicts)}

    def refused(
        self, body: JsonObject, choices: int, refusal: Refusal, verdicts: Verdicts, *, unasked: bool
    ) -> dict[str, Any]:
        """Write a reply of refusals; what a model that was asked has spent, nobody knows."""
        return {
            **self.envelope(body, streamed=False),
            "choices": [self.stopped_choice(index, refusal) for index in range(choices)],
            **({"usage": _NOTHING_SPENT} if unasked else {}),
            **self.told(verdicts),
        }

    def stream(
        self, body: JsonObject, choices: int, *, enforces: bool = True, counts_usage: bool = False
    ) -> "ChoicesStream":
        """Begin a streamed reply."""
        return ChoicesStream(self, body, choices, enforces=enforces, counts_usage=counts_usage)

    def envelope(self, body: JsonObject, *, streamed: bool) -> dict[str, Any]:
        """Write what stands around the choices of a reply that no model has given."""
        model = body.get("model")
        return {
            "id": f"{self._id}-{uuid4().hex}",
            "object": self._objects[streamed],
            "created": int(time()),
            "model": model if isinstance(model, str) else "",
        }


class ChoicesStream:
    """A streamed reply; its chunks are taken apart by choices."""

    def __init__(
        self,
        dialect: ChoicesRoute,
        body: JsonObject,
        choices: int,
        *,
        enforces: bool,
        counts_usage: bool,
    ) -> None:
        options = body.get("stream_options") or {}
        self._dialect = dialect
        self._choices = choices
        self._enforces = enforces
        self._tells_usage = bool(options.get("include_usage"))
        # So that the count is there when the model is left early.
        self._counts = counts_usage and self._tells_usage
        self.body = body
        if self._counts:
            counting = {**options, "continuous_usage_stats": True}
            self.body = {**body, "stream_options": counting}
        self._own = dialect.envelope(body, streamed=True)
        self._envelope = self._own
        self._around: dict[str, Any] | None = None
        self._passed: dict[str, Any] = {}
        self._beside: dict[str, Any] = {}
        self._told: dict[int, dict[str, Any]] = {}
        self._names: dict[str, str] = {}
        self._fields: dict[str, None] = {}
        self._fields_judged = 0
        self._usage: Any = None
        self._usage_told = False
        self._begun: set[int | None] = set()

    def read(self, name: str, data: dict[str, Any]) -> Iterator[Piece]:
        """Take a chunk apart; raise UpstreamError for a choice that was not asked for."""
        choices: Any = data.get("choices")
        if (padding := data.get("obfuscation")) is not None:
            # Only its length matters, and it could be somebody's words.
            data["obfuscation"] = "x" * len(padding) if isinstance(padding, str) else ""
        self._read_around({key: item for key, item in data.items() if key not in _NOT_AROUND})
        if not choices:
            # Usage, mostly. No text of an answer has its place here.
            passed = {**self._passed, "choices": []} if self._enforces else data
            self._usage_told |= bool(passed.get("usage"))
            yield Piece(None, json_event(passed))
            return
        if self._counts:
            data.pop("usage", None)
            self._beside.pop("usage", None)
        for given in choices if isinstance(choices, list) else [choices]:
            choice, index = self._asked(given)
            # Once for each choice, where it is the same in every chunk.
            told = self._told.get(index) == self._beside
            self._told[index] = self._beside
            found = answer(choice, {} if told else self._beside)
            yield Piece(
                index,
                json_event({**data, "choices": [choice]}),
                found.strands,
                bool(found.unscreenable),
                ends=_finished(choice),
            )

    def _asked(self, choice: Any) -> tuple[dict[str, Any], int]:
        """Find which choice is meant; where one was asked for, servers leave its index out."""
        if isinstance(choice, dict):
            index = choice.get("index")
            if self._choices == 1:
                return (choice if type(index) is int and not index else {**choice, "index": 0}), 0
            if type(index) is int and 0 <= index < self._choices:
                return choice, index
        raise UpstreamError(
            "Upstream streamed a choice that was not asked for.", code="upstream_invalid"
        )

    def _read_around(self, around: dict[str, Any]) -> None:
        # Mostly the same in every chunk.
        if around != self._around:
            self._around = around
            self._passed, self._beside, unknown = split(around)
            self._read_fields(unknown)
            # By many of them, anything could be spelled.
            for name in ("id", "model", "provider"):
                value = self._passed.get(name)
                if not isinstance(value, str) or not value:
                    continue
                known = name == "id" and machine_made(value)
                first = self._names.setdefault(name, value)
                if value != first and not known:
                    self._beside[f"{name}s"] = f"{first} {self._passed.pop(name)}"
                    self._names[name] = ""
            self._envelope = {key: self._passed[key] for key in _ENVELOPE if key in self._passed}
            self._usage = self._passed.get("usage") or self._usage

    def _read_fields(self, unknown: list[str]) -> None:
        """Judge names of fields once those of all chunks could say something."""
        new = [name for name in unknown if name not in self._fields]
        self._fields |= dict.fromkeys(new)
        if new and many_words(self._fields):
            self._beside["fields"] = " ".join([*self._fields][self._fields_judged :])
            self._fields_judged = len(self._fields)
            for name in new:
                self._passed.pop(name)

    def release(self, piece: Piece) -> bytes:
        """Write a piece as it was read."""
        self._begun.add(piece.choice)
        return piece.data

    def ending(self, choice: int, refusal: Refusal) -> bytes:
        """Write the last chunks of a choice that was stopped."""
        begun = choice in self._begun
        last = self._dialect.last_choices(choice, refusal, begun=begun)
        return b"".join(self._chunk([each]) for each in last)

    def prompt_annotation(self, inputs: Sequence[Judged]) -> bytes:
        """Write what Azure's asynchronous filter says of prompts."""
        results = [
            {"prompt_index": place, "content_filter_results": filter_results(j.verdict)}
            for place, j in enumerate(inputs)
        ]
        return json_event({**self._own, "prompt_filter_results": results, "choices": []})

    def annotation(self, choice: int, verdict: Verdict, start: int, end: int) -> bytes:
        """Write what Azure's asynchronous filter says of a span of an answer."""
        offsets = {"check_offset": end, "start_offset": start, "end_offset": end}
        annotated = {
            "index": choice,
            "delta": {},
            "finish_reason": None,
            "content_filter_results": filter_results(verdict),
            "content_filter_offsets": offsets,
        }
        return self._chunk([annotated])

    def error_event(self, error: JsonObject, after: int) -> bytes:
        """Write an error as an event."""
        return json_event(error)

    def closing(
        self, verdicts: Verdicts | None, held: Sequence[Piece] = (), *, unasked: bool = False
    ) -> bytes:
        """Write verdicts, what was held, the usage where nothing told it yet, and `[DONE]`."""
        last = [self._chunk([], **self._dialect.told(verdicts))] if verdicts else []
        last += [piece.data for piece in held]
        usage = _NOTHING_SPENT if unasked else self._usage
        if usage and self._tells_usage and not self._usage_told:
            last.append(self._chunk([], usage=usage))
        return b"".join(last) + _END

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return json_event({**self._envelope, "choices": choices, **more})


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if type(index) is int and index >= 0 else 0


def _finished(choice: Mapping[str, Any]) -> bool:
    """Tell whether a choice gives a reason to finish; some servers spell out that there is none."""
    reason = choice.get("finish_reason")
    if isinstance(reason, str):
        return reason.strip().lower() not in ("", "null", "none")
    return bool(reason)
