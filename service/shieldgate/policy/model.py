"""Policies, profiles and the book that holds them; frozen, pure, and where verdicts are decided.

The defaults here are those of the files, too: `schema` reads them off the classes, which are
therefore without slots.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from shieldgate.drift import ScoreHistogram
from shieldgate.errors import UnknownName
from shieldgate.types import DIRECTIONS, Action, Direction, Judgement, Score, Verdict

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


@dataclass(frozen=True, slots=True)
class Rules:
    """What an exchange is judged by: a profile and policies, out of one version of the book.

    Policies `beside` them are judged for a caller to see, and nothing follows from that.
    """

    book: str
    profile: Profile
    policies: tuple[Policy, ...]
    beside: tuple[Policy, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyBook:
    """All policies and profiles, as one immutable snapshot; `version` digests the content."""

    policies: Mapping[str, Policy]
    profiles: Mapping[str, Profile]
    version: str

    def expected_scores(self, scorer: str) -> dict[tuple[str, Direction], ScoreHistogram]:
        """Give the scores that are to be expected of a scorer, where that is known."""
        return {
            (policy.id, direction): fitted.scores
            for policy in self.policies.values()
            for direction in DIRECTIONS
            if (fitted := policy.calibration(scorer, direction)) and fitted.scores
        }

    def profile(self, name: str) -> Profile:
        """Look a profile up by name; raise UnknownName."""
        try:
            return self.profiles[name]
        except KeyError:
            raise UnknownName(_unknown("profile", name, self.profiles)) from None

    def meant(self, name: str | None, scorer: str) -> Profile | None:
        """Find the profile that a field `model` names; None where it names a model, or nothing.

        Such fields are for models first, and clients fill them in. Raises UnknownName for what is
        neither the `scorer` nor a model of OpenAI's, and so near to a profile's name that it was
        meant.
        """
        if name is None or name == scorer or name in self.profiles:
            return self.profiles.get(name or "")
        written = name.strip().lower()
        near = difflib.get_close_matches(written, self.profiles, 1, _NEAR)
        if near and not written.startswith(_MODERATION_MODELS):
            raise UnknownName(
                f"`model` names no profile; did you mean {near[0]!r}? Known: "
                f"{', '.join(sorted(self.profiles))}."
            )
        return None

    def rules(self, profile: Profile, asked: Sequence[str] = ()) -> Rules:
        """Put together what exchanges are judged by; raise UnknownName as `select` does."""
        return Rules(self.version, profile, self.select(profile, asked))

    def select(self, profile: Profile, asked: Sequence[str] = ()) -> tuple[Policy, ...]:
        """List the policies to judge: what was asked for, together with what is mandatory.

        Raises UnknownName, also where that makes no policy at all.
        """
        names = (*profile.policies, *asked)
        if not names:
            raise UnknownName(
                f"The profile {profile.name!r} has no policies and none was asked for, so there is "
                f"nothing to judge. Known: {', '.join(sorted(self.policies))}."
            )
        return self.find(names, profile.policies)

    def find(self, names: Iterable[str], near: Collection[str] = ()) -> tuple[Policy, ...]:
        """Look policies up, each once: by id, or by the part after the family where that is plain.

        Where several families have it, that of the ids `near` is meant. Raises UnknownName.
        """
        found = (self._policy(name, near) for name in names)
        return tuple({policy.id: policy for policy in found}.values())

    def _policy(self, name: str, near: Collection[str]) -> Policy:
        if name in self.policies:
            return self.policies[name]
        families = {id.partition("/")[0] for id in near}
        parts = {id: id.partition("/") for id in self.policies}
        ids = [id for id, (_, _, part) in parts.items() if part == name]
        ids = [id for id in ids if parts[id][0] in families] or ids
        if len(ids) > 1:
            raise UnknownName(
                f"Several policies are named {name!r}: {', '.join(ids)}. Name one by its whole id."
            )
        if not ids:
            short = (part for _, _, part in parts.values())
            raise UnknownName(_unknown("policy", name, self.policies, short))
        return self.policies[ids[0]]


# By the ratio of difflib: one letter too many, too few, wrong or swapped in six.
_NEAR = 0.7
_MODERATION_MODELS = ("omni-moderation", "text-moderation")


def decide(
    profile: Profile,
    scores: Sequence[tuple[Policy, Score]],
    direction: Direction,
    scorer: str,
) -> Verdict:
    """Turn scores into a verdict; `scorer` is the name under which calibrations are filed."""
    judgements = tuple(
        _judge(profile, policy, score, direction, scorer) for policy, score in scores
    )
    violated = {j.policy for j in judgements if j.violated}
    if not violated:
        action = Action.ALLOWED
    elif profile.mode == "monitor" or violated <= profile.monitored:
        action = Action.WOULD_BLOCK
    else:
        action = Action.BLOCKED
    return Verdict(direction, action, judgements)


def fail(profile: Profile, direction: Direction) -> Verdict:
    """Decide for an exchange that could not be scored, as the profile's `on_failure` says.

    A profile that only monitors stops nothing, so it fails open whatever it says.
    """
    opens = profile.mode == "monitor" or profile.on_failure[direction] == "open"
    return Verdict(direction, Action.FAILED_OPEN if opens else Action.FAILED_CLOSED, ())


def _judge(
    profile: Profile, policy: Policy, score: Score, direction: Direction, scorer: str
) -> Judgement:
    fitted = policy.calibration(scorer, direction)
    calibration = fitted or Calibration(policy.thresholds[direction])
    threshold = profile.threshold(policy, direction, scorer)
    probability = calibration.probability(score.margin)
    return Judgement(
        policy=policy.id,
        probability=probability,
        threshold=threshold,
        violated=probability >= threshold,
        calibrated=fitted is not None,
        score=score,
    )


def _unknown(kind: str, name: str, known: Iterable[str], short: Iterable[str] = ()) -> str:
    # What can't be a name may be a text in the wrong place.
    named = f"named {name!r}" if re.fullmatch(r"[\w./-]{1,80}", name) else "of that name"
    near = difflib.get_close_matches(name, [*known, *short], 1, _NEAR)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no {kind} {named}.{meant} Known: {', '.join(sorted(known))}."
