"""Server-sent events, as any server may write them and any network may split them."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shieldgate.sse import PING, Decoder, Event

DATA = ["data: a", "data:b", "data", "data:", "data:  two", "data: grün 🌱", "data: :colon:"]
OTHER = [
    "",
    "event: x",
    "event",
    ": note",
    ":",
    "id: 7",
    "retry: 9",
    "other: y",
    "\ufeffdata: late",
]
LINES = st.sampled_from([*DATA, *OTHER])
ENDS = st.sampled_from(["\n", "\r", "\r\n"])


def decode(*pieces: bytes, limit: int = 10_000) -> list[Event]:
    decoder = Decoder(limit)
    return [event for piece in pieces for event in decoder.feed(piece)]


def by_the_book(stream: str) -> list[Event]:
    """What the standard says of a whole stream: the plain reading, line by line."""
    events, data, name = [], [], ""
    text = stream.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n")[:-1]:
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if not line:
            events += [Event("\n".join(data), name)] if data else []
            data, name = [], ""
        elif field == "data":
            data.append(value)
        elif field == "event":
            name = value
    return events


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Streams of any lines and line ends; half of them begin with a byte order mark."""
    lines = draw(st.lists(st.tuples(LINES, ENDS), max_size=30))
    mark = "\ufeff" if draw(st.booleans()) else ""
    return (mark + "".join(itertools.chain(*lines))).encode()


@st.composite
def split(draw: st.DrawFn) -> list[bytes]:
    """A stream and one way to cut it, empty pieces included."""
    stream = draw(streams())
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    bounds = [0, *cuts, len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(bounds)]


@given(split())
@example([b"data: a\r", b"\n\r", b"\n"])
@example([b"data: a\r", b"", b"\ndata: b\n\n"])
@example(["data: ü\n\n".encode()[:7], "data: ü\n\n".encode()[7:]])
@example([b"\xef", b"\xbb\xbfdata: a\n\n"])
def test_any_splitting_gives_the_events_of_the_standard(pieces: list[bytes]):
    assert decode(*pieces) == by_the_book(b"".join(pieces).decode())


BYTES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [b"data:", b"event: x", b"\r", b"\n", b"\r\n", b": ", b"\xef\xbb\xbf", b"\xe2\x80"]
    ),
)


@given(st.lists(BYTES, max_size=60))
def test_any_bytes_at_all_give_the_events_of_the_standard(pieces: list[bytes]):
    text = b"".join(pieces).decode(errors="replace")
    assert decode(*pieces, limit=10**6) == by_the_book(text)


@given(streams())
def test_one_byte_at_a_time_gives_the_same_events(stream: bytes):
    assert decode(*(stream[i : i + 1] for i in range(len(stream)))) == decode(stream)


@given(st.lists(st.builds(Event, st.text().map(lambda t: t.replace("\r", "\n")))))
def test_what_is_written_is_read_again(events: list[Event]):
    assert decode(b"".join(e.encode() for e in events)) == events


def test_data_of_several_lines_is_written_as_several_and_a_name_before_them():
    assert Event("a\nb\r\nc", "delta").encode() == b"event: delta\ndata: a\ndata: b\ndata: c\n\n"


@pytest.mark.parametrize("name", ["a\ndata: forged", "a\rdata: forged"])
def test_a_name_can_not_forge_fields(name: str):
    with pytest.raises(ValueError, match="one line"):
        Event("{}", name).encode()


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"\r\n\r\n"])
def test_an_event_is_given_with_the_byte_that_ends_it_at_the_latest(end: bytes):
    decoder = Decoder(100)
    assert decoder.feed(b"data: a") == []
    assert decoder.feed(end) == [Event("a")]
    assert decoder.feed(b"\n") == []


def test_a_ping_is_no_event():
    assert decode(PING, b"data: a\n\n", PING) == [Event("a")]


def test_an_event_without_its_empty_line_is_not_given():
    assert decode(b"data: a\n") == []


def test_bytes_that_are_not_utf8_are_replaced_and_end_nothing():
    assert decode(b"data: a\xff\xc3", b"\ndata: b\n\n") == [Event("a\ufffd\ufffd\nb")]


@pytest.mark.parametrize("line", [b"data: " + b"a" * 95, b": " + b"a" * 99, b"data: a\n" * 15])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_beyond_the_limit_is_refused_however_it_comes(line: bytes, size: int):
    pieces = [line[i : i + size] for i in range(0, len(line), size)]
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        decode(*pieces, limit=100)


def test_the_limit_is_for_one_event_not_for_the_stream():
    event = b"data: " + b"a" * 94 + b"\n\n"
    assert len(decode(event * 50, limit=100)) == 50
