"""The words of the domain: exchange, score, judgement, verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, get_args

from shieldgate.errors import ScoringError

Direction = Literal["prompt", "response"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


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

    def apart(self) -> list["Exchange"]:
        """Give all that is to be scored: the whole, and each part in its place."""
        whole = replace(self, parts=())
        if self.response is None:
            return [whole, *(replace(whole, prompt=part) for part in self.parts)]
        return [whole, *(replace(whole, response=part) for part in self.parts)]

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
