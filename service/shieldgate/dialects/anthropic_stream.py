"""A streamed reply as Anthropic has it: named events, blocks that open and close.

https://docs.claude.com/en/docs/build-with-claude/streaming
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from shieldgate.dialects.anthropic_text import EVENTS, REPLY, event
from shieldgate.dialects.interface import JsonObject, Piece, Refusal, Verdicts
from shieldgate.dialects.openai_moderation import moderation
from shieldgate.dialects.text import read
from shieldgate.sse import json_event
from shieldgate.types import Action, Judged, Verdict

NOTHING_SPENT = {"input_tokens": 0, "output_tokens": 0}


@dataclass(frozen=True, slots=True)
class _EventPiece(Piece):
    """An event; `opens` or `closes` names the block that it begins or ends."""

    begins: bool = False
    opens: int | None = None
    closes: int | None = None


class MessageStream:
    """A streamed message; it has one choice, of several blocks."""

    def __init__(self, body: JsonObject) -> None:
        self.body = body
        self._events = 0
        self._begun = False
        self._open: list[int] = []
        self._next = 0
        self._usage: dict[str, Any] = dict(NOTHING_SPENT)
        self._refusal: Refusal | None = None

    def read(self, name: str, data: dict[str, Any]) -> Iterator[Piece]:
        """Read an event; its own `type` counts, and its name is written anew from that."""
        kind = data.get("type")
        self._events += 1
        said = event(data, self._events)
        known = kind if isinstance(kind, str) and kind in EVENTS else ""
        # The end is ours to write.
        written = json_event(data, known) if known != "message_stop" else b""
        if known == "ping" and said.empty:
            yield Piece(None, written)
            return
        if known == "message_start" and isinstance(data.get("message"), dict):
            self._count(data["message"].get("usage"))
        elif known == "message_delta":
            self._count(data.get("usage"))
        index = data.get("index") if type(data.get("index")) is int else 0
        yield _EventPiece(
            0,
            written,
            said.strands,
            bool(said.unscreenable),
            ends=known == "message_stop" or (known == "message_delta" and _stops(data)),
            begins=known == "message_start",
            opens=index if known == "content_block_start" else None,
            closes=index if known == "content_block_stop" else None,
        )

    def release(self, piece: Piece) -> bytes:
        """Write an event, and keep in mind which blocks are open."""
        if isinstance(piece, _EventPiece):
            self._begun |= piece.begins
            if piece.opens is not None:
                self._open.append(piece.opens)
                self._next = max(self._next, piece.opens + 1)
            self._open = [index for index in self._open if index != piece.closes]
        return piece.data

    def ending(self, choice: int, refusal: Refusal) -> bytes:
        """Close what is open; that it was refused is written last, with the verdicts."""
        self._refusal = refusal
        events = []
        if not self._begun:
            events.append(_written("message_start", message=envelope(self.body, [], self._usage)))
        events += [_written("content_block_stop", index=index) for index in self._open]
        if refusal.as_content:
            at, empty = {"index": self._next}, {"type": "text", "text": ""}
            said = {"type": "text_delta", "text": refusal.after(begun=self._next > 0).text}
            events += [
                _written("content_block_start", **at, content_block=empty),
                _written("content_block_delta", **at, delta=said),
                _written("content_block_stop", **at),
            ]
        return b"".join(events)

    def prompt_annotation(self, inputs: Sequence[Judged]) -> bytes:
        """Write nothing: this API has no events for it, and its clients stumble over others."""
        return b""

    def annotation(self, choice: int, verdict: Verdict, start: int, end: int) -> bytes:
        """Write nothing, for the same reason."""
        return b""

    def error_event(self, error: JsonObject, after: int) -> bytes:
        """Write an error as an event."""
        return json_event(error, "error")

    def closing(
        self, verdicts: Verdicts | None, held: Sequence[Piece] = (), *, unasked: bool = False
    ) -> bytes:
        """Write why it was refused, where it was, and the end; pings that wait are left out."""
        told = {"moderation": moderation(verdicts)} if verdicts else {}
        if self._refusal is None:
            return _written("message_stop", **told)
        stopped = stop(self._refusal, verdicts)
        usage = {"output_tokens": self._usage["output_tokens"]}
        return _written("message_delta", delta=stopped, usage=usage, **told) + _written(
            "message_stop"
        )

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            counted = {key: usage.get(key) for key in NOTHING_SPENT}
            self._usage |= {key: n for key, n in counted.items() if type(n) is int}


def envelope(
    body: JsonObject, content: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a message that no model has given."""
    given = {"model": body.get("model")}
    return {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": given["model"] if read(REPLY, given).empty else "",
        "content": list(content),
        "stop_reason": None,
        "stop_sequence": None,
        "usage": dict(usage),
    }


def stop(refusal: Refusal, verdicts: Verdicts | None) -> dict[str, Any]:
    """Write the fields that say of a message that it was refused, and why."""
    judged = (*verdicts.inputs, *verdicts.outputs) if verdicts else ()
    violated = [id for j in judged if j.verdict.action.stops for id in j.verdict.violated]
    blocked = any(j.verdict.action is Action.BLOCKED for j in judged)
    policies = list(dict.fromkeys(violated))
    because = f" It violates: {', '.join(policies)}." if policies else ""
    return {
        "stop_reason": "refusal",
        "stop_sequence": None,
        "stop_details": {
            "type": "refusal",
            "category": "general_harms" if blocked else None,
            "explanation": f"{refusal.text}{because}",
            # Ours: what a program looks at.
            "policies": policies,
        },
    }


def known_usage(reply: JsonObject) -> Mapping[str, Any]:
    """Give what a reply says of its usage, where that is nothing but counts."""
    usage = reply.get("usage")
    if isinstance(usage, dict) and read(REPLY, {"usage": usage}).empty:
        return usage
    return NOTHING_SPENT


def _stops(data: JsonObject) -> bool:
    delta = data.get("delta")
    return isinstance(delta, dict) and bool(delta.get("stop_reason"))


def _written(kind: str, **fields: Any) -> bytes:
    return json_event({"type": kind, **fields}, kind)
