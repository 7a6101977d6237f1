"""Opens the scorer that the settings ask for."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from shieldgate.errors import needed
from shieldgate.scoring.batched import Batched, BatchObserver
from shieldgate.scoring.interfaces import Scorer
from shieldgate.settings import ScoringSettings, ServeSettings

if TYPE_CHECKING:
    from shieldgate.scoring.local import PackedEngine


@asynccontextmanager
async def open_scorer(
    settings: ScoringSettings,
    *,
    max_batch_tokens: int,
    max_waiting: int,
    max_seconds: float = math.inf,
    prefix_bytes: int = 0,
    observer: BatchObserver | None = None,
) -> AsyncIterator[Scorer]:
    """Load a scorer off the event loop, check it, and close it at the end.

    Raises ConfigurationError.
    """
    engine = await asyncio.to_thread(open_engine, settings, prefix_bytes)
    async with Batched(
        engine,
        max_batch_tokens=max_batch_tokens,
        max_waiting=max_waiting,
        max_seconds=max_seconds,
        passes=engine.passes,
        observer=observer,
    ) as scorer:
        yield scorer


def open_served(
    settings: ServeSettings, observer: BatchObserver
) -> AbstractAsyncContextManager[Scorer]:
    """Open a scorer with the limits of a server."""
    return open_scorer(
        settings,
        max_batch_tokens=settings.max_batch_tokens,
        max_waiting=settings.max_waiting,
        max_seconds=settings.guard_seconds,
        prefix_bytes=settings.prefix_bytes,
        observer=observer,
    )


def open_engine(settings: ScoringSettings, prefix_bytes: int = 0) -> "PackedEngine":
    """Load the blocking core of the scorer and check it; raise ConfigurationError.

    `prefix_bytes` is for answers that are judged while they grow.
    """
    with needed("Scoring in this process", "local"):
        # Here, because it imports torch: other commands, and the first answers, do without.
        from shieldgate.scoring.local import load_engine  # noqa: PLC0415
    engine = load_engine(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        template=settings.template,
        prefix_bytes=prefix_bytes,
    )
    engine.check()
    return engine
