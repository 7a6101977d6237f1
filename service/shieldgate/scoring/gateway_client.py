"""The client of a running gateway: a scorer that is asked over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Self, TypeVar

import aiohttp
import orjson
from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError, model_validator
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.given_settings import load
from shieldgate.plural import counted
from shieldgate.policy import Policy, PolicyBook, Profile, Rules
from shieldgate.scoring.interfaces import Identity
from shieldgate.settings import GatewaySettings
from shieldgate.types import Action, Direction, Exchange, Judgement, Score, Verdict

ATTEMPTS = 8
_LONGEST_WAIT = 60.0  # seconds
_RETRIED = (429, 502, 503, 504)
_BACKOFF = wait_random_exponential(multiplier=1.0, max=_LONGEST_WAIT)

B = TypeVar("B", bound=BaseModel)


_THRESHOLDS = TypeAdapter(dict[str, dict[Direction, float]])


def _by_pairs(profile: Any) -> Any:
    """Key a profile's thresholds by policy and direction, for which JSON has two levels."""
    if not isinstance(profile, dict):
        return profile
    return profile | {
        field: {
            (policy, direction): threshold
            for policy, by_direction in _THRESHOLDS.validate_python(profile[field]).items()
            for direction, threshold in by_direction.items()
        }
        for field in ("thresholds", "max_thresholds")
        if field in profile
    }


# What is read of the gateway's replies. Newer gateways may say more, so the rest is ignored.
class _Policies(BaseModel):
    version: str
    policies: list[Policy]
    profiles: list[Annotated[Profile, BeforeValidator(_by_pairs)]]

    @model_validator(mode="before")
    @classmethod
    def _file_calibrations(cls, reply: Any) -> Any:
        """Key each policy's calibrations by the scorer that the reply names once for all."""
        try:
            policies = [
                policy
                | {
                    "calibrations": {
                        (reply["scorer"], direction): fitted
                        for direction, fitted in policy["calibration"].items()
                    }
                }
                for policy in reply["policies"]
            ]
        except (AttributeError, KeyError, TypeError):
            return reply  # what is no such reply the fields say
        return reply | {"policies": policies}


class _PolicyResult(BaseModel):
    probability: float
    margin: float
    threshold: float
    violated: bool
    calibrated: bool
    windows: int
    prompt_omitted: int

    def score(self) -> Score:
        return Score(self.margin, self.windows, self.prompt_omitted)

    def judgement(self, policy: str) -> Judgement:
        return Judgement(
            policy, self.probability, self.threshold, self.violated, self.calibrated, self.score()
        )


class _Result(BaseModel):
    direction: Direction
    action: Action
    policies: dict[str, _PolicyResult]
    unsupported_language: str | None = None


class _Screened(BaseModel):
    scorer: Identity | None
    results: list[_Result]


class _Transient(Exception):
    """An attempt failed in a way that may pass; `retry_after` is in seconds, where it was said."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class GatewayScorer:
    """Has a running gateway score; a Scorer, and an async context manager.

    What the gateway refuses for now (429, 502, 503, 504) and what fails on the way is tried again
    with exponential backoff, or as late as `Retry-After` says. Entering asks for the identity,
    and raises as `score` does.
    """

    identity: Identity

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 300.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take the gateway's address and an API key of it, where it wants one.

        `timeout` is for one reply, in seconds like `sleep`'s.
        """
        self.url = url.rstrip("/")
        # A file's last line break often comes along.
        self._headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
        self._timeout = timeout
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections, and learn what the margins depend on."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        )
        try:
            self.identity, _ = await self._screen(Exchange("Hello"), ())
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def book(self) -> PolicyBook:
        """Fetch the policies and profiles in force, with what was calibrated for its scorer.

        Raises ConfigurationError or ScorerUnavailable.
        """
        reply = self._read(_Policies, await self._request("GET", "/v1/policies"))
        policies = {policy.id: policy for policy in reply.policies}
        profiles = {profile.name: profile for profile in reply.profiles}
        return PolicyBook(policies, profiles, reply.version)

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange under the gateway's own policies of these ids.

        Raises ConfigurationError when the gateway refuses it or has changed its scorer, and
        ScorerUnavailable when no score came after several attempts.
        """
        result = await self._ask(exchange, [policy.id for policy in policies])
        return [result.policies[policy.id].score() for policy in policies]

    async def judge(self, exchange: Exchange, rules: Rules) -> Verdict:
        """Give the gateway's own verdict, by its profile of that name; raise as `score` does.

        Where the rules' profile has no policies, those asked for alone count, each as the gateway
        judges it for callers who name no profile.
        """
        mandatory = rules.profile.policies
        ids = [policy.id for policy in rules.policies if policy.id not in mandatory]
        if mandatory:
            result = await self._ask(exchange, ids, rules.profile.name)
            action, ids = result.action, list(result.policies)
        else:
            result = await self._ask(exchange, ids)
            violated = any(result.policies[id].violated for id in ids)
            action = Action.BLOCKED if violated else Action.ALLOWED
        judgements = tuple(result.policies[id].judgement(id) for id in ids)
        return Verdict(
            result.direction,
            action,
            judgements,
            unsupported_language=result.unsupported_language,
        )

    async def _ask(
        self, exchange: Exchange, policies: Sequence[str], profile: str | None = None
    ) -> _Result:
        identity, result = await self._screen(exchange, policies, profile)
        if identity != self.identity:
            raise ConfigurationError(
                f"{self.url} changed its scorer from {self.identity.name} to {identity.name} "
                "while it was being asked. Start again to score with the new one."
            )
        return result

    async def _screen(
        self, exchange: Exchange, policies: Sequence[str], profile: str | None = None
    ) -> tuple[Identity, _Result]:
        body = {
            "prompt": exchange.prompt,
            "response": exchange.response,
            "profile": profile,
            "policies": policies,
        }
        reply = self._read(_Screened, await self._request("POST", "/v1/screen", body))
        [result] = reply.results
        failed = result.action in (Action.FAILED_OPEN, Action.FAILED_CLOSED)
        if failed or reply.scorer is None or not all(id in result.policies for id in policies):
            # Where its profile says so, a gateway whose guard failed lets texts pass unjudged.
            raise ScorerUnavailable(f"{self.url} could not judge a text. Look at its log.")
        return reply.scorer, result

    async def _request(self, method: str, path: str, body: object = None) -> bytes:
        # One for each request: tenacity keeps the state of an attempt in the object.
        retrying = AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(ATTEMPTS),
            wait=_pause,
            retry=retry_if_exception_type(_Transient),
            reraise=True,
        )
        try:
            content: bytes = await retrying(self._attempt, method, path, body)
        except _Transient as last:
            raise ScorerUnavailable(
                f"{self.url}{path} failed {ATTEMPTS} times, at last with {last}"
            ) from None
        return content

    async def _attempt(self, method: str, path: str, body: object) -> bytes:
        """Send a request and read its whole reply; raise ConfigurationError or _Transient."""
        if self._session is None:
            raise ScorerUnavailable("The gateway's client is not open.")
        try:
            async with self._session.request(
                method, self.url + path, json=body, allow_redirects=False
            ) as reply:
                content = await reply.read()
        except aiohttp.InvalidURL:
            raise ConfigurationError(f"{self.url} is no URL. Check it.") from None
        except ValueError:
            # From None, because the reason may quote the key.
            raise ConfigurationError(
                f"The API key for {self.url} can't be sent in a header. Check it."
            ) from None
        except (aiohttp.ClientError, TimeoutError) as failure:
            raise _Transient(f"no reply: {type(failure).__name__}") from None
        if 200 <= reply.status <= 299:
            return content
        why = f"status {reply.status}: {_message(content) or reply.reason}"
        if reply.status in _RETRIED:
            raise _Transient(why, _seconds(reply.headers.get("retry-after", "")))
        raise ConfigurationError(f"{self.url}{path} refused a request, {why}")

    def _read(self, kind: type[B], content: bytes) -> B:
        try:
            return kind.model_validate_json(content)
        except ValidationError as wrong:
            raise ConfigurationError(
                f"{self.url} does not answer as a shieldgate gateway does "
                f"({counted(wrong.error_count(), 'difference')}). Check the URL."
            ) from None


def open_gateway(url: str, key: str | None = None) -> GatewayScorer:
    """Make a gateway's client, with the key of the settings where no other is given.

    Raises ConfigurationError.
    """
    secret = load(GatewaySettings, {}).gateway_key
    return GatewayScorer(url, key=key or (secret.get_secret_value() if secret else None))


def _pause(state: RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    told = failure.retry_after if isinstance(failure, _Transient) else None
    return told or _BACKOFF(state)


def _message(content: bytes) -> str:
    try:
        return str(orjson.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _seconds(retry_after: str) -> float | None:
    """Read the seconds of `Retry-After`; a date, which we don't send, counts as none."""
    return min(_LONGEST_WAIT, float(retry_after)) if retry_after.isdecimal() else None
