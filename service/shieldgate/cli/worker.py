"""Builds the worker from the settings and runs it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from shieldgate.cli.listening import (
    end_with_supervisor,
    listen,
    run_app,
    start_logging,
    tell_supervisor,
    url,
)
from shieldgate.errors import needed
from shieldgate.scoring.hub import here
from shieldgate.settings import WorkerSettings
from shieldgate.worker.app import LoadingGenerator, create_app
from shieldgate.worker.scheduler import Scheduler
from shieldgate.worker.watermark.keys import WatermarkKeys, load_watermark_keys

if TYPE_CHECKING:
    from shieldgate.worker.generator import GemmaGenerator

log = structlog.get_logger(__name__)


def run(settings: WorkerSettings, *, supervised: int | None = None) -> None:
    """Serve until a signal or a failure; raise ConfigurationError, or exit with 0 or 1.

    `supervised` is the descriptor of the socket that a Supervisor handed down.
    """
    start_logging(settings)
    watermark = load_watermark_keys(settings.watermark_keys) if settings.watermark_keys else None

    @asynccontextmanager
    async def opened() -> AsyncIterator[Scheduler]:
        generator = await asyncio.to_thread(_load, settings, watermark)
        async with Scheduler(
            generator, max_running=settings.max_running, max_queued=settings.max_queued
        ) as scheduler:
            yield scheduler

    def became_ready() -> None:
        log.info(
            "generator ready",
            generator=settings.generator,
            assistant=settings.assistant,
            watermark=watermark.fingerprint if watermark else None,
        )
        if supervised is not None:
            tell_supervisor()

    if supervised is not None:
        end_with_supervisor()
    listener = listen(settings) if supervised is None else socket.socket(fileno=supervised)
    with listener:
        log.info("generator listening", url=url(listener), generator=settings.generator)
        run_app(
            lambda stop: create_app(LoadingGenerator(settings, opened, became_ready, stop)),
            listener,
            settings,
        )


def _load(settings: WorkerSettings, watermark: WatermarkKeys | None) -> "GemmaGenerator":
    for model in filter(None, (settings.generator, settings.assistant)):
        here(model)  # sooner than the seconds that importing torch takes
    with needed("Generating in this process", "local"):
        # Here, because it imports torch: the first answers do without.
        from shieldgate.worker.generator import load_generator  # noqa: PLC0415
    return load_generator(
        settings.generator,
        assistant=settings.assistant,
        revision=settings.generator_revision,
        device=settings.device,
        dtype=settings.dtype,
        watermark=watermark,
    )
