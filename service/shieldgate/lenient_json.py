"""JSON as some servers write it: with numbers that it lacks, and characters cut in two.

All that is read can be written as proper JSON.
"""

import json
import math
from typing import Any

import orjson

_Place = tuple[str | int, ...]


class JsonReader:
    """Reads a value, or the values of one stream.

    NaN and the infinities are read as null. Halves of a surrogate pair are joined within a string,
    and where it is `streamed` over values that go on at the same place, such as the deltas of a
    choice; a half that stays alone is U+FFFD, as are bytes that are not UTF-8.
    """

    def __init__(self, *, streamed: bool = False) -> None:
        self._streamed = streamed
        self._halves: dict[_Place, str] = {}

    def read(self, text: bytes | str) -> Any:
        """Read a value; raise ValueError where it is none."""
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = None
        else:
            # orjson gives no halves.
            if not self._halves:
                return value
        try:
            return self._mended(_read_leniently(text) if value is None else value, ())
        except RecursionError:
            raise ValueError("The JSON is nested too deeply.") from None

    def _mended(self, value: Any, place: _Place) -> Any:
        if isinstance(value, str):
            return self._joined(value, place) if value else value
        if isinstance(value, dict):
            return {_whole(k): self._mended(item, (*place, k)) for k, item in value.items()}
        if isinstance(value, list):
            # Events hold some of the items of a list, and say by an index which ones.
            return [
                self._mended(item, (*place, _index(item, number)))
                for number, item in enumerate(value)
            ]
        return value

    def _joined(self, text: str, place: _Place) -> str:
        text = self._halves.pop(place, "") + text
        if self._streamed and "\ud800" <= text[-1] <= "\udbff":
            self._halves[place] = text[-1]
            text = text[:-1]
        return _whole(text)


def _read_leniently(text: bytes | str) -> Any:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_integer)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _integer(text: str) -> int | float | None:
    number = _finite(text)
    if number is None or abs(number) >= 2**63:
        return number
    return int(text)


def _index(item: Any, number: int) -> int:
    index = item.get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int) else number


def _whole(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
