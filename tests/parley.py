"""Parley: an API that nobody speaks, with everything that tells dialects apart.

Events have names, are numbered without gaps, and the last one is `farewell`, without `[DONE]`. The
text of an answer is repeated whole after its last line. Keys are shown in a header of its own, and
errors have a form of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from shieldgate.dialects.interface import (
    Answer,
    CallerRequest,
    Credential,
    Endpoint,
    JsonObject,
    Piece,
    Problem,
    Refusal,
    Verdicts,
)
from shieldgate.dialects.plan import Plan, Subject, distinct
from shieldgate.policy import Profile
from shieldgate.sse import Event, json_event
from shieldgate.types import Exchange, Judged, Verdict

KEY = Credential("x-parley-key")


class ParleyRequest(BaseModel):
    words: str
    live: bool = False


class Oops(BaseModel):
    oops: dict[str, str | None]


class ParleyStream:
    def __init__(self, body: JsonObject) -> None:
        self.body = body
        self._number = 0
        self._read = ""
        self._released = ""

    def read(self, name: str, data: dict[str, Any]) -> Iterator[Piece]:
        if name == "line":
            texts = (("line", data["line"]),)
            self._read += data["line"]
        elif name == "whole" and data == {"whole": self._read}:
            texts = ()  # again what was judged
        else:
            texts = ((name, " ".join(map(str, data.values()))),)
        # The number is written when a piece leaves; before, nobody knows it.
        yield Piece(0, json_event(data, name), texts, ends=name == "whole")

    def release(self, piece: Piece) -> bytes:
        self._released += "".join(text for _, text in piece.texts)
        return self._numbered(piece.data)

    def ending(self, choice: int, refusal: Refusal) -> bytes:
        said = {"whole": self._released, "declined": refusal.text}
        return self._numbered(json_event(said, "declined"))

    def prompt_annotation(self, inputs: Sequence[Judged]) -> bytes:
        return b""

    def annotation(self, choice: int, verdict: Verdict, start: int, end: int) -> bytes:
        return b""

    def closing(
        self, verdicts: Verdicts | None, held: Sequence[Piece] = (), *, unasked: bool = False
    ) -> bytes:
        return self._numbered(json_event(found(verdicts), "farewell"))

    def error_event(self, error: JsonObject, after: int) -> bytes:
        return self._numbered(json_event(error, "oops"))

    def _numbered(self, event: bytes) -> bytes:
        self._number += 1
        return b"id: %d\n" % self._number + event


class Parley:
    name = "parley"
    description = "Parley with the upstream model."
    route = "/v1/parley"
    request_model: type[BaseModel] = ParleyRequest
    error_model: type[BaseModel] = Oops
    responses: Mapping[int | str, dict[str, Any]] = {}
    credentials: tuple[Credential, ...] = (KEY,)
    request_id = "x-request-id"
    endpoint = Endpoint("/parley", KEY, account=(KEY.header,), passes=("x-parley-version",))
    prompt_param = "words"
    choices_param: str | None = None
    on_block: Literal["error", "refusal"] = "error"

    def read(self, request: ParleyRequest) -> CallerRequest:
        return CallerRequest(request.model_dump(), request.live)

    def plan(self, body: JsonObject, profile: Profile) -> Plan:
        words = body["words"]
        return Plan(distinct([Subject("words", Exchange(words))]), (), contexts=(words,))

    def answers(self, reply: JsonObject, body: JsonObject) -> list[Answer]:
        lines = reply.get("lines")
        return [Answer(0, (("line", "\n".join(lines)),), unscreenable=False)] if lines else []

    def screened(
        self,
        reply: JsonObject,
        stopped: Sequence[bool],
        refusal: Refusal,
        verdicts: Verdicts | None,
    ) -> dict[str, Any]:
        said = {"lines": [], "declined": refusal.text} if any(stopped) else dict(reply)
        return said | found(verdicts)

    def blocked(self, verdicts: Verdicts) -> dict[str, Any]:
        return {"oops": {"why": "blocked", "what": "No parley."}, **found(verdicts)}

    def refused(
        self, body: JsonObject, choices: int, refusal: Refusal, verdicts: Verdicts, *, unasked: bool
    ) -> dict[str, Any]:
        return {"lines": [], "declined": refusal.text, **found(verdicts)}

    def stream(
        self, body: JsonObject, choices: int, *, enforces: bool = True, counts_usage: bool = False
    ) -> ParleyStream:
        return ParleyStream(body)

    def is_end(self, event: Event) -> bool:
        return event.name == "farewell"

    def status(self, problem: Problem) -> int:
        return problem.status

    def error(self, problem: Problem) -> dict[str, Any]:
        return {"oops": {"why": problem.code, "what": problem.message}}


def found(verdicts: Verdicts | None) -> dict[str, Any]:
    """Name the policies that were violated, where verdicts are told."""
    if verdicts is None:
        return {}
    judged = (*verdicts.inputs, *verdicts.outputs)
    return {"violated": [policy for j in judged for policy in j.verdict.violated]}
