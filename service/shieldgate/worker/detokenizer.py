"""Tokens in, text out, up to a stop string, of which no part ever leaves."""

from collections.abc import Callable, Sequence


class Detokenizer:
    """Turns one text's tokens into characters as they come (incremental detokenization).

    Held back are the bytes of an unfinished character, and an end that may become a stop string,
    none of which is empty. `decode` gives the text of tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = stops
        self._bytes: list[int] = []
        self._held = ""
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """Take new tokens; gives the text that may leave. After a stop string nothing may."""
        out = ""
        for token in tokens:
            self._bytes.append(token)
            new = self._decode(self._bytes)
            if not new.endswith("\ufffd"):
                self._bytes = []
                out += self._release(new)
        return out

    def flush(self) -> str:
        """Give what is still held back, when no more will come."""
        rest = self._release(self._decode(self._bytes)) if self._bytes else ""
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        end = len(text) - max((_partial_match(stop, text) for stop in self._stops), default=0)
        self._held = text[end:]
        return text[:end]


def _partial_match(stop: str, text: str) -> int:
    """Count how many characters at the end of `text` may be the beginning of `stop`."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
