"""The words of the domain: exchange, score, judgement, verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, get_args

from shieldgate.errors import ScoringError

Direction = Literal["prompt", "response"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

Label = Literal[0, 1]  # 1 where a text violates a policy


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is judged: a prompt alone, or a response together with its prompt.

    `growing` says that the response is still being written and will be judged again when it is
    longer: its score is not worth keeping, what was computed for it is. `parts` are texts of what
    is under judgement that are judged alone, too: the worst score is the one that counts.
    """

    prompt: str
    response: str | None = None
    growing: bool = False
    parts: tuple[str, ...] = ()

    @property
    def direction(self) -> Direction:
        """Tell which of the two texts is under judgement."""
        return "prompt" if self.response is None else "response"

    @property
    def judged(self) -> str:
        """Give the text under judgement."""
        return self.prompt if self.response is None else self.response

    @property
    def characters(self) -> int:
        """Count the characters of both texts."""
        return len(self.prompt) + len(self.response or "")

    def judging(self, text: str) -> "Exchange":
        """Put another text under judgement, in the place of this one."""
        if self.response is None:
            return replace(self, prompt=text)
        return replace(self, response=text)

    def apart(self) -> list["Exchange"]:
        """Give all that is to be scored: the whole, and each part in its place."""
        whole = replace(self, parts=())
        return [whole, *(whole.judging(part) for part in self.parts)]

    def rewritten(self, write: Callable[[str], Sequence[str]]) -> list["Exchange"]:
        """Write both texts in as many ways as `write` gives, which is the same for all texts."""
        prompts = write(self.prompt)
        responses = [None] * len(prompts) if self.response is None else write(self.response)
        ways = zip(prompts, responses, strict=True)
        return [replace(self, prompt=prompt, response=response) for prompt, response in ways]


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer says of one (exchange, policy); calibration and thresholds come later.

    `margin` is z_yes - z_no in logits, higher is worse; the maximum over `windows` windows of
    the content. `prompt_omitted` counts the characters of the prompt that no window showed
    beside the response (0 unless both are very long).
    """

    margin: float
    windows: int = 1
    prompt_omitted: int = 0


class Action(StrEnum):
    """What becomes of the judged text."""

    ALLOWED = "allowed"
    BLOCKED = "blocked"
    WOULD_BLOCK = "would_block"
    FAILED_OPEN = "failed_open"
    FAILED_CLOSED = "failed_closed"

    @property
    def stops(self) -> bool:
        """Tell whether the text must not pass."""
        return self in (Action.BLOCKED, Action.FAILED_CLOSED)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One policy's part of a verdict; `probability` and `threshold` lie in 0..1."""

    policy: str
    probability: float
    threshold: float
    violated: bool
    calibrated: bool
    score: Score


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on one exchange; `judgements` is empty when the guard failed.

    What was found `beside` them is no part of the decision. `unsupported_language` is a warning: in
    which language, as an ISO 639 code, a part of the text is that the scorer is not said to know.
    """

    direction: Direction
    action: Action
    judgements: tuple[Judgement, ...]
    beside: tuple[Judgement, ...] = ()
    unsupported_language: str | None = None

    @property
    def violated(self) -> tuple[str, ...]:
        """List the ids of the violated policies."""
        return tuple(j.policy for j in self.judgements if j.violated)


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, why the guard failed where it did, and the time that judging took, in seconds."""

    verdict: Verdict
    failure: ScoringError | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """A word or sentence, [start, end) in characters, and what the margin loses without it."""

    start: int
    end: int
    lost: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which words of a text carried its margin under one policy; all margins are in logits.

    What was explained is [start, end) of the text under judgement, in characters, and `margin` is
    that of this part alone. Where it was another `reading` of the text that scored worst, all
    ranges are of this reading. `sentences` are what was left out first of a long text, and `words`
    what was then, of the sentences that count most. The `tested` words that the margin loses most
    without were left out together, and kept alone: `margin_without`, `margin_alone`; both are None
    where there is no word without which it loses anything.
    """

    start: int
    end: int
    margin: float
    sentences: tuple[Part, ...]
    words: tuple[Part, ...]
    reading: str | None = None
    tested: int = 0
    margin_without: float | None = None
    margin_alone: float | None = None
