"""What the routes work with; built and wired by the command line, never global."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Protocol

from fastapi import Depends, Request

from shieldgate.access.keys import Key, LiveKeys
from shieldgate.access.rate_limits import RateLimiter
from shieldgate.errors import UpstreamError
from shieldgate.gateway.errors import RETRY_SECONDS, RequestError
from shieldgate.gateway.middleware.drain import Drain
from shieldgate.gateway.screening import Screener
from shieldgate.given_settings import flag
from shieldgate.history import History
from shieldgate.policy import Draft, PolicyBook, Profile, join_profiles
from shieldgate.settings import ServeSettings
from shieldgate.telemetry import SharedDecisions, Telemetry
from shieldgate.types import Direction, Exchange
from shieldgate.upstream import Upstream

if TYPE_CHECKING:
    # With its database an extra.
    from shieldgate.review.desk import Desk


class Policies(Protocol):
    """The policies in force, kept up with their files."""

    @property
    def current(self) -> PolicyBook:
        """Give the book in force, a snapshot."""
        ...

    async def read(self, draft: Draft | None = None) -> PolicyBook:
        """Read the book with a draft among its files; raise ShieldgateError where it is refused."""
        ...

    async def texts(self) -> dict[str, str]:
        """Read what the files say, by their names; raise PolicyError where they are refused."""
        ...

    async def watch(self) -> None:
        """Follow the files until cancelled."""
        ...


class Worker(Protocol):
    """A process of ours that answers chats."""

    @property
    def ready(self) -> bool:
        """Tell whether it answers."""
        ...

    async def run(self) -> None:
        """Keep it running until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """All that a running gateway consists of.

    `stop` ends the server; it is told what made that necessary. `upstream` answers chats, where
    there is a model to answer them. Without `keys` whoever reaches the server may use it.
    `shared` is opened and closed with the server. Without a `history`, what requests refer to is
    not known. `shared_decisions` are those of other processes, too, where there are some. The
    `desk` asks people about kept texts, where some are kept.
    """

    settings: ServeSettings
    policies: Policies
    screener: Screener
    telemetry: Telemetry
    stop: Callable[[Exception], None]
    worker: Worker | None = None
    upstream: Upstream | None = None
    drain: Drain = field(default_factory=Drain)
    keys: LiveKeys | None = None
    limiter: RateLimiter = field(default_factory=RateLimiter)
    shared: AbstractAsyncContextManager[object] | None = None
    history: History | None = None
    shared_decisions: SharedDecisions | None = None
    desk: "Desk | None" = None

    @property
    def model(self) -> Upstream:
        """Give the model that answers chats; raise UpstreamError where none could."""
        if self.upstream is None:
            raise UpstreamError(
                "There is no model here to answer: start the gateway with "
                f"{flag('upstream')} URL or {flag('generator')} MODEL.",
                status=503,
                code="no_upstream",
            )
        if self.worker and not self.worker.ready:
            # Its socket listens all the time: who asked now would wait there for the restart.
            raise UpstreamError(
                "The generator is being loaded or restarted.",
                status=503,
                code="generator_unavailable",
                retry_after=RETRY_SECONDS,
            )
        return self.upstream

    def profile(
        self,
        key: Key | None,
        book: PolicyBook,
        direction: Direction,
        named: Profile | None = None,
    ) -> Profile:
        """Find the profile for a caller, who may have `named` one.

        Where there are keys, what is named adds to the profile of the caller's key and takes
        nothing away; where there are none, it is taken at its word.
        """
        if key is None:
            return named or book.profile(self.settings.profile)
        return self.with_added(book.profile(key.profile), named, book, direction)

    def with_added(
        self, base: Profile, named: Profile | None, book: PolicyBook, direction: Direction
    ) -> Profile:
        """Give a profile that judges as `named` does, too, and is nowhere weaker than `base`."""
        if named is None or named is base:
            return base
        scorer = self.screener.name
        both = join_profiles(base, named, "block", book=book, direction=direction, scorer=scorer)
        return replace(both, name=f"{base.name}+{named.name}")

    async def accept(
        self, key: Key | None, exchanges: Sequence[Exchange], param: str, beside: int = 0
    ) -> None:
        """Take exchanges to be judged for a caller; raise RequestError and what `charge` does.

        `beside` counts the characters of what is asked about them.
        """
        most = self.settings.max_text_chars
        lengths = [len(text) for e in exchanges for text in (e.prompt, e.response or "", *e.parts)]
        if max(lengths, default=0) > most:
            raise RequestError(f"{param}: A text holds at most {most} characters.", param, 413)
        if key:
            await self.limiter.charge(key.allowed, len(exchanges), sum(lengths) + beside)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    if request.method == "POST":
        # Before its rules are chosen: thresholds are those of the scorer.
        await services.screener.scorer.arrival()
    return services


ServicesDep = Annotated[Services, Depends(_services)]
