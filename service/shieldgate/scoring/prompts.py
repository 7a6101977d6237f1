"""Exchange and policies in, packs of token ids out: what is asked of a model, whatever runs it."""

from collections.abc import Iterable, Sequence

from shieldgate.errors import ConfigurationError
from shieldgate.policy import Policy
from shieldgate.prompt import Control, Template
from shieldgate.scoring.encoding import PromptEncoder
from shieldgate.scoring.interfaces import Prepared
from shieldgate.scoring.pack import pack
from shieldgate.scoring.windows import WindowRule
from shieldgate.types import DIRECTIONS, Direction, Exchange


class PromptBuilder:
    """Builds the prompts of exchanges for a model of `context` tokens; safe to share by threads.

    `answers` are the token ids of the template's positive and negative answer. Raises ModelError
    where the tokenizer can't encode them, or the template, exactly.
    """

    def __init__(self, template: Template, encoder: PromptEncoder, context: int) -> None:
        self.template = template
        self.windows = WindowRule(context, overlap=min(256, context // 8))
        self._encoder = encoder
        self.answers = encoder.token(template.positive), encoder.token(template.negative)
        for direction in self._directions:
            encoder.check_seams(template.segments(_exchange("", direction), "No threats."))

    def encode(self, exchange: Exchange, guidelines: Sequence[str]) -> list[list[int]]:
        """Encode the prompt of each guideline, however long it is."""
        return self._encoder.encode([self.template.segments(exchange, g) for g in guidelines])

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        """Encode an exchange under policies, in windows if it is longer than the context.

        Raises ConfigurationError if a guideline leaves no room for content, or the template
        can't judge this direction.
        """
        guidelines = [p.guidelines[exchange.direction] for p in policies]
        prompts = self.encode(exchange, guidelines)
        if max(map(len, prompts)) <= self.windows.context:
            return Prepared((pack(prompts, growing=exchange.growing),))
        windows, omitted = self.split(exchange, policies)
        encoded = (self.encode(window, guidelines) for window in windows)
        return Prepared(tuple(pack(p, growing=exchange.growing) for p in encoded), omitted)

    def content(self, exchange: Exchange, guideline: str) -> list[tuple[int, int, int]]:
        """Find the tokens of the text under judgement in the prompt that `encode` gives.

        Each is its place in the prompt, and the range of characters of the text that it stands
        for; those on the seam to the words around it stand for what is the text's own of them.
        """
        judged = exchange.judged
        first, length = self.template.place(exchange, guideline)
        skipped = len(judged) - len(judged.lstrip()) if self.template.strip else 0
        found, token, begun = [], 0, 0
        for segment in self.template.segments(exchange, guideline):
            if isinstance(segment, Control):
                token += 1
                continue
            for start, end in self._encoder.spans(segment):
                a = max(begun + start, first) - first
                b = min(begun + end, first + length) - first
                if a < b:
                    found.append((token, a + skipped, b + skipped))
                token += 1
            begun += len(segment)
        return found

    def preambles(self) -> list[tuple[int, ...]]:
        """Give the tokens that every prompt begins with, for each direction, where there are any.

        They end where a text could change the tokens: a word joins the space before it.
        """
        found = []
        for direction in self._directions:
            unlike = (self.encode(_exchange(text, direction), [text]) for text in "a1")
            found.append(pack([ids for prompts in unlike for ids in prompts]).trunk)
        return [ids for ids in found if ids]

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        """Tell how many tokens the windows of an exchange have at least, from its characters.

        Counting ends beyond `most`.
        """
        return self._encoder.least_tokens(exchange.judged, most)

    def check(self, policies: Iterable[Policy]) -> None:
        """Raise ConfigurationError where a guideline leaves no room for the text to be judged."""
        policies = list(policies)
        for direction in self._directions if policies else ():
            self._fixed(policies, direction)

    def split(
        self, exchange: Exchange, policies: Sequence[Policy]
    ) -> tuple[tuple[Exchange, ...], int]:
        """Split an exchange that is longer than the context, as WindowRule.split does."""
        fixed = self._fixed(policies, exchange.direction)
        return self.windows.split(exchange, fixed, self._encoder.spans)

    @property
    def _directions(self) -> tuple[Direction, ...]:
        return DIRECTIONS if self.template.for_response else ("prompt",)

    def _fixed(self, policies: Sequence[Policy], direction: Direction) -> int:
        """Count the most tokens of a prompt without its content."""
        guidelines = [p.guidelines[direction] for p in policies]
        sizes = list(map(len, self.encode(_exchange("", direction), guidelines)))
        problems = []
        for policy, size in zip(policies, sizes, strict=True):
            try:
                self.windows.room(size)
            except ConfigurationError as wrong:
                problems.append(f"{policy.id}: {direction}: {wrong}")
        if problems:
            raise ConfigurationError("\n".join(problems))
        return max(sizes)


def _exchange(text: str, direction: Direction) -> Exchange:
    return Exchange(text, text if direction == "response" else None)
