"""A streamed response: read event by event, numbered anew, and ended where it was stopped."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from shieldgate.dialects.interface import JsonObject, Piece, Refusal, Verdicts
from shieldgate.dialects.openai_responses_events import AROUND, KINDS, LAST, Heard, read_event
from shieldgate.dialects.openai_responses_reply import (
    NOTHING_SPENT,
    envelope,
    refused_message,
    refused_part,
    refusing,
    split,
)
from shieldgate.errors import UpstreamError
from shieldgate.sse import json_event
from shieldgate.types import Judged, Verdict

_Event = dict[str, Any]

# By the type of a part: its list in an item, and the events and the field that say its text.
_KINDS = {
    "output_text": ("content", "response.output_text", "text"),
    "refusal": ("content", "response.refusal", "refusal"),
    "reasoning_text": ("content", "response.reasoning_text", "text"),
    "summary_text": ("summary", "response.reasoning_summary_text", "text"),
}
_SAYS = {name: (where, field) for where, name, field in _KINDS.values()}
_PART_EVENTS = {"content": "response.content_part", "summary": "response.reasoning_summary_part"}
_HOLDS = {name: where for where, name in _PART_EVENTS.items()}
_INDEX = {"content": "content_index", "summary": "summary_index"}


class ResponsesStream:
    """A streamed response; all its items are one choice, because the last event repeats them."""

    def __init__(self, body: JsonObject, told: Callable[[Verdicts | None], JsonObject]) -> None:
        """Begin an answer to `body`; `told` writes what is told of verdicts."""
        self.body = body
        self._told = told
        self._heard = Heard()
        self._left = _Left()
        self._last: _Event | None = None
        self._stopped = False
        self._number = 0

    def read(self, name: str, data: dict[str, Any]) -> Iterator[Piece]:
        """Read an event; what comes after the last one is none of the answer."""
        if self._last is not None:
            return
        kind = data.get("type", name)
        if not isinstance(kind, str):
            raise UpstreamError("Upstream streamed no event.", code="upstream_invalid")
        if kind == "error":
            raise UpstreamError(
                "Upstream streamed an error.", body={"message": data.get("message")}
            )
        if (padding := data.get("obfuscation")) is not None:
            # Only its length matters, and it could be somebody's words.
            data["obfuscation"] = "x" * len(padding) if isinstance(padding, str) else ""
        response = data.get("response")
        if (kind in LAST or kind in AROUND) and not isinstance(response, dict):
            raise UpstreamError("Upstream streamed no response.", code="upstream_invalid")
        found = read_event(kind, {**data, "type": kind}, self.body)
        texts = tuple(self._heard.new(found))
        if kind in LAST:
            # Written last, when the verdicts are known.
            self._last = {**data, "type": kind}
            yield Piece(0, b"", texts, found.unscreenable, ends=True, reply=response)
        else:
            yield Piece(0, orjson.dumps({**data, "type": kind}), texts, found.unscreenable)

    def release(self, piece: Piece) -> bytes:
        """Write an event with its number, and remember that it has left."""
        if piece.ends:
            return b""
        event = orjson.loads(piece.data)
        self._left.take(event)
        return self._written(event)

    def ending(self, choice: int, refusal: Refusal) -> bytes:
        """End what has begun, and say the refusal."""
        self._stopped = True
        begun = b""
        if self._left.around is None:
            self._left.around = envelope(self.body)
            begun = b"".join(
                self._written({"type": kind, "response": self._left.around})
                for kind in ("response.created", "response.in_progress")
            )
        return begun + b"".join(map(self._written, self._left.ending(refusal)))

    def prompt_annotation(self, inputs: Sequence[Judged]) -> bytes:
        """Write nothing: the last event tells of prompts."""
        return b""

    def annotation(self, choice: int, verdict: Verdict, start: int, end: int) -> bytes:
        """Write nothing: the last event tells of the answer."""
        return b""

    def error_event(self, error: JsonObject, after: int) -> bytes:
        """Write an error as an event; for its envelope the official client raises it."""
        # Of what was numbered, some may still wait for the caller, who won't see it.
        numbered = {**error["error"], **error, "type": "error", "sequence_number": after}
        return json_event(numbered, "error")

    def closing(
        self, verdicts: Verdicts | None, held: Sequence[Piece] = (), *, unasked: bool = False
    ) -> bytes:
        """Write the last event, whose response has no more than what has left."""
        told = self._told(verdicts)
        last = self._last
        if last is not None and not self._stopped:
            return self._written({**last, "response": {**last["response"], **told}})
        around = self._left.around or envelope(self.body)
        response = refusing(around, self._left.output())
        if not self._stopped:
            # Upstream said that it is over, and not why.
            response["incomplete_details"] = None
        # Of a response that was stopped, only what is no text.
        spent = split(last["response"], {})[0].get("usage") if last else None
        usage = {"usage": NOTHING_SPENT if unasked else spent}
        return self._written(
            {"type": "response.incomplete", "response": {**response, **usage, **told}}
        )

    def _written(self, event: _Event) -> bytes:
        numbered = {**event, "sequence_number": self._number}
        self._number += 1
        kind = event["type"]
        return json_event(numbered, kind if kind in KINDS else "")


class _Left:
    """What of a response has left, as far as its end repeats it."""

    def __init__(self) -> None:
        self.around: _Event | None = None
        self._items: dict[int, _Event] = {}
        self._open: set[int] = set()
        # Of each part that is not done, what was said of it, until its text is done.
        self._parts: dict[tuple[int, str, int], list[str] | None] = {}
        self._next = 0

    def take(self, event: _Event) -> None:
        """Take an event that has left; one that doesn't fit the earlier ones changes nothing."""
        kind = event["type"]
        name, _, state = kind.rpartition(".")
        place = event.get("output_index")
        if kind in AROUND:
            self.around = {k: v for k, v in event["response"].items() if k != "output"}
        elif type(place) is not int:
            return
        elif name == "response.output_item":
            self._take_item(place, event.get("item"), done=state == "done")
        elif name in _SAYS:
            self._take_text(place, event, *_SAYS[name], done=state == "done")
        elif name in _HOLDS:
            self._take_part(place, event, _HOLDS[name], done=state == "done")

    def _take_item(self, place: int, item: Any, *, done: bool) -> None:
        if isinstance(item, dict):
            self._items[place] = item
            self._open.add(place)
            self._next = max(self._next, place + 1)
            self._parts = {at: text for at, text in self._parts.items() if at[0] != place}
        if done:
            self._open.discard(place)

    def _take_part(self, place: int, event: _Event, where: str, *, done: bool) -> None:
        if found := self._found(place, event, where):
            parts, index = found
            parts[index : index + 1] = [event.get("part")]
            self._parts[place, where, index] = []
            if done:
                del self._parts[place, where, index]

    def _take_text(self, place: int, event: _Event, where: str, field: str, *, done: bool) -> None:
        found = self._found(place, event, where)
        text = event.get(field if done else "delta")
        at = (place, where, found[1]) if found else None
        if found is None or at not in self._parts or not isinstance(text, str):
            return
        if done:
            parts, index = found
            parts[index][field] = text
            self._parts[at] = None
        elif (said := self._parts[at]) is not None:
            said.append(text)

    def _found(self, place: int, event: _Event, where: str) -> tuple[list[Any], int] | None:
        """Find the list of an item that a part belongs to, and its index there."""
        item, index = self._items.get(place), event.get(_INDEX[where])
        if item is None or type(index) is not int:
            return None
        parts = _listed(item, where)
        fits = 0 <= index <= len(parts) and all(isinstance(part, dict) for part in parts)
        return (parts, index) if fits else None

    def output(self) -> list[_Event]:
        """List the items that have left."""
        return [item for _, item in sorted(self._items.items())]

    def ending(self, refusal: Refusal) -> Iterator[_Event]:
        """Say that what has begun is done, and a refusal, in a message that is open or its own.

        Calls that are not complete are left out: a client may take one that is done for good.
        """
        said = False
        for place in sorted(self._open):
            item = self._items[place]
            if item.get("type") not in ("message", "reasoning"):
                del self._items[place]
                continue
            yield from self._parts_done(place, item)
            if item["type"] == "message" and not said:
                said = True
                yield from self._refused(place, item, refusal)
            yield from self._item_done(place, item)
        if not said:
            place, item = self._next, {**refused_message(refusal), "content": []}
            self._items[place] = item
            begun = {**item, "status": "in_progress", "content": []}
            yield {"type": "response.output_item.added", "output_index": place, "item": begun}
            yield from self._refused(place, item, refusal)
            yield from self._item_done(place, item)

    def _item_done(self, place: int, item: _Event) -> Iterator[_Event]:
        item["status"] = "incomplete"
        yield {"type": "response.output_item.done", "output_index": place, "item": item}

    def _parts_done(self, place: int, item: _Event) -> Iterator[_Event]:
        for (of, where, index), said in self._parts.items():
            if of == place:
                yield from _part_done(place, item, where, index, said)

    def _refused(self, place: int, item: _Event, refusal: Refusal) -> Iterator[_Event]:
        part = refused_part(refusal.after(begun=bool(item.get("content"))))
        where, name, field = _KINDS[part["type"]]
        parts = _listed(item, where)
        at = _at(place, item, where, len(parts))
        yield {"type": f"{_PART_EVENTS[where]}.added", **at, "part": {**part, field: ""}}
        yield {"type": f"{name}.delta", **at, "delta": part[field], **_logprobs(name)}
        parts.append({**part, field: ""})
        yield from _part_done(place, item, where, len(parts) - 1, [part[field]])


def _listed(item: _Event, where: str) -> list[Any]:
    """Give a list of parts of an item, which upstream may have left out or made something else."""
    if not isinstance(item.get(where), list):
        item[where] = []
    parts: list[Any] = item[where]
    return parts


def _part_done(
    place: int, item: _Event, where: str, index: int, said: list[str] | None
) -> Iterator[_Event]:
    """Say that a part is done, and its text, unless that was said before."""
    part = item[where][index]
    at = _at(place, item, where, index)
    known = _KINDS.get(str(part.get("type")))
    if known and said is not None:
        _, name, field = known
        part[field] = "".join((str(part.get(field) or ""), *said))
        yield {"type": f"{name}.done", **at, field: part[field], **_logprobs(name)}
    yield {"type": f"{_PART_EVENTS[where]}.done", **at, "part": part}


def _at(place: int, item: _Event, where: str, index: int) -> _Event:
    return {"item_id": item.get("id", ""), "output_index": place, _INDEX[where]: index}


def _logprobs(name: str) -> _Event:
    return {"logprobs": []} if name == "response.output_text" else {}
