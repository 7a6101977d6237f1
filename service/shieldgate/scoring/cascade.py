"""A scorer made of two: the first, a cheap one, decides where it is sure, and the second the rest.

Where the first is sure stands in a file, which `shieldgate calibrate --cascade` writes: for each
policy and direction a band of the first one's margins in which it is not. All scores are on the
second one's scale, so that its calibrations and thresholds hold for the whole.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from shieldgate.errors import ConfigurationError
from shieldgate.policy import Calibration, Policy, PolicyBook
from shieldgate.scoring import turn
from shieldgate.scoring.interfaces import Identity, OpenScorer
from shieldgate.settings import OF_ONE_MODEL, Device, Dtype, EngineKind, ScoringSettings
from shieldgate.types import Direction, Exchange, Score
from shieldgate.yaml_document import Document, reason

# How many prompts with growing answers, and how many answers to each, are remembered.
_PROMPTS = 1024
_ANSWERS = 32

Margin = Annotated[float, Field(allow_inf_nan=False)]

log = structlog.get_logger(__name__)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sure(_Entry):
    """The first scorer is sure of margins `beyond` this one; what counts then is `margin`.

    Both are in logits, `beyond` on its own scale and `margin` on the second scorer's.
    """

    beyond: Margin
    margin: Margin


class Band(_Entry):
    """Where the first scorer leaves one policy and direction to the second.

    `guideline` is the digest of what was asked. `thresholds` are the lowest and the highest one
    that it was found for, as margins of the second scorer. A side that is None has no end.
    """

    guideline: str
    thresholds: tuple[Margin, Margin]
    safe: Sure | None = None
    harmful: Sure | None = None
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.thresholds
        ends = [side.beyond for side in (self.safe, self.harmful) if side]
        margins = [self.safe.margin if self.safe else low, low, high]
        margins += [self.harmful.margin] if self.harmful else []
        if (
            ends != sorted(ends)
            or margins != sorted(margins)
            or (self.safe and self.safe.margin == low)
        ):
            raise PydanticCustomError(
                "order",
                "is out of order: safe comes before harmful, and the thresholds lie between their "
                "margins; calibrate again",
            )
        return self

    def score(self, first: Score) -> Score | None:
        """Give the score that counts where the first scorer is sure, on the second's scale."""
        if self.safe and first.margin < self.safe.beyond:
            margin = self.safe.margin
        elif self.harmful and first.margin > self.harmful.beyond:
            margin = self.harmful.margin
        else:
            return None
        return Score(margin, first.windows, first.prompt_omitted)


class FirstScorer(_Entry):
    """The cheap scorer; what is None is as the settings say for the other one."""

    model: str = Field(min_length=1)
    revision: str | None = None
    cascade: Path | None = None
    template: str | None = None
    device: Device | None = None
    dtype: Dtype | None = None
    tokenizer: str | None = None
    engine: EngineKind | None = None
    served_model: str | None = None
    scorer_name: str | None = None
    languages: str | None = None

    def settings(self, others: ScoringSettings) -> ScoringSettings:
        """Give the settings to open it with; what is said of servers is for those of the other."""
        changes = {**OF_ONE_MODEL, "cascade": None} | self.model_dump(exclude_none=True)
        first = others.model_copy(update=changes)
        if not {*first.servers} - {*others.servers}:
            return first
        own = {
            "engine": self.engine or "auto",
            "model_key": others.cascade_model_key,
            "cascade_model_key": None,
        }
        return first.model_copy(update=own)


class CascadeFile(_Entry):
    """A whole file; `scorers` are the names of the two that the bands were found for."""

    first: FirstScorer
    scorers: tuple[str, str]
    bands: dict[str, dict[Direction, Band]]

    def outgrown(self, book: PolicyBook) -> list[str]:
        """List the policies with a threshold in force that their band was not found for."""
        outside = []
        for id, by_direction in self.bands.items():
            for direction, band in by_direction.items() if id in book.policies else ():
                low, high = thresholds_in_force(book, book.policies[id], direction, self.scorers[1])
                # The file has them rounded.
                if low < band.thresholds[0] - 1e-3 or high > band.thresholds[1] + 1e-3:
                    outside.append(f"{id} ({direction})")
        return outside


def load_cascade(path: Path) -> CascadeFile:
    """Read a cascade; raise ConfigurationError with a line for each problem."""
    document = Document(path)
    document.read()
    if document.readable:
        try:
            read = CascadeFile.model_validate(document.content)
        except ValidationError as refused:
            for error in refused.errors(include_url=False, include_input=False):
                document.refuse(error["loc"], reason(error, CascadeFile.model_fields))
        else:
            inner = read.first.cascade
            if inner is None:
                return read
            first = read.first.model_copy(update={"cascade": path.parent / inner})
            return read.model_copy(update={"first": first})
    raise ConfigurationError("\n".join(document.report()))


def guideline_digest(guideline: str) -> str:
    """Identify what is asked under a policy in one direction."""
    return hashlib.sha256(guideline.encode()).hexdigest()[:12]


def thresholds_in_force(
    book: PolicyBook, policy: Policy, direction: Direction, scorer: str
) -> tuple[float, float]:
    """Give the lowest and highest threshold of any profile and of the policy, as margins.

    Policies of the same words share their scores, so theirs count, too.
    """
    margins = []
    for one in book.policies.values():
        if one.guidelines[direction] == policy.guidelines[direction]:
            fitted = one.calibration(scorer, direction) or Calibration(one.thresholds[direction])
            margins.append(fitted.margin(fitted.threshold))
            margins += [
                fitted.margin(profile.threshold(one, direction, scorer))
                for profile in book.profiles.values()
                if one.id in profile.policies
            ]
    return min(margins), max(margins)


class CascadeObserver(Protocol):
    """Sees who decides."""

    def cascaded(self, *, sure: int, asked: int) -> None:
        """Take for how many policies the first scorer was sure, and for how many it was not."""


class Cascade:
    """Asks a cheap scorer first, and a second one where the first is not sure; an OpenScorer.

    A policy that has no band, or was worded otherwise when it was found, is the second one's. So
    is a growing answer, under each policy, from the first time on that it was: its margins would
    jump otherwise. What either scorer raises is raised: nobody stands in for the other.
    """

    def __init__(
        self,
        first: OpenScorer,
        second: OpenScorer,
        file: CascadeFile,
        observer: CascadeObserver | None = None,
    ) -> None:
        """Raise ConfigurationError where the bands were found for other scorers."""
        found = first.identity.name, second.identity.name
        if found != file.scorers:
            raise ConfigurationError(
                f"The cascade was calibrated for {file.scorers[0]} before {file.scorers[1]}, and "
                f"these are {found[0]} before {found[1]}. Score the same rows with both, and run "
                "'shieldgate calibrate --cascade'."
            )
        self._first = first
        self._second = second
        self._observer = observer
        self._names = file.bands
        self._bands = {
            (direction, band.guideline): band
            for by_direction in file.bands.values()
            for direction, band in by_direction.items()
        }
        self._growing = _GrowingAnswers()
        self.identity = _identity(first.identity, second.identity, self._bands)

    @property
    def available(self) -> bool:
        """Tell whether both can score."""
        return self._first.available and self._second.available

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange under each policy; raise what the scorer that is asked raises."""
        digests = [guideline_digest(p.guidelines[exchange.direction]) for p in policies]
        before = self._growing.asked(exchange)
        bands = {
            number: band
            for number, digest in enumerate(digests)
            if (band := self._bands.get((exchange.direction, digest))) and digest not in before
        }
        scores: dict[int, Score] = {}
        if bands:
            found = await self._first.score(exchange, [policies[number] for number in bands])
            for (number, band), score in zip(bands.items(), found, strict=True):
                if (sure := band.score(score)) is not None:
                    scores[number] = sure
        rest = [number for number in range(len(policies)) if number not in scores]
        if self._observer and turn.caller.get() != turn.BACKGROUND:
            self._observer.cascaded(sure=len(scores), asked=len(rest))
        self._growing.keep(exchange, before.union(digests[number] for number in rest))
        if rest:
            asked = await self._second.score(exchange, [policies[number] for number in rest])
            scores |= dict(zip(rest, asked, strict=True))
        return [scores[number] for number in range(len(policies))]

    async def check(self, policies: Iterable[Policy]) -> None:
        """Raise ConfigurationError where a guideline leaves no room; say what has no band."""
        policies = list(policies)
        await self._first.check(policies)
        await self._second.check(policies)
        reworded = [
            policy.id
            for policy in policies
            if any(
                band.guideline != guideline_digest(policy.guidelines[direction])
                for direction, band in self._names.get(policy.id, {}).items()
            )
        ]
        if reworded:
            log.warning(
                "reworded since the cascade was calibrated: the second scorer judges it all",
                policies=", ".join(reworded),
            )


def _identity(
    first: Identity, second: Identity, bands: Mapping[tuple[Direction, str], Band]
) -> Identity:
    """Identify both scorers and where the first is sure; named `FIRST#DIGEST>SECOND`."""
    parts = [first.key, second.key]
    for (direction, guideline), band in sorted(bands.items()):
        sides = band.model_dump_json(include={"safe", "harmful"})
        parts.append(f"{direction}:{guideline}:{sides}")
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Identity(
        name=f"{first.name}#{digest[:6]}>{second.name}",
        weights=digest,
        dtype=second.dtype,
        template=second.template,
        windows=second.windows,
        languages=both_languages(first.languages, second.languages),
    )


def both_languages(
    first: Sequence[str] | None, second: Sequence[str] | None
) -> Sequence[str] | None:
    """Give the languages that both are said to know: either may be the one that decides."""
    if first is None or second is None:
        return second if first is None else first
    return [language for language in second if language in first]


class _GrowingAnswers:
    """Under which guidelines a growing answer went to the second scorer, by digests of texts."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[bytes, OrderedDict[tuple[int, bytes], frozenset[str]]] = (
            OrderedDict()
        )

    def asked(self, exchange: Exchange) -> frozenset[str]:
        """Give the guidelines under which a beginning of this answer went there."""
        prompt = _digest(exchange.prompt)
        found = (self._prompts[prompt][at] for at in self._beginnings(exchange))
        return frozenset[str]().union(*found)

    def keep(self, exchange: Exchange, guidelines: frozenset[str]) -> None:
        """Remember an answer while it grows, in place of its beginnings."""
        prompt, response = _digest(exchange.prompt), exchange.response
        for at in self._beginnings(exchange):
            del self._prompts[prompt][at]
        if response is None or not exchange.growing or not guidelines:
            return
        answers = self._prompts.setdefault(prompt, OrderedDict())
        answers[len(response), _digest(response)] = guidelines
        self._prompts.move_to_end(prompt)
        if len(answers) > _ANSWERS:
            answers.popitem(last=False)
        if len(self._prompts) > _PROMPTS:
            self._prompts.popitem(last=False)

    def _beginnings(self, exchange: Exchange) -> list[tuple[int, bytes]]:
        response = exchange.response
        if response is None:
            return []
        return [
            (length, digest)
            for length, digest in self._prompts.get(_digest(exchange.prompt), ())
            if length <= len(response) and _digest(response[:length]) == digest
        ]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
