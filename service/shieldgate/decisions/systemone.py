"""Wire types of `POST /v1/systemone`, as vLLM (0.33) serves it and LiteLLM (1.110) asks it."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, ConfigDict, Field

from shieldgate.decisions.questions import MOST_QUESTIONS, Question
from shieldgate.decisions.wire import Evidence, Name, Probability, Wire
from shieldgate.openai.chat import writable
from shieldgate.openai.errors import field_path
from shieldgate.openai.text import Text
from shieldgate.types import Judgement

AnyJson = Annotated[Any, BeforeValidator(writable)]


def _words(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


class Criteria(Wire):
    """What makes the answer yes, and what no."""

    true: AnyJson = None
    false: AnyJson = None

    def words(self) -> list[str]:
        """Write them out."""
        sides = (("true", self.true), ("false", self.false))
        return [f"Answer {side} when: {_words(rule)}" for side, rule in sides if rule is not None]


class Noul(Wire):
    """A question that is answered by yes or no."""

    type: Literal["noul"]
    instructions: AnyJson = None
    criteria: Criteria | None = None

    def question(self, at: str, name: str, before: str) -> Question:
        """Give what is asked."""
        given = [] if self.instructions is None else [_words(self.instructions)]
        words = [*given, *(self.criteria.words() if self.criteria else ())]
        return Question(at, "predicate", name, "\n".join(filter(None, (before, *words))))


class Choice(Wire):
    """Options, one of which fits the state."""

    type: Literal["choice"]
    instructions: AnyJson = None
    criteria: dict[Name, AnyJson] = Field(min_length=1, max_length=255)

    def question(self, at: str, name: str, before: str) -> Question:
        """Give what is asked."""
        given = [] if self.instructions is None else [_words(self.instructions)]
        words = "\n".join(filter(None, (before, *given)))
        return Question(at, "choice", name, words, tuple(self.criteria))


class Rating(Wire):
    """A scale, one level of which fits the state."""

    type: Literal["score"]
    instructions: AnyJson = None
    criteria: list[AnyJson] = Field(min_length=1, max_length=10)

    def question(self, at: str, name: str, before: str) -> Question:
        """Give what is asked."""
        return Question(at, "score", name, before)


class SystemOneRequest(Wire):
    """Questions about one state; `model` selects a profile where it names one.

    `instructions` stand before those of each question. What tunes another server's engine is
    taken, and ignored.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "state": "What do you think of my loaf?",
                    "questions": {
                        "harassment": {"type": "noul"},
                        "opinion": {"type": "noul", "instructions": "Is an opinion asked for?"},
                    },
                }
            ]
        }
    )

    model: Name | None = None
    state: AnyJson
    questions: dict[Name, Annotated[Noul | Choice | Rating, Field(discriminator="type")]] = Field(
        min_length=1, max_length=MOST_QUESTIONS
    )
    instructions: Text | None = None
    images: list[Any] | None = None
    audio: list[Any] | None = None
    videos: list[Any] | None = None
    assets: dict[str, Any] | None = None
    cache_salt: Any = None
    priority: Any = None
    request_id: Any = None
    chat_template_kwargs: Any = None

    @property
    def unscreenable(self) -> list[str]:
        """List the fields that hold anything but text."""
        return [name for name in ("images", "audio", "videos", "assets") if getattr(self, name)]

    def asked(self) -> list[Question]:
        """List the questions."""
        before = self.instructions or ""
        return [
            q.question(field_path(("questions", name)) or "", name, before)
            for name, q in self.questions.items()
        ]


class NoulAnswer(Evidence):
    """The probability that the answer is yes."""

    type: Literal["noul"] = "noul"
    noul: Probability


class ChoiceAnswer(Evidence):
    """The more probable one of yes and no."""

    type: Literal["choice"] = "choice"
    choice: str
    confidence: Probability
    probabilities: dict[str, Probability]


Answer = NoulAnswer | ChoiceAnswer


class Usage(Wire):
    """The tokens that the scorer computed for a request; it writes none."""

    input_tokens: int
    output_tokens: int = 0


def answer(question: Question, judgement: Judgement, *, known: bool) -> Answer:
    """Write the answer to a question."""
    by = Evidence.of(judgement, known=known).model_dump()
    if question.kind == "predicate":
        return NoulAnswer(noul=judgement.probability, **by)
    options = map(str, question.options)
    shares = dict(zip(options, question.shares(judgement.probability), strict=True))
    most = max(shares, key=shares.__getitem__)
    return ChoiceAnswer(choice=most, confidence=shares[most], probabilities=shares, **by)
