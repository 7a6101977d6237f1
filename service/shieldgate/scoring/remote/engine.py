"""What an engine elsewhere is to us: what it says it serves, how it is asked, how it is read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from shieldgate.errors import ScorerUnavailable
from shieldgate.scoring.remote.connection import Connection

Prompt = list[int]


@dataclass(frozen=True, slots=True)
class Labels:
    """The two answers, each as its token id and its word: positive first."""

    ids: tuple[int, int]
    words: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says it serves; `facts` is what tells its weights from others.

    `context` counts the tokens of a prompt and its answer, where the server tells.
    """

    engine: str
    version: str
    model: str
    facts: Mapping[str, str]
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt's margin in logits; `mass` is the probability of both answers together."""

    margin: float
    mass: float | None = None


class WrongReply(ScorerUnavailable):
    """An engine's reply can't be a score: a label is missing, or it read another prompt."""


class EngineApi(Protocol):
    """How one kind of engine is asked for the log-probabilities of exactly two tokens."""

    @property
    def served(self) -> Served:
        """Say what the server says it serves."""
        ...

    @property
    def warning(self) -> str | None:
        """Say what of its scores is not exact, for the operator."""
        ...

    def turns(self, prompts: Sequence[Prompt], trunk: int) -> Sequence[Sequence[Prompt]]:
        """Say which prompts go together, one turn after the other; they share `trunk` tokens."""
        ...

    async def read(self, connection: Connection, prompts: Sequence[Prompt]) -> list[Reading]:
        """Ask for prompts together; raise ScorerUnavailable."""
        ...

    async def words(self, connection: Connection, prompt: Prompt) -> tuple[str, ...]:
        """Give the words that the engine has for both labels' ids."""
        ...

    async def again(self, connection: Connection, prompt: Prompt) -> float | None:
        """Read a margin in a way that no sampling touches; None where there is none."""
        ...


def reading(server: str, found: Mapping[Any, Any], labels: Sequence[Any], whole: bool) -> Reading:
    """Take both labels' log-probabilities from a reply; raise WrongReply.

    Where they are over the `whole` vocabulary, they say how probable both are together.
    """
    values = [found.get(label) for label in labels]
    # vLLM writes -9999 where a sampler has ruled a token out.
    if not all(isinstance(v, int | float) and math.isfinite(v) and v > -9999 for v in values):
        lacking = [str(label) for label, v in zip(labels, values, strict=True) if v is None]
        raise WrongReply(
            f"{server} answered without the log-probability of "
            f"{' and '.join(lacking) or 'a label'}, so that there is no score."
        )
    positive, negative = map(float, values)  # type: ignore[arg-type]
    mass = math.exp(min(positive, 0.0)) + math.exp(min(negative, 0.0)) if whole else None
    return Reading(positive - negative, mass)


@contextmanager
def shaped(server: str) -> Iterator[None]:
    """Turn what goes wrong where a reply has another shape into a WrongReply."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise WrongReply(
            f"{server} answered in another form than its kind of engine does."
        ) from None


def check_counted(server: str, counted: object, prompts: Sequence[Prompt]) -> None:
    """Raise WrongReply where a server read more or fewer tokens than it was sent."""
    sent = sum(map(len, prompts))
    if counted != sent:
        raise WrongReply(
            f"{server} says that it read {counted} tokens of a prompt of {sent}: it "
            + ("adds some, such as a second <bos>." if _more(counted, sent) else "cuts prompts.")
        )


def _more(counted: object, sent: int) -> bool:
    return isinstance(counted, int) and counted > sent


# From so many common tokens on, computing them once is worth a request more.
_PAYS_FROM = 128


def first_alone(prompts: Sequence[Prompt], trunk: int) -> Sequence[Sequence[Prompt]]:
    """Let the first prompt compute a long trunk alone, so that the others follow on it."""
    if len(prompts) < 2 or trunk < _PAYS_FROM:
        return [prompts]
    return [prompts[:1], prompts[1:]]
