"""Prepares the candidate that judges live traffic beside what is in force."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from shieldgate.cli.stores import audit_sink
from shieldgate.errors import ConfigurationError, ShieldgateError, UnknownName
from shieldgate.given_settings import flag
from shieldgate.policy import LiveBook
from shieldgate.prompt import find_template
from shieldgate.scoring import Cached, OpenScorer, Scorer, SecondLevel, UnixSocketScorer
from shieldgate.scoring.factory import open_candidate
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.scoring.precedence import Precedence
from shieldgate.settings import ServeSettings
from shieldgate.shadow.candidate import Candidate
from shieldgate.shadow.records import STREAM
from shieldgate.shadow.shadow import Shadow
from shieldgate.telemetry import ShadowTelemetry, Telemetry

if TYPE_CHECKING:
    from shieldgate.redis.client import RedisClient

log = structlog.get_logger(__name__)


class ServedShadow:
    """The shadow that the settings ask for, with its policy files and its scorer.

    Where it has a scorer of its own, that is of another process, which listens at `socket`, or it
    is loaded here and waits for `precedence`.
    """

    def __init__(
        self,
        settings: ServeSettings,
        live: LiveBook,
        telemetry: ShadowTelemetry,
        precedence: Precedence,
        *,
        secret: bytes,
        second: SecondLevel | None = None,
        socket: Path | None = None,
    ) -> None:
        """Read its policies; raise ConfigurationError."""
        self._settings = settings
        self._precedence = precedence
        self._secret = secret
        self._second = second
        self._socket = socket
        self._has_scorer = settings.shadow_scorer() is not None
        self._policies = (
            LiveBook.load(settings.shadow_policies, profile=_profile(settings))
            if settings.shadow_policies
            else None
        )
        of = self._policies or live
        self._check(of)
        beside = [self._policies.watch] if self._policies else []
        self.shadow = Shadow(
            Candidate(lambda: of.current, lambda: live.current, profile=settings.shadow_profile),
            share=settings.shadow_share,
            telemetry=telemetry,
            beside=[*beside, self._hold] if self._has_scorer else beside,
        )

    @asynccontextmanager
    async def beside(self, scorer: OpenScorer, cache: Cached) -> AsyncIterator[None]:
        """Judge by the scorer in force, and what its cache knows, unless there is another."""
        if self._has_scorer:
            yield
        else:
            with self.shadow.judging_by(self._cached(scorer, cache)):
                yield

    async def reload(self) -> None:
        """Read the policy files again, if it has its own."""
        if self._policies:
            await self._policies.reload()

    async def _hold(self) -> None:
        there = UnixSocketScorer(self._socket) if self._socket else None

        @asynccontextmanager
        async def opened() -> AsyncIterator[Scorer]:
            async with there or open_candidate(self._settings, self._precedence) as scorer:
                cached = self._cached(scorer, self._second)
                with self.shadow.judging_by(cached):
                    yield cached

        await hold_candidate(LoadingScorer(opened, there.gone if there else None))

    def _cached(self, scorer: OpenScorer, second: SecondLevel | None) -> Cached:
        entries = self._settings.cache_entries
        return Cached(scorer, secret=self._secret, max_entries=entries, second=second)

    def _check(self, live: LiveBook) -> None:
        """Refuse what could judge nothing; raise ConfigurationError."""
        settings = self._settings
        if settings.shadow_template:
            find_template(settings.shadow_template)
        try:
            live.current.profile(_profile(settings))
        except UnknownName as unknown:
            named = flag("shadow_profile") if settings.shadow_profile else flag("shadow_policies")
            raise ConfigurationError(f"{named}: {unknown}") from None


def prepare_shadow(
    settings: ServeSettings,
    *,
    live: LiveBook,
    telemetry: Telemetry,
    precedence: Precedence,
    secret: bytes,
    shared: "RedisClient | None",
    second: SecondLevel | None,
    scorer: Path | None,
) -> ServedShadow | None:
    """Prepare what judges a second time, where the settings ask for it; ConfigurationError.

    `scorer` is the socket of the one in force, where that is another process.
    """
    if settings.shadow_model_key and not settings.shadow_model:
        raise ConfigurationError(
            f"{flag('shadow_model_key')} is for the server of {flag('shadow_model')}, and none is "
            "given."
        )
    if not settings.shadows:
        if "shadow_share" in settings.model_fields_set:
            raise ConfigurationError(
                f"{flag('shadow_share')} says how much is judged a second time, and nothing says "
                f"by what. Give {flag('shadow_policies')}, {flag('shadow_profile')}, "
                f"{flag('shadow_model')} or {flag('shadow_template')}."
            )
        return None
    sink = audit_sink(settings, shared, telemetry, suffix=STREAM)
    served = ServedShadow(
        settings,
        live,
        ShadowTelemetry(telemetry.registry, sink),
        precedence,
        secret=secret,
        second=second,
        socket=candidate_socket(scorer) if scorer else None,
    )
    if scorer is None:  # else who started this process has said so
        log.info(
            "a second opinion, which decides nothing, is given on live traffic",
            **{name: str(value) for name, value in settings.shadow_settings().items()},
        )
    return served


def _profile(settings: ServeSettings) -> str:
    return settings.shadow_profile or settings.profile


def candidate_socket(scorer: Path) -> Path:
    """Give the socket of the candidate's scorer, beside that of the one in force."""
    return scorer.with_name(f"{scorer.name}-shadow")


async def hold_candidate(scorer: LoadingScorer) -> None:
    """Open a candidate's scorer and keep it until cancelled; where it can't be, the log says so."""
    try:
        await scorer.hold(lambda ready: None)
    except Exception as failure:  # of a second opinion, which nobody is to notice
        known = isinstance(failure, ShieldgateError)
        why = str(failure) if known else type(failure).__name__
        log.error(
            "there is no second opinion: its scorer can't be opened", why=why, exc_info=not known
        )
