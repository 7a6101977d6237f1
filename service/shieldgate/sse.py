"""Server-sent events: bytes in any splitting to events, and events to bytes.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html. Its `id` and `retry`
serve to resume a stream, which no completion can, and are left out.
"""

import re
from dataclasses import dataclass

import orjson

PING = b": ping\n\n"

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is empty where the stream gave none."""

    data: str
    name: str = ""

    def encode(self) -> bytes:
        """Write the event, with a `data:` line for each line of its data.

        Raises ValueError for a name of several lines, which would read as fields of its own.
        """
        if "\n" in self.name or "\r" in self.name:
            raise ValueError("An event's name is one line.")
        lines = [f"event: {self.name}"] if self.name else []
        lines += [f"data: {line}" for line in re.split("\r\n|\n|\r", self.data)]
        return ("\n".join(lines) + "\n\n").encode()


def json_event(data: object, name: str = "") -> bytes:
    """Write a JSON value as an event; its text has no line ends, so it is one line of data."""
    return (b"event: %s\n" % name.encode() if name else b"") + b"data: %s\n\n" % orjson.dumps(data)


def events_in(written: bytes) -> int:
    """Count the events in what was written here; comments are none."""
    return written.count(b"\n\n") - written.count(PING)


class Decoder:
    """Reads one stream; an event is given as soon as the line that ends it is there.

    Bytes that are not UTF-8 become U+FFFD. An event that never ends is never given.
    """

    def __init__(self, max_event_bytes: int) -> None:
        """Bound what is kept of an event that hasn't ended."""
        self._max_bytes = max_event_bytes
        self._size = 0
        self._started = False
        self._after_return = False
        self._line: list[bytes] = []
        self._data: list[str] = []
        self._name = ""

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and give the events they complete.

        Raises ValueError when an event is longer than `max_event_bytes`.
        """
        # A line that ends in "\r" is ended at once; should "\n" follow, it belongs to that end.
        if self._after_return and data:
            data = data.removeprefix(b"\n")
            self._after_return = False
        if not data:
            return []
        self._after_return = data.endswith(b"\r")
        events = []
        *ended, rest = _LINE_END.split(data)
        for piece in ended:
            self._keep(piece)
            if event := self._end_of_line():
                events.append(event)
        self._keep(rest)
        return events

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise ValueError(f"An event is longer than {self._max_bytes} bytes.")
        if piece:
            self._line.append(piece)

    def _end_of_line(self) -> Event | None:
        """Read the line that is kept; give the event if the line is the empty one that ends it."""
        raw = b"".join(self._line)
        self._line.clear()
        if not self._started:
            raw = raw.removeprefix(_BOM)
            self._started = True
        if not raw:
            return self._end_of_event()
        field, _, value = raw.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None

    def _end_of_event(self) -> Event | None:
        event = Event("\n".join(self._data), self._name) if self._data else None
        self._size = 0
        self._data.clear()
        self._name = ""
        return event
