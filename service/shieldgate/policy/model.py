"""Policies and profiles: what is asked of a scorer, and how its answers are read.

The defaults here are those of the files, too: `schema` reads them off the classes, which are
therefore without slots.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from shieldgate.drift import ScoreHistogram
from shieldgate.types import Direction

Mode = Literal["enforce", "monitor"]
OnFailure = Literal["open", "closed"]
OnBlock = Literal["native", "error", "refusal"]
RefusalField = Literal["refusal", "content"]
PromptCheck = Literal["before", "parallel"]
History = Literal["latest", "window", "all"]
Instructions = Literal["judge", "trust"]
Unscreenable = Literal["refuse", "pass"]
References = Literal["resolve", "refuse"]
StreamMode = Literal["hold", "full", "async"]
UnsupportedLanguage = Literal["warn", "refuse"]


@dataclass(frozen=True)
class Calibration:
    """How one scorer's margins read for one policy and direction.

    Probability = sigmoid(margin / temperature + bias); at or above `threshold` is a violation.
    `provenance` says from which data it was fitted, in the words of who fitted it, and `scores` has
    the margins of these rows, or of later ones that are to be expected instead.
    """

    threshold: float
    temperature: float = 1.0
    bias: float = 0.0
    provenance: Mapping[str, object] = field(default_factory=dict)
    scores: ScoreHistogram | None = None

    @property
    def dtype(self) -> str | None:
        """Say what the scorer computed in that was fitted; None where that isn't known."""
        # The key of an Identity, as calibrate writes it.
        identity = str(self.provenance.get("identity", "")).split("|")
        return identity[1] if len(identity) == 4 else None

    def probability(self, margin: float) -> float:
        """Turn a margin in logits into a probability in 0..1."""
        logit = margin / self.temperature + self.bias
        # Two branches, because exp overflows a float beyond about 709.
        if logit >= 0:
            return 1.0 / (1.0 + math.exp(-logit))
        return math.exp(logit) / (1.0 + math.exp(logit))

    def margin(self, probability: float) -> float:
        """Give the margin in logits that has this probability, above 0; 1 counts as just below."""
        p = min(probability, 1.0 - 2**-53)
        return (math.log(p / (1.0 - p)) - self.bias) * self.temperature


@dataclass(frozen=True, slots=True)
class Policy:
    """One harm: what is asked of the scorer, and where its answer becomes a violation.

    `id` is `family/name`. `guidelines` and `thresholds` have both directions. `openai` lists
    OpenAI's categories that this policy speaks for. `calibrations` is keyed by
    (scorer name, direction).
    """

    id: str
    title: str
    guidelines: Mapping[Direction, str]
    thresholds: Mapping[Direction, float]
    openai: tuple[str, ...] = ()
    calibrations: Mapping[tuple[str, Direction], Calibration] = field(default_factory=dict)

    def calibration(self, scorer: str, direction: Direction) -> Calibration | None:
        """Find what was fitted for this scorer, or None when nothing was.

        A cascade, named `FIRST>SECOND`, scores on the scale of the second, so what was fitted for
        that one holds where nothing was for the whole.
        """
        found = self.calibrations.get((scorer, direction))
        while found is None and ">" in scorer:
            scorer = scorer.partition(">")[2]
            found = self.calibrations.get((scorer, direction))
        return found


@dataclass(frozen=True)
class Streaming:
    """When a growing answer is judged, and whether its text waits for that; in characters.

    `hold` judges as it grows and releases what a judgement covers; `full` judges once, at the
    end, and releases all of it then; `async` releases at once and judges as `hold` does. The
    first check comes after `first` characters, each next one when the answer has grown by the
    factor `growth`, but after at most `most` characters more. The end is always checked.
    """

    mode: StreamMode = "hold"
    first: int = 100
    growth: float = 2.0
    most: int = 1000

    def next_check(self, covered: int) -> int:
        """Give the length of answer at which a check is due, when `covered` is judged."""
        if not covered:
            return self.first
        grown = int(covered * self.growth)
        return min(max(grown, covered + 1), covered + self.most)


@dataclass(frozen=True)
class Passages:
    """In what pieces a long text is judged, too: of at most `size` characters, overlapping.

    `handicap` is taken off their margins, in logits: of many passages the worst one counts, and
    some harmless one is always above a threshold for whole texts. `scorers` are patterns of the
    names of scorers that need it, because it costs several times the judging of the whole. A
    cascade needs it where one of its scorers does, for either may be the one that passes a text.
    """

    size: int = 200
    handicap: float = 0.75
    scorers: tuple[str, ...] = ("starter@*",)

    def serve(self, scorer: str) -> bool:
        """Tell whether texts are to be cut for the scorer of a name."""
        names = (scorer, *scorer.split(">"))
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.scorers)


FAIL_CLOSED: Mapping[Direction, OnFailure] = {"prompt": "closed", "response": "closed"}


@dataclass(frozen=True)
class Profile:
    """How one group of callers is served; a book holds one for each name.

    `policies` are mandatory: a caller may add to them, never take away. `thresholds` overrides
    the policies' own, whatever is calibrated, keyed by (policy id, direction); `max_thresholds`
    lowers what is in force where it is higher. What follows is for chat:

    - `on_block`: a blocked prompt is an error, or a 200 that carries `refusal` as the answer;
      `native` is what the API itself does.
    - `refusal_field`: where a message has the refusal; not every client shows its own field.
    - `prompt_check`: the model is called after the prompt's verdict, or at the same time.
    - `history`: beside the newest turn, judge nothing older, the last `window` user turns joined
      into one prompt, or all turns.
    - `instructions`: whether system turns and the definitions of tools are judged too.
    - `unscreenable`: images, audio and files are refused, or passed without being judged.
    - `references`: what went through here is remembered, so that requests may refer to it, or
      each such reference can't be screened.

    With `normalise`, text that is written to be missed is judged in each way in which it may be
    read, five at most, and the worst score counts. What is passed on is what came. With `passages`,
    long text is judged in passages as well.

    `unsupported_language` is for text in a language that the scorer is not said to know: it is
    judged with a warning, or refused. A profile that only monitors stops nothing, so it warns.
    """

    name: str
    policies: tuple[str, ...]
    description: str = ""
    mode: Mode = "enforce"
    on_failure: Mapping[Direction, OnFailure] = field(default_factory=lambda: FAIL_CLOSED)
    thresholds: Mapping[tuple[str, Direction], float] = field(default_factory=dict)
    max_thresholds: Mapping[tuple[str, Direction], float] = field(default_factory=dict)
    monitored: frozenset[str] = frozenset()
    on_block: OnBlock = "native"
    refusal: str = "I can't help with that."
    refusal_field: RefusalField = "refusal"
    prompt_check: PromptCheck = "before"
    history: History = "window"
    window: int = 3
    instructions: Instructions = "judge"
    unscreenable: Unscreenable = "refuse"
    references: References = "resolve"
    streaming: Streaming = Streaming()
    normalise: bool = True
    passages: Passages | None = Passages()
    unsupported_language: UnsupportedLanguage = "warn"

    @property
    def refuses_unsupported_language(self) -> bool:
        """Tell whether text in such a language is stopped without being judged."""
        return self.unsupported_language == "refuse" and self.mode == "enforce"

    def threshold(self, policy: Policy, direction: Direction, scorer: str) -> float:
        """Give the probability from which on a policy is violated.

        It is the profile's own, else the one calibrated for this scorer, else the policy's
        default, and never above the profile's `max_thresholds`.
        """
        fitted = policy.calibration(scorer, direction)
        return self.override(
            policy.id, direction, fitted.threshold if fitted else policy.thresholds[direction]
        )

    def override(self, policy: str, direction: Direction, threshold: float) -> float:
        """Give the threshold that counts in place of a calibrated one or a policy's default."""
        at = policy, direction
        return min(self.thresholds.get(at, threshold), self.max_thresholds.get(at, 1.0))
