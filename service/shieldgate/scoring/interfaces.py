"""The one seam of scoring, and the engine that stands behind the batcher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from shieldgate.policy import Policy
from shieldgate.prompt import Template
from shieldgate.types import Exchange, Score


@dataclass(frozen=True, slots=True)
class Identity:
    """All that a margin depends on besides the prompt.

    `name` is what people and policy files call the scorer (`starter@1f6c2a9b03de`): the model and
    the first digits of its weights' digest, and `+paper` where it asks in another format than
    `chat`. `windows` names the rule by which long content is split.
    """

    name: str
    weights: str
    dtype: str
    template: str
    windows: str

    @property
    def key(self) -> str:
        """Write the identity as one unambiguous string, for cache keys and headers of files."""
        return "|".join((self.weights, self.dtype, self.template, self.windows))


class Scorer(Protocol):
    """Judges exchanges; wrappers have the same shape, so they compose."""

    @property
    def identity(self) -> Identity:
        """Say what the scores depend on."""
        ...

    @property
    def template(self) -> Template:
        """Give the prompt format that the scorer was built with."""
        ...

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange under each policy, in their order; raise ScoringError."""
        ...


class Work(Protocol):
    """A piece of an exchange that one forward pass can hold."""

    @property
    def tokens(self) -> int:
        """Count the tokens that a forward pass spends on it."""
        ...


W = TypeVar("W", bound=Work)


class Engine(Protocol[W]):
    """The blocking core: called from threads, never from the event loop."""

    @property
    def identity(self) -> Identity:
        """Say what the scores depend on."""
        ...

    @property
    def template(self) -> Template:
        """Give the prompt format."""
        ...

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> "Prepared[W]":
        """Tokenise an exchange; any number of threads may be in here at once."""
        ...

    def forward(self, work: Sequence[W]) -> list[list[float]]:
        """Run one forward pass; one margin per policy for each piece, in order.

        Called by one thread at a time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Prepared(Generic[W]):
    """An exchange ready to be scored: one piece of work for each window of its content."""

    work: tuple[W, ...]
    prompt_omitted: int = 0

    def scores(self, margins: Sequence[Sequence[float]]) -> list[Score]:
        """Combine the windows' margins, [windows][policies], by the maximum."""
        return [
            Score(max(column), windows=len(self.work), prompt_omitted=self.prompt_omitted)
            for column in zip(*margins, strict=True)
        ]
