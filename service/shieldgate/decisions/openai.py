"""Wire types of `POST /v1/decisions`, OpenAI's Decisions, as its client (3.57) declares them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, StringConstraints
from pydantic_core import PydanticCustomError

from shieldgate.decisions.questions import MOST_QUESTIONS, Question
from shieldgate.decisions.text import json_text
from shieldgate.decisions.wire import Evidence, Name, Probability, Wire
from shieldgate.openai.chat import writable
from shieldgate.openai.text import Text
from shieldgate.types import Judgement

Value = Annotated[Text, StringConstraints(max_length=2_000)] | StrictBool


def _instructions(given: Any) -> Any:
    """Read instructions, which may come in parts, as one text."""
    if not isinstance(given, list):
        return given
    return "\n".join(_part(part) for part in given)


def _part(part: Any) -> str:
    text = json_text(writable(part))
    if text is None and isinstance(part, dict) and part.get("type") == "input_text":
        text = part.get("text") if set(part) == {"type", "text"} else None
    if not isinstance(text, str):
        raise PydanticCustomError(
            "input_part",
            "Instructions are a string, or parts of the types 'input_text' and 'input_json'; no "
            "scorer here can read an image",
        )
    return text


Instructions = Annotated[
    Text,
    BeforeValidator(_instructions, json_schema_input_type=Text | list[dict[str, Any]]),
]


class Predicate(Wire):
    """A statement about the input: how likely is it true."""

    type: Literal["predicate"]
    instructions: Instructions
    name: Name | None = None


class Option(Wire):
    """One option of a choice."""

    value: Value
    description: Text | None = None


class Choice(Wire):
    """Options, one of which fits the input."""

    type: Literal["choice"]
    instructions: Instructions
    choices: list[Option] = Field(min_length=2, max_length=255)
    name: Name | None = None

    @property
    def values(self) -> tuple[str | bool, ...]:
        """List the options."""
        return tuple(option.value for option in self.choices)


class Level(Wire):
    """One level of a scale."""

    label: Text
    description: Text | None = None


class Rating(Wire):
    """A scale, one level of which fits the input."""

    type: Literal["score"]
    instructions: Instructions
    levels: list[Level] = Field(min_length=2, max_length=255)
    name: Name | None = None


class DecisionRequest(Wire):
    """Questions about one input; `model` selects a profile where it names one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "default",
                    "input": "What do you think of my loaf?",
                    "questions": [
                        {"type": "predicate", "name": "harassment", "instructions": ""},
                        {"type": "predicate", "instructions": "The text asks for an opinion."},
                    ],
                }
            ]
        }
    )

    model: Name
    input: Annotated[
        Text | Annotated[list[Any], Field(min_length=1, max_length=10_000)],
        BeforeValidator(writable),
    ]
    questions: list[Annotated[Predicate | Choice | Rating, Field(discriminator="type")]] = Field(
        min_length=1, max_length=MOST_QUESTIONS
    )
    safety_identifier: Annotated[Text, StringConstraints(max_length=128)] | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_options: Any = None

    def asked(self) -> list[Question]:
        """List the questions."""
        return [
            Question(
                at=f"questions[{place}]",
                kind=q.type,
                name=q.name,
                instructions=q.instructions,
                options=q.values if isinstance(q, Choice) else (),
            )
            for place, q in enumerate(self.questions)
        ]


class PredicateAnswer(Evidence):
    """The probability that the answer is yes."""

    type: Literal["predicate"] = "predicate"
    name: str | None
    probability: Probability


class ValueProbability(Wire):
    """How probable one option is."""

    value: str | bool
    probability: Probability


class ChoiceAnswer(Evidence):
    """The more probable one of yes and no."""

    type: Literal["choice"] = "choice"
    name: str | None
    choice: str | bool
    confidence: Probability
    probabilities: list[ValueProbability]


class RefusalAnswer(Wire):
    """A question that the scorer can't answer."""

    type: Literal["refusal"] = "refusal"
    name: str | None


class _InputDetails(Wire):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class _OutputDetails(Wire):
    reasoning_tokens: int = 0


class Usage(Wire):
    """The tokens that the scorer computed for a request; it writes none."""

    input_tokens: int
    input_tokens_details: _InputDetails = _InputDetails()
    output_tokens: int = 0
    output_tokens_details: _OutputDetails = _OutputDetails()
    total_tokens: int


Answer = PredicateAnswer | ChoiceAnswer | RefusalAnswer


def answer(question: Question, judgement: Judgement | None, *, known: bool) -> Answer:
    """Write the answer to a question; without a judgement, that there is none."""
    if judgement is None:
        return RefusalAnswer(name=question.name)
    by = Evidence.of(judgement, known=known).model_dump()
    if question.kind == "predicate":
        return PredicateAnswer(name=question.name, probability=judgement.probability, **by)
    shares = question.shares(judgement.probability)
    most = max(shares)
    return ChoiceAnswer(
        name=question.name,
        choice=question.options[shares.index(most)],
        confidence=most,
        probabilities=[
            ValueProbability(value=value, probability=share)
            for value, share in zip(question.options, shares, strict=True)
        ],
        **by,
    )
