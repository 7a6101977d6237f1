"""What scores mean: those of marked and unmarked texts of one model, by length."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, stdev

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.files import replace_file
from shieldgate.statistics import Estimate, clopper_pearson
from shieldgate.worker.watermark.keys import WatermarkKeys

SHORTEST = 25  # scored tokens
FEWEST = 20  # texts of a length; with fewer, nothing is said of it


class LengthScores(BaseModel):
    """Scores of texts cut to as many scored tokens, marked ones and others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(ge=1)
    unmarked: tuple[float, ...] = Field(min_length=FEWEST)
    marked: tuple[float, ...]

    def p_value(self, score: float) -> float:
        """Give the chance that an unmarked text of this length has this score or a higher one."""
        return _p_value(score, self.unmarked)

    def false_positives(self, rate: float) -> Estimate:
        """Estimate how many unmarked texts are taken for marked, each judged by the others."""
        texts = self.unmarked
        found = (
            _p_value(score, texts[:at] + texts[at + 1 :]) <= rate for at, score in enumerate(texts)
        )
        return clopper_pearson(sum(found), len(texts))

    def found(self, rate: float) -> Estimate:
        """Estimate how many marked texts are found, where `rate` of the unmarked ones may be."""
        found = (self.p_value(score) <= rate for score in self.marked)
        return clopper_pearson(sum(found), len(self.marked))


class Calibration(BaseModel):
    """Scores by length, with the model, keys and sampling that they came from.

    `tokenizer` is the digest of its file, `keys` the fingerprint of the watermark's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    generator: str
    revision: str | None = None
    tokenizer: str
    keys: str
    temperature: float
    top_p: float
    top_k: int
    seed: int
    lengths: tuple[LengthScores, ...] = Field(min_length=1)

    def judge(self, scores: Sequence[float]) -> "Judgement":
        """Judge a text by the scores of its tokens.

        It is compared with the longest texts that are no longer: their scores scatter more, so
        the p-value is rather too large.
        """
        score = fmean(scores) if scores else None
        shorter = [at for at in self.lengths if at.tokens <= len(scores)]
        if not shorter or score is None:
            return Judgement(len(scores), score)
        against = max(shorter, key=lambda at: at.tokens)
        return Judgement(len(scores), score, against.p_value(score), against)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a text does: `tokens` that can carry a mark, their mean score, its p-value.

    `against` is what it was compared with. Both are None where the text is too short.
    """

    tokens: int
    score: float | None
    p_value: float | None = None
    against: LengthScores | None = None


def gather(
    unmarked: Sequence[Sequence[float]], marked: Sequence[Sequence[float]]
) -> list[LengthScores]:
    """Cut texts, given by the scores of their tokens, to lengths of 25, 50, 100 and so on.

    Lengths that too few unmarked texts have are left out.
    """
    found: list[LengthScores] = []
    tokens = SHORTEST
    while True:
        cut = [
            [round(fmean(text[:tokens]), 6) for text in texts if len(text) >= tokens]
            for texts in (unmarked, marked)
        ]
        if len(cut[0]) < FEWEST:
            return found
        found.append(LengthScores(tokens=tokens, unmarked=tuple(cut[0]), marked=tuple(cut[1])))
        tokens *= 2


def _p_value(score: float, unmarked: Sequence[float]) -> float:
    """Give the chance that one more draw is as high, by Student's t for a new observation.

    A score is a mean over hundreds of g-values or more, so it is near enough normal; its mean and
    deviation come from few texts, which the t distribution allows for.
    """
    texts = len(unmarked)
    deviation = stdev(unmarked)
    if not deviation:  # texts that are all alike say nothing of others
        return 1.0
    t = (score - fmean(unmarked)) / (deviation * math.sqrt(1 + 1 / texts))
    freedom = texts - 1
    # As a normal deviate (Wallace, 1959); its error is below a thousandth from 19 degrees on.
    z = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return NormalDist().cdf(-math.copysign(z, t))


def load_calibration(path: Path, keys: WatermarkKeys) -> Calibration:
    """Read the calibration of these keys; raise ConfigurationError."""
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except OSError as refused:
        raise ConfigurationError(
            f"{path}: can't be read: {refused.strerror}. 'shieldgate watermark calibrate' "
            "writes it."
        ) from None
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{path}: this is no calibration of a watermark: {where + ': ' if where else ''}"
            f"{first['msg']}. 'shieldgate watermark calibrate' writes one."
        ) from None
    if found.keys != keys.fingerprint:
        raise ConfigurationError(
            f"{path}: this was calibrated with other keys ({found.keys}; those given are "
            f"{keys.fingerprint}). Give the keys it was made with, or calibrate again."
        )
    return found


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration, in one step; raise ConfigurationError."""
    content: Mapping[str, object] = calibration.model_dump(mode="json")
    try:
        replace_file(path, (json.dumps(content) + "\n").encode())
    except OSError as refused:
        raise ConfigurationError(f"{path}: can't be written: {refused.strerror}.") from None
