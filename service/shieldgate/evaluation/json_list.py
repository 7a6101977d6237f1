"""A file that is one JSON list, cut into its items, one at a time."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.storage import RemoteFile
from shieldgate.evaluation.text_lines import LONGEST_LINE, Opened, as_utf8

_CHUNK = 64 * 1024
_BETWEEN = re.compile(r"[\s,]*")


def items(file: Opened, path: Path | RemoteFile) -> Iterator[bytes] | None:
    """Cut a list into its items as they stand in the file; None where it holds something else.

    Where the list is broken there is no telling where the next item begins, so that raises
    ConfigurationError.
    """
    source = as_utf8(file)
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")

    def read(size: int) -> str:
        data = source.read(size)
        return decoder.decode(data, final=not data)

    begin = read(_CHUNK).lstrip()
    return _items(read, begin[1:], path) if begin.startswith("[") else None


def _items(read: Callable[[int], str], buffer: str, path: Path | RemoteFile) -> Iterator[bytes]:
    # Where an item ends is all that is asked; what it holds, a number too long too, is read later.
    decode = json.JSONDecoder(parse_int=str).raw_decode
    at = number = 0
    while True:
        between = _BETWEEN.match(buffer, at)
        at = end = between.end() if between else at
        if buffer.startswith("]", at):
            return
        why = "it ends early"
        try:
            _, end = decode(buffer, at)
        except json.JSONDecodeError as refused:
            why = refused.msg
        except RecursionError:
            raise ConfigurationError(f"{path}: item {number + 1} is nested too deeply.") from None
        # What reaches to the end of the buffer may go on in the next.
        if at < end < len(buffer):
            number += 1
            yield buffer[at:end].encode("utf-8", "surrogateescape")
            at = end
            continue
        rest = len(buffer) - at
        more = read(max(_CHUNK, rest)) if rest < LONGEST_LINE else ""
        if not more:
            raise ConfigurationError(
                f"{path}: is not a JSON list from item {number + 1} on: {why}. Mend it there."
            )
        buffer, at = buffer[at:] + more, 0
