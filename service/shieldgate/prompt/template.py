"""A prompt format, and the segments that it makes of an exchange and a guideline.

A prompt alternates between control tokens and plain text. Only the template can place a control
token: what users type stays text, whatever it looks like, because templates are cut into
segments before any content is filled in.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from shieldgate.errors import ConfigurationError
from shieldgate.types import Exchange

GEMMA_CONTROL_TOKENS = ("<bos>", "<start_of_turn>", "<end_of_turn>")
_GEMMA = (GEMMA_CONTROL_TOKENS, "Yes", "No")


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by name."""

    token: str


Segment = Control | str

_FIELDS = ("{prompt}", "{response}", "{guideline}")


@dataclass(frozen=True)
class Template:
    """What a guard model is asked, with the fields `{prompt}`, `{response}` and `{guideline}`.

    `for_response` is None where a format only judges prompts. With `strip`, white space around
    the content is removed, as some published formats do. `control_tokens` are the tokens of the
    format that no text can contain. The model's next token is `positive` where the guideline is
    violated, and `negative` where it isn't; each is one token, with the space before it if it has
    one. The defaults are ShieldGemma's.
    """

    name: str
    for_prompt: str
    for_response: str | None
    strip: bool = False
    control_tokens: tuple[str, ...] = GEMMA_CONTROL_TOKENS
    positive: str = "Yes"
    negative: str = "No"

    @property
    def digest(self) -> str:
        """Identify all but the name, in 12 hexadecimal digits.

        What is Gemma's is left out, because calibrations and caches hang on digests from a time
        when there was nothing else.
        """
        parts = [self.for_prompt, self.for_response or "", str(self.strip)]
        reading = (self.control_tokens, self.positive, self.negative)
        if reading != _GEMMA:
            parts.append(json.dumps(reading))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def segments(self, exchange: Exchange, guideline: str) -> tuple[Segment, ...]:
        """Build the prompt that asks whether `exchange` violates `guideline`.

        Text between two control tokens is one segment, because token merges cross the seam
        between fixed and user text. Raises ConfigurationError if a response is to be judged and
        the format has no words for it.
        """
        fields = self._fields(exchange, guideline)
        segments: list[Segment] = []
        text = ""
        for piece in self._pieces.split(self._source(exchange)):
            if piece in self.control_tokens:
                if text:
                    segments.append(text)
                segments.append(Control(piece))
                text = ""
            else:
                text += fields.get(piece, piece)
        if text:
            segments.append(text)
        return tuple(segments)

    def place(self, exchange: Exchange, guideline: str) -> tuple[int, int]:
        """Tell where the text under judgement stands first in the prompt, and how long it is.

        Counted in characters of the prompt's text, control tokens left out. Raises as `segments`.
        """
        fields = self._fields(exchange, guideline)
        judged = "{prompt}" if exchange.response is None else "{response}"
        before = 0
        for piece in self._pieces.split(self._source(exchange)):
            if piece == judged:
                break
            if piece not in self.control_tokens:
                before += len(fields.get(piece, piece))
        return before, len(fields[judged])

    def _source(self, exchange: Exchange) -> str:
        source = self.for_prompt if exchange.response is None else self.for_response
        if source is None:
            raise ConfigurationError(
                f"The template {self.name!r} only judges prompts, and a response was to be judged. "
                "Choose 'chat', 'paper' or 'notebook', or a file that has a 'response'."
            )
        return source

    def _fields(self, exchange: Exchange, guideline: str) -> dict[str, str]:
        return {
            "{prompt}": self._content(exchange.prompt),
            "{response}": self._content(exchange.response or ""),
            "{guideline}": guideline,
        }

    @cached_property
    def _pieces(self) -> re.Pattern[str]:
        # The longest first, because one may begin like another.
        tokens = sorted(self.control_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, (*tokens, *_FIELDS)))})")

    def _content(self, text: str) -> str:
        return text.strip() if self.strip else text


def render(segments: Iterable[Segment]) -> str:
    """Write segments out as the one string that a published format shows."""
    return "".join(s.token if isinstance(s, Control) else s for s in segments)
