"""Wire types of our own routes; also what `shieldgate score --json` prints."""

from dataclasses import fields
from typing import Annotated, Any, Self, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    StringConstraints,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shieldgate.errors import ScoringError
from shieldgate.openai.text import Text
from shieldgate.policy import (
    Policy,
    PolicyBook,
    Profile,
    ThresholdInForce,
    threshold_in_force,
)
from shieldgate.scoring import Identity
from shieldgate.types import DIRECTIONS, Action, Direction, Exchange, Explanation, Verdict

Name = Annotated[Text, StringConstraints(max_length=200)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExchangeIn(_Wire):
    """A prompt, or a response together with its prompt."""

    prompt: Text
    response: Text | None = None

    def exchange(self) -> Exchange:
        """Give what is judged."""
        return Exchange(self.prompt, self.response)


class ScreenRequest(_Wire):
    """One exchange (`prompt`, `response`) or several (`exchanges`), under one profile.

    `policies` are judged beside those that the profile demands; each is named by its id, or by the
    part after the family where only one policy has it. With `explain` the reply says of one
    exchange which words carried the scores of the policies that it violates.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "How do I bake a sourdough loaf?"},
                {
                    "exchanges": [
                        {"prompt": "What do you think of my loaf?", "response": "It looks great."},
                        {"prompt": "How hot should the oven be?"},
                    ],
                    "profile": "strict",
                },
            ]
        }
    )

    prompt: Text | None = None
    response: Text | None = None
    exchanges: Annotated[list[ExchangeIn], Field(min_length=1)] | None = None
    profile: Name | None = None
    policies: list[Name] = Field(default_factory=list, max_length=100)
    explain: StrictBool = False

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        single = self.prompt is not None or self.response is not None
        if single == (self.exchanges is not None):
            raise PydanticCustomError("shape", "Give either a prompt or a list of exchanges")
        if self.response is not None and self.prompt is None:
            raise PydanticCustomError("shape", "A response is judged together with its prompt")
        return self

    def all(self) -> list[Exchange]:
        """List what is to be judged."""
        if self.exchanges is not None:
            return [e.exchange() for e in self.exchanges]
        return [Exchange(self.prompt or "", self.response)]


class PolicyResult(_Wire):
    """One policy's part of a verdict.

    `margin` is the scorer's own answer in logits, that to a passage less its handicap. `calibrated`
    tells whether the probability was fitted for this scorer; `windows` counts the texts scored:
    readings, passages, and windows of what is longer than the context; `prompt_omitted` the
    characters of a very long prompt that were not shown beside its response.
    """

    probability: float = Field(ge=0, le=1)
    margin: float
    threshold: float = Field(ge=0, le=1)
    violated: bool
    calibrated: bool
    windows: int
    prompt_omitted: int


class Failure(_Wire):
    """Why nothing was judged."""

    code: str
    message: str


class Explained(_Wire):
    """Explanations by policy, or why there are none; the verdict stands in any case."""

    policies: dict[str, Explanation] = {}
    error: Failure | None = None

    @classmethod
    def failed(cls, failure: ScoringError) -> Self:
        """Say why there is none."""
        return cls(error=Failure(code=failure.code, message=str(failure)))


class ExchangeResult(_Wire):
    """The verdict on one exchange; `error` and no policies where it passed unjudged.

    There is an `explanation` only where one was asked for.

    `unsupported_language` is a warning: in which language, as an ISO 639 code, a part of the text
    seems to be that the scorer is not said to know, so that no violation means little.
    """

    direction: Direction
    action: Action
    violated: list[str]
    policies: dict[str, PolicyResult]
    unsupported_language: str | None
    error: Failure | None
    milliseconds: float
    explanation: Explained | None = Field(None, exclude_if=lambda value: value is None)

    @classmethod
    def of(
        cls,
        verdict: Verdict,
        seconds: float,
        failure: ScoringError | None = None,
        explanation: Explained | None = None,
    ) -> Self:
        """Write a verdict out."""
        return cls(
            direction=verdict.direction,
            action=verdict.action,
            violated=list(verdict.violated),
            policies={
                j.policy: PolicyResult(
                    probability=j.probability,
                    margin=j.score.margin,
                    threshold=j.threshold,
                    violated=j.violated,
                    calibrated=j.calibrated,
                    windows=j.score.windows,
                    prompt_omitted=j.score.prompt_omitted,
                )
                for j in verdict.judgements
            },
            unsupported_language=verdict.unsupported_language,
            error=Failure(code=failure.code, message=str(failure)) if failure else None,
            milliseconds=round(seconds * 1000, 3),
            explanation=explanation,
        )


class ScorerInfo(_Wire):
    """What the margins depend on besides the prompt, and which languages it is said to know.

    `languages` are ISO 639 codes, or null where nobody says.
    """

    name: str
    weights: str
    dtype: str
    template: str
    windows: str
    languages: list[str] | None

    @classmethod
    def of(cls, identity: Identity) -> Self:
        """Write an identity out."""
        return cls(
            name=identity.name,
            weights=identity.weights,
            dtype=identity.dtype,
            template=identity.template,
            windows=identity.windows,
            languages=None if identity.languages is None else list(identity.languages),
        )


class ScreenReply(_Wire):
    """The results in the order of the exchanges; `scorer` is null while none is loaded."""

    scorer: ScorerInfo | None
    policy_book: str
    profile: str
    results: list[ExchangeResult]
    milliseconds: float


class CalibrationInfo(_Wire):
    """What was fitted for a scorer; `provenance` is empty for who may not see it."""

    threshold: float
    temperature: float
    bias: float
    provenance: dict[str, Any]


class PolicyInfo(_Wire):
    """One policy as it is in force; `calibration` is what holds for the scorer that is loaded."""

    id: str
    title: str
    openai: list[str]
    guidelines: dict[Direction, str]
    thresholds: dict[Direction, float]
    calibrated_for: dict[str, list[Direction]]
    calibration: dict[Direction, CalibrationInfo]

    @classmethod
    def of(cls, policy: Policy, scorer: str, provenance: bool) -> Self:
        """Write a policy out, with the `provenance` of calibrations or without."""
        calibrated: dict[str, list[Direction]] = {}
        for name, direction in policy.calibrations:
            calibrated.setdefault(name, []).append(direction)
        return cls(
            id=policy.id,
            title=policy.title,
            openai=list(policy.openai),
            guidelines=dict(policy.guidelines),
            thresholds=dict(policy.thresholds),
            calibrated_for=calibrated,
            calibration={
                direction: CalibrationInfo(
                    threshold=fitted.threshold,
                    temperature=fitted.temperature,
                    bias=fitted.bias,
                    provenance=dict(fitted.provenance) if provenance else {},
                )
                for direction in DIRECTIONS
                if (fitted := policy.calibration(scorer, direction))
            },
        )


_BY_POLICY = ("thresholds", "max_thresholds")


def _profile_fields() -> dict[str, Any]:
    """List the fields of a profile with their types, as far as they are for others to see."""
    types = get_type_hints(Profile)
    named = {field.name: types[field.name] for field in fields(Profile)}
    # The work of `join`, which no book has.
    del named["monitored"]
    # JSON has no pairs for keys.
    by_policy = dict.fromkeys(_BY_POLICY, dict[str, dict[Direction, float]])
    return {name: (type_, ...) for name, type_ in (named | by_policy).items()}


_ProfileInfo = create_model(
    "ProfileInfo", __base__=_Wire, __doc__="One profile as it is in force.", **_profile_fields()
)


def _profile(profile: Profile) -> BaseModel:
    values = {name: getattr(profile, name) for name in _ProfileInfo.model_fields}
    for name in _BY_POLICY:
        by_policy: dict[str, dict[Direction, float]] = {}
        for (policy, direction), threshold in values[name].items():
            by_policy.setdefault(policy, {})[direction] = threshold
        values[name] = by_policy
    return _ProfileInfo(**values)


# Any, because OpenAPI would describe a Profile beside it, which never goes out.
ProfileInfo = Annotated[Any, PlainSerializer(_profile, return_type=_ProfileInfo)]


def _own_fields(profile: Profile) -> list[str]:
    """List what a profile says other than one that leaves it out."""
    bare = Profile(profile.name, profile.policies)
    names = _ProfileInfo.model_fields
    return [name for name in names if getattr(profile, name) != getattr(bare, name)]


class PoliciesReply(_Wire):
    """The policy book in force.

    `in_force` has the thresholds of each profile for `scorer`, which is empty while none is loaded;
    `own` the fields in which a profile differs from one that says only its policies.
    """

    version: str
    scorer: str
    policies: list[PolicyInfo]
    profiles: list[ProfileInfo]
    in_force: dict[str, dict[str, dict[Direction, ThresholdInForce]]]
    own: dict[str, list[str]]

    @classmethod
    def of(cls, book: PolicyBook, scorer: str = "", *, provenance: bool = True) -> Self:
        """Write a book out; `scorer` is the name under which calibrations are filed."""
        return cls(
            version=book.version,
            scorer=scorer,
            policies=[
                PolicyInfo.of(policy, scorer, provenance) for policy in book.policies.values()
            ],
            profiles=list(book.profiles.values()),
            in_force={
                profile.name: {
                    policy.id: {
                        d: threshold_in_force(profile, policy, d, scorer) for d in DIRECTIONS
                    }
                    for policy in book.find(profile.policies)
                }
                for profile in book.profiles.values()
            },
            own={profile.name: _own_fields(profile) for profile in book.profiles.values()},
        )


class Status(_Wire):
    """How the service is."""

    status: str
