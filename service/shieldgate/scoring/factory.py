"""Opens the scorer that the settings ask for."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from shieldgate.errors import needed
from shieldgate.scoring.batched import Batched, BatchObserver
from shieldgate.scoring.cascade import Cascade, CascadeObserver, load_cascade
from shieldgate.scoring.interfaces import OpenScorer
from shieldgate.settings import ScoringSettings, ServeSettings

if TYPE_CHECKING:
    from shieldgate.scoring.local import PackedEngine
    from shieldgate.scoring.prompts import PromptBuilder

# Scorers elsewhere, by how the setting `model` begins; any other name is a model in this process.
REMOTE: dict[str, Callable[[ScoringSettings], AbstractAsyncContextManager[OpenScorer]]] = {}

log = structlog.get_logger(__name__)


class ScorerObserver(BatchObserver, CascadeObserver, Protocol):
    """Sees how a scorer fares, and who of a cascade decides."""


@asynccontextmanager
async def open_scorer(
    settings: ScoringSettings,
    *,
    max_batch_tokens: int,
    max_waiting: int,
    max_seconds: float = math.inf,
    prefix_bytes: int = 0,
    warm: bool = False,
    observer: ScorerObserver | None = None,
) -> AsyncIterator[OpenScorer]:
    """Open a scorer of `REMOTE`, or load and check one off the event loop; close it at the end.

    What is given beside the settings is for one in this process. `warm` is for many texts: where
    a GPU computes, it takes a minute and pays then. Raises ConfigurationError.
    """
    if settings.cascade is not None:
        file = load_cascade(settings.cascade)
        opening = partial(
            open_scorer,
            max_batch_tokens=max_batch_tokens,
            max_waiting=max_waiting,
            max_seconds=max_seconds,
            prefix_bytes=prefix_bytes,
            warm=warm,
            observer=observer,
        )
        alone = settings.model_copy(update={"cascade": None})
        async with opening(file.first.settings(settings)) as first, opening(alone) as second:
            yield Cascade(first, second, file, observer)
        return
    for beginning, open_remote in REMOTE.items():
        if settings.model.startswith(beginning):
            async with open_remote(settings) as remote:
                yield remote
            return
    engine = await asyncio.to_thread(open_engine, settings, prefix_bytes)
    if warm:
        await asyncio.to_thread(compile_for_gpu, engine, max_batch_tokens)
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
    settings: ServeSettings, observer: ScorerObserver
) -> AbstractAsyncContextManager[OpenScorer]:
    """Open a scorer with the limits of a server."""
    return open_scorer(
        settings,
        max_batch_tokens=settings.max_batch_tokens,
        max_waiting=settings.max_waiting,
        max_seconds=settings.guard_seconds,
        prefix_bytes=settings.prefix_bytes,
        warm=True,
        observer=observer,
    )


def compile_for_gpu(engine: "PackedEngine", max_batch_tokens: int) -> None:
    """Compile a scorer that is on one GPU; what can't be compiled there is left as it is."""
    for options in engine.kernel_options:
        try:
            engine.warm(max_batch_tokens, options=options)
        except Exception:  # compilers raise all sorts, and scoring goes on without
            log.warning("not compiled", scorer=engine.identity.name, exc_info=True)
        else:
            return


def open_prompts(
    model: str, *, revision: str | None = None, template: str = "chat"
) -> "PromptBuilder":
    """Load what builds the prompts of a model, but not the model; raise ConfigurationError."""
    with needed("Checking for a model", "local"):
        from shieldgate.scoring.local import load_prompts  # noqa: PLC0415
    return load_prompts(model, revision=revision, template=template)


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
