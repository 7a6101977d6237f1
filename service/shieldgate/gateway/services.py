"""What the routes work with; built and wired by the command line, never global."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Annotated, Protocol, TypeVar

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from shieldgate.access.keys import Key, LiveKeys
from shieldgate.access.rate_limits import RateLimiter
from shieldgate.errors import ScoringError
from shieldgate.gateway.drain import Drain
from shieldgate.gateway.errors import RequestError
from shieldgate.gateway.inline import join
from shieldgate.moderation import judge
from shieldgate.policy import PolicyBook, Profile, Rules, fail
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.settings import ServeSettings
from shieldgate.telemetry import Audit, Decision, Telemetry
from shieldgate.types import Action, Direction, Exchange, Verdict
from shieldgate.upstream import Upstream

T = TypeVar("T")


class Policies(Protocol):
    """The policies in force, kept up with their files."""

    @property
    def current(self) -> PolicyBook:
        """Give the book in force, a snapshot."""
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
class Judged:
    """A verdict, why the guard failed where it did, and the time that judging took."""

    verdict: Verdict
    failure: ScoringError | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Services:
    """All that a running gateway consists of.

    `stop` ends the server; it is told what made that necessary. `upstream` answers chats, where
    there is a model to answer them. Without `keys` whoever reaches the server may use it.
    `shared` is opened and closed with the server.
    """

    settings: ServeSettings
    policies: Policies
    scorer: LoadingScorer
    telemetry: Telemetry
    audit: Audit
    stop: Callable[[Exception], None]
    worker: Worker | None = None
    upstream: Upstream | None = None
    drain: Drain = field(default_factory=Drain)
    keys: LiveKeys | None = None
    limiter: RateLimiter = field(default_factory=RateLimiter)
    shared: AbstractAsyncContextManager[object] | None = None

    async def run(self) -> None:
        """Hold what runs beside the routes until cancelled; stop the server on failure."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.scorer.hold(self.telemetry.ready))
                group.create_task(self.policies.watch())
                group.create_task(self.limiter.run())
                if self.keys:
                    group.create_task(self.keys.watch())
                if self.worker:
                    group.create_task(self.worker.run())
        except ExceptionGroup as failures:
            self.stop(failures.exceptions[0])
        finally:
            self.telemetry.ready(False)

    def profile(
        self,
        request: Request,
        book: PolicyBook,
        direction: Direction,
        named: Profile | None = None,
    ) -> Profile:
        """Find the profile for a request, whose caller may have `named` one.

        Where there are keys, what is named adds to the profile of the caller's key and takes
        nothing away; where there are none, it is taken at its word.
        """
        key = _key(request)
        if key is None:
            return named or book.profile(self.settings.profile)
        base = book.profile(key.profile)
        if named is None or named is base:
            return base
        both = join(base, named, "block", book=book, direction=direction, scorer=self.scorer_name)
        return replace(both, name=f"{base.name}+{named.name}")

    async def accept(self, request: Request, exchanges: Sequence[Exchange], param: str) -> None:
        """Take exchanges to be judged for a caller; raise RequestError and LimitReached."""
        most = self.settings.max_text_chars
        if any(len(text) > most for e in exchanges for text in (e.prompt, e.response or "")):
            raise RequestError(f"{param}: A text holds at most {most} characters.", param, 413)
        if key := _key(request):
            await self.limiter.charge(key.allowed, len(exchanges))

    async def judge(
        self,
        exchange: Exchange,
        rules: Rules,
        *,
        may_open: bool,
    ) -> Judged:
        """Judge one exchange, count the verdict and put it on record.

        Raises ScoringError where the guard fails and the profile wants that closed. `may_open`
        says whether the surface can express that a text passed unjudged.
        """
        judged = await self.look(exchange, rules)
        if judged.failure is not None and not may_open:
            judged = replace(judged, verdict=replace(judged.verdict, action=Action.FAILED_CLOSED))
        self.decided(exchange, judged, rules)
        if judged.failure is not None and judged.verdict.action.stops:
            raise judged.failure
        return judged

    async def look(self, exchange: Exchange, rules: Rules) -> Judged:
        """Judge one exchange without counting the verdict, of which there may be a later one."""
        started = perf_counter()
        with self.telemetry.traces.judging(exchange.direction) as judged:
            failure = None
            try:
                verdict = await judge(self.scorer, exchange, rules)
            except ScoringError as failed:
                verdict, failure = fail(rules.profile, exchange.direction), failed
            judged(verdict.action.value)
        return Judged(verdict, failure, perf_counter() - started)

    def decided(self, exchange: Exchange | None, judged: Judged, rules: Rules) -> None:
        """Count a final verdict and put it on record."""
        policies = [policy.id for policy in rules.policies]
        self.telemetry.verdict(judged.verdict, policies)
        self.audit.record(
            Decision(
                exchange,
                judged.verdict,
                policies,
                profile=rules.profile.name,
                book=rules.book,
                scorer=self.scorer_name,
                failure=type(judged.failure).__name__ if judged.failure else None,
            )
        )

    @property
    def scorer_name(self) -> str:
        """Name the scorer; empty while none is loaded."""
        return self.scorer.identity.name if self.scorer.ready else ""


async def while_connected(request: Request, work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Do `work` concurrently and collect the results in order.

    When one fails the others are cancelled and its exception is raised. When the caller hangs up
    all are cancelled, so that nobody's text takes a place in the queue, and ClientDisconnect is
    raised. The request's body must have been read.
    """

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        # A connection counts as closed, too, when all has been sent.
        if not all(task.done() for task in tasks):
            raise ClientDisconnect

    async with together() as group:
        connection = group.create_task(hang_up())
        tasks = [group.create_task(w) for w in work]
        results = [await task for task in tasks]
        connection.cancel()
    return results


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a TaskGroup that raises its first failure as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _key(request: Request) -> Key | None:
    """Give the key that a request was admitted with; None where none is asked for."""
    key: Key | None = getattr(request.state, "key", None)
    return key


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Given = Annotated[Services, Depends(_services)]
