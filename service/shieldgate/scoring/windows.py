"""Content over the context is judged in overlapping windows; nothing is clipped silently."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from shieldgate.errors import ConfigurationError
from shieldgate.types import Exchange

Spans = list[tuple[int, int]]

# Cutting text can change the tokens at the seam; this many a cut are kept in reserve.
_SEAM = 8
_ELLIPSIS = "\n[…]\n"


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How long content is split: prompts of `context` tokens, sharing `overlap` tokens of content.

    Beside a response, a prompt keeps at least a quarter of the room; what doesn't fit is left out
    of its middle.
    """

    context: int
    overlap: int

    def __str__(self) -> str:
        """Name the rule as CONTEXT/OVERLAP/VERSION, as part of a scorer's identity."""
        return f"{self.context}/{self.overlap}/v1"

    def room(self, fixed: int) -> int:
        """Count the tokens left for content beside `fixed` others.

        Raises ConfigurationError where that is too little for windows that overlap.
        """
        room = self.context - fixed - 4 * _SEAM
        if room <= 2 * self.overlap:
            raise ConfigurationError(
                f"the guideline takes {fixed} of the model's {self.context} tokens, with the words "
                "around it, which leaves no room for the text to be judged; shorten it"
            )
        return room

    def split(
        self, exchange: Exchange, fixed: int, spans: Callable[[str], Spans]
    ) -> tuple[tuple[Exchange, ...], int]:
        """Split an exchange that doesn't fit into exchanges that do.

        `fixed` is the number of tokens of the prompt without its content; `spans` gives the
        character span of each token of a text. Returns the windows, and the number of characters
        of the prompt that no window shows beside the response. Raises ConfigurationError as
        `room` does.
        """
        room = self.room(fixed)
        if exchange.response is None:
            windows = self._windows(exchange.prompt, spans(exchange.prompt), room)
            return tuple(replace(exchange, prompt=w) for w in windows), 0
        response_spans = spans(exchange.response)
        prompt_spans = spans(exchange.prompt)
        kept = min(len(prompt_spans), max(room // 4, room - len(response_spans)))
        excerpt, omitted = _excerpt(exchange.prompt, prompt_spans, kept)
        windows = self._windows(exchange.response, response_spans, room - kept)
        return tuple(replace(exchange, prompt=excerpt, response=w) for w in windows), omitted

    def _windows(self, text: str, spans: Spans, size: int) -> Iterator[str]:
        if len(spans) <= size:
            yield text
            return
        for start in range(0, len(spans) - self.overlap, size - self.overlap):
            inside = spans[start : start + size]
            yield text[inside[0][0] : inside[-1][1]]


def _excerpt(text: str, spans: Sequence[tuple[int, int]], size: int) -> tuple[str, int]:
    """Keep the two ends of a text that has more than `size` tokens."""
    if len(spans) <= size:
        return text, 0
    half = (size - _SEAM) // 2
    head, tail = spans[half - 1][1], spans[-half][0]
    return text[:head] + _ELLIPSIS + text[tail:], tail - head
