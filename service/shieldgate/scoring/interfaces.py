"""The seam of scoring, and the engine behind the batcher."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shieldgate.policy import Policy
from shieldgate.scoring.pack import Pack
from shieldgate.types import DIRECTIONS, Exchange, Score


@dataclass(frozen=True, slots=True)
class Identity:
    """All that a margin depends on besides the exchange and the guideline.

    `name` is what people and policy files call the scorer (`starter@1f6c2a9b03de`): the model and
    the first digits of its weights' digest, and `+paper` where it asks in another format than
    `chat`. `template` is the digest of its prompt format. `windows` names the rule by which long
    content is split, as CONTEXT/OVERLAP/VERSION, both in tokens: `8192/256/v1`.

    `languages` are those that it is said to know, as ISO 639 codes, or None where nobody says; no
    margin depends on that.
    """

    name: str
    weights: str
    dtype: str
    template: str
    windows: str
    languages: Sequence[str] | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """Write the identity as one unambiguous string, for cache keys and headers of files."""
        return "|".join((self.weights, self.dtype, self.template, self.windows))


def calibrated_elsewhere(policies: Iterable[Policy], scorer: Identity) -> list[str]:
    """List the dtypes in which this scorer's calibrations were made, but for its own."""
    found = (p.calibration(scorer.name, direction) for p in policies for direction in DIRECTIONS)
    dtypes = {c.dtype for c in found if c is not None and c.dtype is not None}
    return sorted(dtypes - {scorer.dtype})


class Scorer(Protocol):
    """Judges exchanges; wrappers have the same shape, so they compose."""

    @property
    def identity(self) -> Identity:
        """Say what the scores depend on."""
        ...

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange under each policy, in their order.

        Raises ScoringError, or ConfigurationError where no such exchange could be scored under
        these policies. Any other exception counts as a defect: the client of a server translates
        those of its library.
        """
        ...


class OpenScorer(Scorer, Protocol):
    """A scorer as it is opened, which knows beforehand what policies it can't judge."""

    @property
    def available(self) -> bool:
        """Tell whether it can score now; a scorer elsewhere may be away for a while."""
        ...

    async def check(self, policies: Iterable[Policy]) -> None:
        """Raise ConfigurationError where a guideline leaves no room for the text to be judged.

        Raises ScorerUnavailable where that can't be found out.
        """
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """An exchange ready to be scored: one pack for each window of its content.

    `prompt_omitted` counts the characters of the prompt that no window shows.
    """

    work: tuple[Pack, ...]
    prompt_omitted: int = 0

    def scores(self, margins: Sequence[Sequence[float]]) -> list[Score]:
        """Combine the windows' margins, [windows][policies], by the maximum."""
        return [
            Score(max(column), windows=len(self.work), prompt_omitted=self.prompt_omitted)
            for column in zip(*margins, strict=True)
        ]


class Engine(Protocol):
    """The blocking core behind `Batched`: its threads call what isn't said to be quick."""

    @property
    def identity(self) -> Identity:
        """Say what the scores depend on."""
        ...

    def check_policies(self, policies: Iterable[Policy]) -> None:
        """Raise ConfigurationError where a guideline leaves no room for content.

        Any number of threads may be in here, and in `prepare`, at once.
        """
        ...

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        """Tell how many tokens scoring a long exchange takes at least, without tokenising it.

        Counting may end beyond `most`. Called from the event loop.
        """
        ...

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        """Tokenise an exchange; raise ConfigurationError where it can't be judged."""
        ...

    def forward(self, work: Sequence[Pack]) -> list[list[float]]:
        """Run one forward pass; one margin per policy for each pack, in order.

        The packs are of any callers. As many threads are in here at once as `Batched` was told.
        """
        ...
