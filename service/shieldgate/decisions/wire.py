"""What the wire types of both routes share."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shieldgate.openai.text import Text
from shieldgate.policy import Calibration
from shieldgate.types import Judgement

Name = Annotated[Text, StringConstraints(max_length=200)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Wire(BaseModel):
    """A part of a request or reply."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Evidence(Wire):
    """By what a question was judged, beside the contract.

    `raw_probability` is the scorer's own word; `calibrated` says whether the answer's probability
    was fitted for this scorer. `policy` is the policy of the book that was asked for, and its
    threshold in the profile says whether it is `violated`; the three are null for a question in
    the caller's words.
    """

    raw_probability: Probability
    calibrated: bool
    policy: str | None
    threshold: Probability | None
    violated: bool | None

    @classmethod
    def of(cls, judgement: Judgement, *, known: bool) -> Self:
        """Write a judgement out; `known` says that its policy is the book's."""
        return cls(
            raw_probability=Calibration(judgement.threshold).probability(judgement.score.margin),
            calibrated=judgement.calibrated,
            policy=judgement.policy if known else None,
            threshold=judgement.threshold if known else None,
            violated=judgement.violated if known else None,
        )
