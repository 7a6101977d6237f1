"""Delimited values, record by record; one that is broken costs itself and no other."""

import csv
from collections import deque
from collections.abc import Iterator

from shieldgate.evaluation.text_lines import LONGEST_LINE, Line, not_utf8

# Its own limit is 131,072 characters, and it knows one for the whole process only.
csv.field_size_limit(LONGEST_LINE)

_DELIMITERS = ",;\t"
_MOST_TRIED = 1000
_OPEN = "has a quotation mark that nothing closes"


def read_values(
    lines: Iterator[Line], delimiter: str | None = None
) -> Iterator[tuple[int, list[str] | str]]:
    """Give the line that each record begins in, and its values, or why it can't be read.

    After one that can't it goes on in the line after its first: a quotation mark that was left open
    takes all lines up to the next one for its own. Once it took very many, each record is looked
    for in one line. Without a `delimiter`, it is what parts the
    first line into the most values.
    """
    waiting = deque(line for line in [next(lines, None)] if line)
    delimiter = delimiter or _delimiter_of(waiting)
    taken: list[Line] = []
    size, alone = 0, False

    def feed() -> Iterator[str]:
        nonlocal size
        while following := waiting.popleft() if waiting else next(lines, None):
            taken.append(following)
            if alone and len(taken) > 1:
                raise csv.Error(_OPEN)
            number, line = following
            size += LONGEST_LINE if line is None else len(line)
            if line is None or size >= LONGEST_LINE:
                raise csv.Error(f"is longer than {LONGEST_LINE:,} bytes")
            # What isn't UTF-8 is refused once it is known which record it belongs to.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        size = 0
        try:
            values = next(reader, None)
        except csv.Error as refused:
            yield taken[0][0], _why(refused)
            # Else a file of such marks would be read to its end from each of its lines.
            alone = alone or len(taken) > _MOST_TRIED
            waiting.extendleft(reversed(taken[1:]))
            reader = csv.reader(feed(), delimiter=delimiter, strict=True)
            continue
        if values is None:
            return
        whole = "".join(values)
        try:
            whole.encode()
        except UnicodeEncodeError:
            yield taken[0][0], not_utf8(whole.encode("utf-8", "surrogateescape"))
        else:
            yield taken[0][0], values


def _delimiter_of(header: deque[Line]) -> str:
    line = (header[0][1] if header else b"") or b""
    text = line.decode("utf-8", "replace").splitlines()
    return max(_DELIMITERS, key=lambda d: len(next(csv.reader(text, delimiter=d), ())))


def _why(refused: csv.Error) -> str:
    said = str(refused)
    if said == "unexpected end of data":
        return _OPEN
    if "expected after" in said:
        return "has a quotation mark within a quoted value; write it twice"
    if "new-line" in said:
        return "has a carriage return within a value; quote it, or end lines in a line feed"
    return said
