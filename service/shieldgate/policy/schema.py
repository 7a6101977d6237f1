"""What a policy file may say: pydantic models whose refusals are sentences for people."""

from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from shieldgate.drift import OUTERMOST, WIDTH
from shieldgate.openai.categories import CATEGORIES
from shieldgate.policy.model import (
    FAIL_CLOSED,
    Calibration,
    History,
    Instructions,
    Mode,
    OnBlock,
    OnFailure,
    Passages,
    Profile,
    PromptCheck,
    References,
    RefusalField,
    Streaming,
    StreamMode,
    Unscreenable,
    UnsupportedLanguage,
)
from shieldgate.types import DIRECTIONS, Direction
from shieldgate.yaml_document import suggest

T = TypeVar("T")


def _refusal(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence})


def _or_say(sentence: str) -> WrapValidator:
    """Replace whatever pydantic would say of a value by one sentence with its mend."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise _refusal(sentence) from None

    return WrapValidator(validate)


def _one_of(known: tuple[str, ...], kind: str) -> BeforeValidator:
    def validate(value: Any) -> Any:
        if value not in known:
            raise _refusal(f"unknown {kind}; {suggest(str(value), known)}")
        return value

    return BeforeValidator(validate)


def _or_off(value: Any) -> Any:
    """Let `off` stand for nothing."""
    if value == "off":
        return None
    if not isinstance(value, dict):
        raise _refusal(
            "must be off, or hold 'size', 'handicap' and 'scorers'; write 'passages: off'"
        )
    return value


def _spread(value: Any) -> Any:
    """Let one value stand for both directions."""
    return value if isinstance(value, dict) else dict.fromkeys(DIRECTIONS, value)


def _not_all_zero(value: list[float]) -> list[float]:
    if not any(value):
        raise ValueError
    return value


def _complete(value: dict[Direction, T]) -> dict[Direction, T]:
    for direction in DIRECTIONS:
        if direction not in value:
            raise _refusal(f"{direction!r} is missing; add a line for it")
    return value


Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1),
    _or_say("must be text, and not empty; write it out, in quotes if it looks like a number"),
]
Slug = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$"),
    _or_say(
        "must be lower-case letters, digits and single hyphens, such as 'self-harm'; rename it"
    ),
]
PolicyId = Annotated[str, _or_say("must be the id of a policy, such as 'shieldgemma/hate'")]
# 0 would flag every text. 1 stays: a probability rounds to 1.0 where a scorer is that sure.
Threshold = Annotated[
    float,
    Field(gt=0, le=1),
    _or_say("must be a number above 0 and at most 1, without quotes; 0.5 is a good start"),
]
Temperature = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False),
    _or_say("must be a number above 0; 1 leaves the scores as they are"),
]
Bias = Annotated[
    float,
    Field(allow_inf_nan=False),
    _or_say("must be a finite number; 0 leaves the scores as they are"),
]
Characters = Annotated[
    int,
    Field(ge=1),
    _or_say("must be a whole number of characters, at least 1; write 100, for example"),
]
# Of shorter ones each would be a word or two, and a long text thousands of them.
PassageSize = Annotated[
    int,
    Field(ge=80),
    _or_say("must be a whole number of characters, at least 80; 200 is a good start"),
]
Handicap = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    _or_say("must be a number of logits, at least 0; 0 judges a passage like a whole text"),
]
Growth = Annotated[
    float,
    Field(ge=1, allow_inf_nan=False),
    _or_say("must be a number of at least 1; 2 checks whenever the answer has doubled"),
]
Turns = Annotated[
    int,
    Field(ge=2, le=100),
    _or_say("must be a whole number of user turns, 2 to 100; for one, write 'history: latest'"),
]
# Of bins beyond that none is ever counted in.
Lowest = Annotated[
    float,
    Field(ge=-OUTERMOST, lt=OUTERMOST, multiple_of=WIDTH),
    _or_say("must be a margin in quarters of a logit; 'shieldgate calibrate' writes it"),
]
Counts = Annotated[
    list[Annotated[float, Field(ge=0, allow_inf_nan=False)]],
    Field(min_length=1, max_length=int(2 * OUTERMOST / WIDTH)),
    AfterValidator(_not_all_zero),
    _or_say("must be a list of numbers, not all 0; 'shieldgate calibrate' writes it"),
]
Category = Annotated[str, _one_of(CATEGORIES, "OpenAI category")]
ByDirection = dict[Annotated[Direction, _one_of(DIRECTIONS, "direction")], T]
Thresholds = dict[PolicyId, Annotated[ByDirection[Threshold], BeforeValidator(_spread)]]
Both = Annotated[ByDirection[T], AfterValidator(_complete)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ScoresEntry(_Entry):
    """The margins that are to be expected."""

    lowest: Lowest
    counts: Counts
    of: str = ""


class CalibrationEntry(_Entry):
    """What was fitted for one scorer and direction; `provenance` is free and says from what."""

    threshold: Threshold
    temperature: Temperature = Calibration.temperature
    bias: Bias = Calibration.bias
    provenance: dict[str, Any] = {}
    scores: ScoresEntry | None = None


class PolicyEntry(_Entry):
    """One policy; its key in the file is the second half of its id."""

    title: Text
    openai: list[Category] = []
    threshold: Annotated[Both[Threshold], BeforeValidator(_spread)] = Field(
        default={"prompt": 0.5, "response": 0.5}
    )
    guideline: Both[Text]
    calibrated: dict[Text, ByDirection[CalibrationEntry]] = {}


class StreamingEntry(_Entry):
    """When a growing answer is judged, and whether its text waits for that."""

    mode: Annotated[StreamMode, _one_of(get_args(StreamMode), "mode")] = Streaming.mode
    first: Characters = Streaming.first
    growth: Growth = Streaming.growth
    most: Characters = Streaming.most


class PassagesEntry(_Entry):
    """In what pieces a long text is judged, too."""

    size: PassageSize = Passages.size
    handicap: Handicap = Passages.handicap
    scorers: list[Text] = Field(default=list(Passages.scorers), min_length=1)


class ProfileEntry(_Entry):
    """One profile; policies are named by their whole id."""

    description: str = Profile.description
    policies: list[PolicyId] = Field(min_length=1)
    mode: Annotated[Mode, _one_of(get_args(Mode), "mode")] = Profile.mode
    on_failure: Annotated[
        Both[Annotated[OnFailure, _one_of(get_args(OnFailure), "way to fail")]],
        BeforeValidator(_spread),
    ] = dict(FAIL_CLOSED)
    thresholds: Thresholds = {}
    max_thresholds: Thresholds = {}
    on_block: Annotated[OnBlock, _one_of(get_args(OnBlock), "kind of block")] = Profile.on_block
    refusal: Text = Profile.refusal
    refusal_field: Annotated[RefusalField, _one_of(get_args(RefusalField), "field")] = (
        Profile.refusal_field
    )
    prompt_check: Annotated[PromptCheck, _one_of(get_args(PromptCheck), "order")] = (
        Profile.prompt_check
    )
    history: Annotated[History, _one_of(get_args(History), "kind of history")] = Profile.history
    window: Turns = Profile.window
    instructions: Annotated[
        Instructions, _one_of(get_args(Instructions), "way to take instructions")
    ] = Profile.instructions
    unscreenable: Annotated[Unscreenable, _one_of(get_args(Unscreenable), "way out")] = (
        Profile.unscreenable
    )
    references: Annotated[References, _one_of(get_args(References), "way to take references")] = (
        Profile.references
    )
    streaming: StreamingEntry = StreamingEntry()
    normalise: Annotated[bool, _or_say("must be true or false, without quotes")] = Profile.normalise
    passages: Annotated[PassagesEntry | None, BeforeValidator(_or_off)] = PassagesEntry()
    unsupported_language: Annotated[
        UnsupportedLanguage,
        _one_of(get_args(UnsupportedLanguage), "way to take unsupported languages"),
    ] = Profile.unsupported_language


class FileEntry(_Entry):
    """A whole file: policies of one family, or profiles, or both."""

    family: Slug = ""
    policies: dict[Slug, PolicyEntry] = {}
    profiles: dict[Slug, ProfileEntry] = {}
