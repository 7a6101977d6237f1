"""Stand-ins with the shape of the real thing."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shieldgate.errors import ScorerUnavailable
from shieldgate.policy import Draft, Policy, PolicyBook, Profile
from shieldgate.scoring import Identity, Prepared, Scorer
from shieldgate.types import Exchange, Score


@dataclass
class FakeScorer:
    """A Scorer whose margins follow keywords: `margins[(keyword, policy id)]`, else -6.

    While `released` is unset, calls wait in `score`, after setting `entered`. `failure` is
    raised; a prompt that is `fails_on` fails at once.
    """

    margins: dict[tuple[str, str], float] = field(default_factory=dict)
    failure: Exception | None = None
    fails_on: str | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[tuple[Exchange, tuple[str, ...]]] = field(default_factory=list)
    identity = Identity("fake@0", "0", "float32", "chat", "none")
    available = True

    def __post_init__(self) -> None:
        self.released.set()

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        self.calls.append((exchange, tuple(p.id for p in policies)))
        self.entered.set()
        try:
            if exchange.prompt == self.fails_on:
                raise ScorerUnavailable("The scorer failed.")
            await self.released.wait()
            if self.failure:
                raise self.failure
            text = exchange.prompt if exchange.response is None else exchange.response
            return [Score(self._margin(text, p.id)) for p in policies]
        finally:
            self.left.set()

    def _margin(self, text: str, policy: str) -> float:
        found = (m for (word, p), m in self.margins.items() if p == policy and word in text)
        return next(found, -6.0)

    @asynccontextmanager
    async def never_opened(self) -> AsyncIterator[Scorer]:
        await asyncio.Event().wait()
        yield self

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Scorer]:
        yield self


class FixedPolicies:
    """Policies that don't change, and have no files."""

    def __init__(self, book: PolicyBook) -> None:
        self.current = book

    async def read(self, draft: Draft | None = None) -> PolicyBook:
        return self.current

    async def texts(self) -> dict[str, str]:
        return {}

    async def watch(self) -> None:
        await asyncio.Event().wait()


def small_book(**default: object) -> PolicyBook:
    """Two policies; one speaks for two of OpenAI's categories, and one for none.

    `default` changes the profile of that name.
    """
    threat = Policy(
        id="test/threat",
        title="Threats",
        guidelines={"prompt": "No threats in prompts.", "response": "No threats in responses."},
        thresholds={"prompt": 0.5, "response": 0.4},
        openai=("harassment", "harassment/threatening"),
    )
    spam = Policy(
        id="test/spam",
        title="Spam",
        guidelines={"prompt": "No spam in prompts.", "response": "No spam in responses."},
        thresholds={"prompt": 0.5, "response": 0.5},
    )
    opens = {"prompt": "open", "response": "open"}
    profiles = (
        Profile("default", **{"policies": ("test/threat",), **default}),
        Profile(
            "strict", ("test/threat", "test/spam"), thresholds={("test/threat", "prompt"): 0.1}
        ),
        Profile("open", ("test/threat",), on_failure=opens),
        Profile("monitor", ("test/threat",), mode="monitor"),
    )
    return PolicyBook(
        policies={p.id: p for p in (threat, spam)},
        profiles={p.name: p for p in profiles},
        version="book-1",
    )


@dataclass(frozen=True)
class Piece:
    tokens: int = 1


class BlockingEngine:
    """An engine whose forward pass blocks its thread until it is released."""

    identity = FakeScorer.identity

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        return 0

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        return Prepared((Piece(),))

    def forward(self, work: Sequence[Piece]) -> list[list[float]]:
        self.entered.set()
        assert self.released.wait(30)
        return [[-6.0] for _ in work]
