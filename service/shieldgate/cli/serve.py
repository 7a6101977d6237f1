"""Builds the gateway from the settings and runs it."""

import asyncio
import gc
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext

import structlog
from fastapi import FastAPI
from pydantic import SecretStr

from shieldgate import language
from shieldgate.access.keys import LiveKeys
from shieldgate.access.rate_limits import RateLimiter
from shieldgate.cli.listening import is_local, listen, run_app, start_logging, tell_supervisor, url
from shieldgate.cli.meanwhile import looking_at, while_loading
from shieldgate.cli.options import chosen_profile
from shieldgate.cli.processes import GatewayProcess, run_processes
from shieldgate.cli.shadow_serving import prepare_shadow
from shieldgate.cli.stores import (
    audit_secret,
    audit_sink,
    cache_secret,
    open_kept_texts,
    open_redis,
    shared_history,
)
from shieldgate.cli.telemetry import build_telemetry
from shieldgate.errors import ConfigurationError
from shieldgate.gateway.app import create_app
from shieldgate.gateway.middleware.drain import Drain
from shieldgate.gateway.screening import Screener
from shieldgate.gateway.services import Services
from shieldgate.given_settings import flag
from shieldgate.history import History
from shieldgate.moderation import AT_ONCE
from shieldgate.policy import LiveBook, PolicyBook
from shieldgate.prompt import find_template
from shieldgate.scoring import (
    Cached,
    Identity,
    OpenScorer,
    Resilient,
    Scorer,
    UnixSocketScorer,
    calibrated_elsewhere,
)
from shieldgate.scoring.cascade import load_cascade
from shieldgate.scoring.factory import open_served
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.scoring.precedence import Precedence
from shieldgate.settings import ServeSettings
from shieldgate.telemetry import Audit, SharedDecisions
from shieldgate.types import DIRECTIONS
from shieldgate.upstream import Upstream
from shieldgate.worker.supervisor import Supervisor
from shieldgate.worker.watermark.keys import load_watermark_keys

# What a gateway takes to reach a scorer process that is there.
_ARRIVAL_SECONDS = 1

log = structlog.get_logger(__name__)


def run(settings: ServeSettings, part: GatewayProcess | None = None) -> None:
    """Serve until a signal or a failure; raise ConfigurationError, or exit with 0 or 1.

    With `part`, it is one of several gateway processes.
    """
    start_logging(settings)
    telemetry = build_telemetry()
    live = LiveBook.load(
        settings.policies, profile=settings.profile, refused=telemetry.policies_refused
    )
    chosen_profile(live.current, settings)
    keys = None
    if settings.keys:
        keys = LiveKeys(settings.keys, lambda: live.current, refused=telemetry.keys_refused)
        live.bound = lambda: keys.current.profiles
    secret = cache_secret(settings)
    shared, second = open_redis(settings, secret, telemetry)
    audit = Audit(audit_secret(settings), audit_sink(settings, shared, telemetry))
    keeper, desk = open_kept_texts(settings, telemetry)

    precedence = Precedence()
    shadowing = prepare_shadow(
        settings,
        live=live,
        telemetry=telemetry,
        precedence=precedence,
        secret=secret,
        shared=shared,
        second=second,
        scorer=part.scorer if part else None,
    )
    scorer_process = UnixSocketScorer(part.scorer) if part else None
    served: OpenScorer | None = None

    @asynccontextmanager
    async def opened() -> AsyncIterator[Scorer]:
        nonlocal served
        # Beside each other, because loading a scorer takes long.
        async with (
            looking_at(None if worker else upstream),
            while_loading(settings.model) as loaded,
            scorer_process or open_served(settings, telemetry) as scorer,
        ):
            loaded()
            served = scorer
            live.check = scorer.check
            await scorer.check(live.current.policies.values())
            await live.reload()  # what came while there was no scorer to check it
            await _settle(scorer.identity)
            if part:
                tell_supervisor()
            first = precedence.before(scorer)
            cached = Cached(
                Resilient(first, seconds=settings.guard_seconds, observer=telemetry),
                secret=secret,
                max_entries=settings.cache_entries,
                second=second,
                observer=telemetry,
            )
            async with shadowing.beside(scorer, cached) if shadowing else nullcontext():
                # The last word, because people and scripts begin to ask when they read it.
                _log_scorer(scorer.identity, live.current, settings)
                yield cached

    _check_room(settings)
    upstream, worker = _answering(settings)
    drain = Drain()

    def build(stop: Callable[[Exception], None]) -> FastAPI:
        return create_app(
            Services(
                settings,
                live,
                Screener(
                    LoadingScorer(
                        opened,
                        scorer_process.gone if scorer_process else None,
                        lambda: served is not None and served.available,
                        # Of several gateways one may be ready a moment before another.
                        patience=_ARRIVAL_SECONDS if part else 0,
                    ),
                    telemetry,
                    audit,
                    seconds=settings.guard_seconds,
                    keeper=keeper,
                    shadow=shadowing.shadow if shadowing else None,
                ),
                telemetry,
                stop,
                worker=worker,
                upstream=upstream,
                drain=drain,
                keys=keys,
                limiter=RateLimiter(shared),
                shared=shared,
                history=History(
                    secret=secret,
                    max_bytes=settings.history_bytes,
                    max_entry_bytes=settings.max_body_bytes,
                    keep_seconds=settings.history_seconds,
                    shared=shared_history(settings, secret, shared),
                ),
                shared_decisions=SharedDecisions(audit.recent, part.scorer.parent)
                if part
                else None,
                desk=desk,
            )
        )

    async def reload() -> None:
        await live.reload()
        if shadowing:
            await shadowing.reload()
        if keys:
            await keys.reload()

    with part.listener if part else listen(settings) as listener:
        if not part:
            _check_open(listener, settings)
            _log_listening(listener, live, settings)
            if settings.processes > 1:
                run_processes(settings, listener)
                return
        run_app(build, listener, settings, on_hangup=reload, drain=drain)


def _check_room(settings: ServeSettings) -> None:
    """Refuse limits under which a full request could never be served; ConfigurationError."""
    if settings.max_inputs * AT_ONCE > settings.max_waiting:
        raise ConfigurationError(
            f"{flag('max_inputs')} is {settings.max_inputs} and {flag('max_waiting')} "
            f"{settings.max_waiting}, and each text may have {AT_ONCE} pieces waiting, so a full "
            f"request could never be served. Raise {flag('max_waiting')} or lower "
            f"{flag('max_inputs')}."
        )


def _answering(settings: ServeSettings) -> tuple[Upstream | None, Supervisor | None]:
    """Prepare what answers chats, if anything does; raise ConfigurationError."""
    if settings.upstream and settings.generator:
        raise ConfigurationError(
            f"{flag('upstream')} and {flag('generator')} both answer chats. Give one of them."
        )
    if settings.assistant and not settings.generator:
        raise ConfigurationError(
            f"{flag('assistant')} drafts for a generator. Name one with {flag('generator')}."
        )
    if settings.watermark_keys and not settings.generator:
        raise ConfigurationError(
            f"{flag('watermark_keys')} marks what a generator writes. Name one with "
            f"{flag('generator')}."
        )
    template = find_template(settings.template)
    if template.for_response is None and (settings.upstream or settings.generator):
        raise ConfigurationError(
            f"The template {template.name!r} judges prompts only, and chats have answers. Choose "
            f"another {flag('template')}."
        )
    if settings.generator and settings.processes > 1:
        raise ConfigurationError(
            f"{flag('generator')} belongs to one gateway process, and {flag('processes')} asks for "
            f"{settings.processes}. Run 'shieldgate worker' beside, and give its address as "
            f"{flag('upstream')}."
        )
    silence = settings.upstream_seconds
    if settings.upstream:
        upstream = Upstream(
            str(settings.upstream),
            key=_shown(settings.upstream_key),
            headers=_shown(settings.upstream_headers) or "",
            proxy=_shown(settings.upstream_proxy),
            # With keys of our own, what callers send is ours and nothing for others.
            passes_account=settings.keys is None,
            silence_seconds=silence,
        )
        return upstream, None
    if not settings.generator:
        return None, None
    if settings.watermark_keys:
        load_watermark_keys(settings.watermark_keys)  # sooner than the worker will
    flags = {
        "generator": settings.generator,
        "generator_revision": settings.generator_revision,
        "assistant": settings.assistant,
        "watermark_keys": settings.watermark_keys,
        "device": settings.device,
        "dtype": settings.dtype,
        "max_body_bytes": settings.max_body_bytes,
        "log_level": settings.log_level,
        "log_format": settings.log_format,
    }
    given = (word for k, v in flags.items() if v is not None for word in (flag(k), str(v)))
    listener = socket.create_server(("127.0.0.1", 0))
    worker = Supervisor([sys.executable, "-m", "shieldgate", "worker", *given], listener)
    upstream = Upstream(f"{url(listener)}/v1", passes_account=False, silence_seconds=silence)
    return upstream, worker


def _shown(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


async def _settle(scorer: Identity) -> None:
    """Load what the first text needs beside the scorer, and keep all of it.

    It is left out of the search for garbage, which would stop all requests for a quarter of a
    second, every second under load.
    """
    if scorer.languages is not None:
        await asyncio.to_thread(language.load)
    gc.collect()
    gc.freeze()


def _check_open(listener: socket.socket, settings: ServeSettings) -> None:
    """Refuse to serve everybody by mistake; raise ConfigurationError."""
    if not (settings.keys or settings.keyless or is_local(listener)):
        raise ConfigurationError(
            f"{flag('host')} {settings.host} can be reached from other machines, and there are no "
            "API keys. Make one with 'shieldgate keys new' and give its file as "
            f"{flag('keys')}, or say {flag('keyless')} to serve whoever reaches it."
        )


def _log_listening(listener: socket.socket, live: LiveBook, settings: ServeSettings) -> None:
    """Say what is served, before the scorer is loaded."""
    log.info(
        "listening",
        url=url(listener),
        model=settings.model,
        device=settings.device,
        chat=settings.generator or (settings.upstream and str(settings.upstream)),
        template=settings.template,
        profile=settings.profile,
        policies=str(live.path),
        policy_book=live.current.version,
    )
    if settings.keys:
        if settings.upstream and not settings.upstream_key:
            log.info("upstream is asked without a key: callers' keys are for this server only")
    elif is_local(listener):
        log.info("there are no API keys: only this machine can reach the server")
    else:
        log.warning("there are no API keys: whoever reaches this address can use the server")
    if settings.model == "starter":
        log.info(
            "the starter scorer is for development and light use; for a better one on this "
            "machine: make serve-small, or --model small; for the real one: --model "
            "google/shieldgemma-2b"
        )


def _log_scorer(scorer: Identity, book: PolicyBook, settings: ServeSettings) -> None:
    """Say what the scorer is, and where nothing was calibrated for it."""
    log.info("ready", scorer=scorer.name, dtype=scorer.dtype, windows=scorer.windows)
    policies = book.select(chosen_profile(book, settings))
    others = calibrated_elsewhere(policies, scorer)
    if others:
        log.warning(
            "calibrated in another dtype: scores near a threshold may fall to the other side",
            dtype=scorer.dtype,
            calibrated=", ".join(others),
        )
    bare = [
        policy.id
        for policy in policies
        if any(policy.calibration(scorer.name, direction) is None for direction in DIRECTIONS)
    ]
    if bare:
        log.warning(
            "not calibrated for this scorer: default thresholds decide", policies=", ".join(bare)
        )
    if settings.cascade and (outgrown := load_cascade(settings.cascade).outgrown(book)):
        log.warning(
            "a threshold was changed since the cascade was calibrated: calibrate it again",
            policies=", ".join(outgrown),
        )
