"""Scores a dataset with a running gateway, by its URL."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.evaluation.datasets import Row
from shieldgate.evaluation.run import Task
from shieldgate.evaluation.scores import ScoredRow, ScoreFile
from shieldgate.policy import Policy, PolicyBook, Profile
from shieldgate.scoring import Identity
from shieldgate.types import Direction, Exchange, Score

_ATTEMPTS = 8
_LONGEST_WAIT = 60.0  # seconds
_TRY_AGAIN = (429, 502, 503, 504)

B = TypeVar("B", bound=BaseModel)


# What is read of the gateway's replies. Newer gateways may say more, so the rest is ignored.
class _PolicyPart(BaseModel):
    id: str
    title: str
    openai: list[str]
    guidelines: dict[Direction, str]
    thresholds: dict[Direction, float]


class _Policies(BaseModel):
    version: str
    policies: list[_PolicyPart]


class _Scorer(BaseModel):
    name: str
    weights: str
    dtype: str
    template: str
    windows: str


class _Margin(BaseModel):
    margin: float
    windows: int


class _Result(BaseModel):
    policies: dict[str, _Margin]


class _Screened(BaseModel):
    scorer: _Scorer | None
    results: list[_Result]


class RemoteGateway:
    """A gateway as a source of scores; an async context manager.

    What it refuses for now (429, 503) and what fails on the way is tried again, as late as
    `Retry-After` says, for a few minutes.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 300.0,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take the gateway's address; `timeout` is for one reply, in seconds like `wait`'s."""
        self.url = url.rstrip("/")
        self._wait = wait
        self._client = httpx.AsyncClient(base_url=self.url, timeout=timeout)

    async def __aenter__(self) -> Self:
        """Open the connections."""
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def book(self) -> PolicyBook:
        """Fetch the policies in force; the gateway doesn't tell what was calibrated.

        Raises ConfigurationError or ScorerUnavailable.
        """
        reply = self._read(_Policies, await self._ask("GET", "/v1/policies", None))
        policies = {
            p.id: Policy(p.id, p.title, p.guidelines, p.thresholds, tuple(p.openai))
            for p in reply.policies
        }
        default = Profile("default", tuple(policies))
        return PolicyBook(policies, {default.name: default}, reply.version)

    async def identity(self) -> Identity:
        """Ask what the margins depend on; raise ConfigurationError or ScorerUnavailable."""
        identity, _ = await self._screen(Exchange("Hello"), ())
        return identity

    async def score(
        self, exchange: Exchange, policies: Sequence[Policy]
    ) -> tuple[Identity, list[Score]]:
        """Score one exchange, and tell by which scorer.

        Raises ConfigurationError when the gateway refuses it, ScorerUnavailable when no score
        came after several attempts.
        """
        identity, result = await self._screen(exchange, [policy.id for policy in policies])
        found = [result.policies[policy.id] for policy in policies]
        return identity, [Score(f.margin, f.windows) for f in found]

    async def _screen(
        self, exchange: Exchange, policies: Sequence[str]
    ) -> tuple[Identity, _Result]:
        body = {"prompt": exchange.prompt, "response": exchange.response, "policies": policies}
        reply = self._read(_Screened, await self._ask("POST", "/v1/screen", body))
        [result] = reply.results
        if reply.scorer is None or not all(id in result.policies for id in policies):
            # Where its profile says so, a gateway whose guard failed lets texts pass unjudged.
            raise ScorerUnavailable(f"{self.url} could not judge a text. Look at its log.")
        return Identity(**reply.scorer.model_dump()), result

    async def _ask(self, method: str, path: str, body: object) -> httpx.Response:
        why = ""
        for attempt in range(_ATTEMPTS):
            wait = min(_LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
            try:
                reply = await self._client.request(method, path, json=body)
            except httpx.TransportError as failure:
                why = f"no reply: {type(failure).__name__}"
            else:
                if reply.is_success:
                    return reply
                why = f"status {reply.status_code}: {_message(reply)}"
                if reply.status_code not in _TRY_AGAIN:
                    raise ConfigurationError(f"{self.url}{path} refused a request, {why}")
                wait = _retry_after(reply) or wait
            if attempt + 1 < _ATTEMPTS:
                await self._wait(wait)
        raise ScorerUnavailable(f"{self.url}{path} failed {_ATTEMPTS} times, at last with {why}")

    def _read(self, kind: type[B], reply: httpx.Response) -> B:
        try:
            return kind.model_validate_json(reply.content)
        except ValidationError as wrong:
            raise ConfigurationError(
                f"{self.url} does not answer as a shieldgate gateway does "
                f"({wrong.error_count()} differences). Check the URL."
            ) from None


async def score_rows_remotely(
    gateway: RemoteGateway,
    identity: Identity,
    rows: Iterable[Row],
    task: Task,
    file: ScoreFile,
    *,
    concurrency: int,
    advance: Callable[[int], None],
) -> None:
    """Score the rows that `file` lacks, `concurrency` at a time, and append them in their order.

    Raises ConfigurationError, also when another scorer than `identity` answers, and
    ScorerUnavailable.
    """

    async def one(row: Row) -> ScoredRow:
        found, scores = await gateway.score(row.example.exchange, task.policies)
        if found != identity:
            raise ConfigurationError(
                f"{gateway.url} changed its scorer from {identity.name} to {found.name} during "
                "the run. Choose another --out to score with the new one."
            )
        return task.scored(row, scores)

    async def write(oldest: asyncio.Task[ScoredRow]) -> None:
        file.append([await oldest])
        advance(1)

    under_way: deque[asyncio.Task[ScoredRow]] = deque()
    try:
        async with asyncio.TaskGroup() as group:
            for row in (row for row in rows if row.number not in file):
                under_way.append(group.create_task(one(row)))
                if len(under_way) == concurrency:
                    await write(under_way.popleft())
            while under_way:
                await write(under_way.popleft())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _message(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return reply.reason_phrase


def _retry_after(reply: httpx.Response) -> float | None:
    """Read the seconds of `Retry-After`; a date, which we don't send, counts as none."""
    given = reply.headers.get("retry-after", "")
    return min(_LONGEST_WAIT, float(given)) if given.isdecimal() else None
