"""Opens the scorer that the settings ask for."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from shieldgate.errors import ModelError, needed
from shieldgate.prompt import find_template
from shieldgate.scoring.batched import Batched, BatchObserver
from shieldgate.scoring.cascade import Cascade, CascadeObserver, load_cascade
from shieldgate.scoring.hub import here
from shieldgate.scoring.interfaces import OpenScorer
from shieldgate.scoring.precedence import Precedence
from shieldgate.scoring.remote.observer import RemoteObserver
from shieldgate.settings import ScoringSettings, ServeSettings

if TYPE_CHECKING:
    from shieldgate.scoring.local import PackedEngine
    from shieldgate.scoring.prompts import PromptBuilder

# A forward pass takes in no more than this, so that who is in it or comes meanwhile need not wait
# long. Where it is reached, on CPUs and for the larger models on GPUs, more at once isn't faster.
_PASS_SECONDS = 0.1

log = structlog.get_logger(__name__)


class ScorerObserver(BatchObserver, RemoteObserver, CascadeObserver, Protocol):
    """Sees how a scorer fares, here or elsewhere, and who of a cascade decides."""


class OpenRemote(Protocol):
    """Opens a scorer elsewhere, in which `max_waiting` calls are at most at once."""

    def __call__(
        self,
        settings: ScoringSettings,
        *,
        max_waiting: int,
        observer: ScorerObserver | None = None,
    ) -> AbstractAsyncContextManager[OpenScorer]:
        """Open it; raise ConfigurationError, or ScorerUnavailable for now."""
        ...


def open_remote(
    settings: ScoringSettings, *, max_waiting: int, observer: ScorerObserver | None = None
) -> AbstractAsyncContextManager[OpenScorer]:
    """Open the model that the server at a URL serves, or several servers alike."""
    # Here, because it loads the library of tokenizers, and other commands do without.
    from shieldgate.scoring.remote import opening  # noqa: PLC0415

    return opening.open_remote(settings, max_waiting=max_waiting, observer=observer)


# Scorers elsewhere, by how the setting `model` begins; any other name is a model in this process.
REMOTE: dict[str, OpenRemote] = {"http://": open_remote, "https://": open_remote}


@asynccontextmanager
async def open_scorer(
    settings: ScoringSettings,
    *,
    max_batch_tokens: int,
    max_waiting: int,
    max_seconds: float = math.inf,
    max_pass_seconds: float = math.inf,
    prefix_bytes: int = 0,
    warm: bool = False,
    observer: ScorerObserver | None = None,
    gate: Callable[[], Awaitable[object]] | None = None,
) -> AsyncIterator[OpenScorer]:
    """Open a scorer of `REMOTE`, or load and check one off the event loop; close it at the end.

    Of what is given beside the settings, `max_waiting` and `observer` are for both. `warm` is for
    many texts: where a GPU computes, it takes a minute and pays then. A forward pass here
    waits for `gate`. Raises ConfigurationError, and ScorerUnavailable where one elsewhere isn't
    there.
    """
    if settings.cascade is not None:
        file = load_cascade(settings.cascade)
        opening = partial(
            open_scorer,
            max_batch_tokens=max_batch_tokens,
            max_waiting=max_waiting,
            max_seconds=max_seconds,
            max_pass_seconds=max_pass_seconds,
            prefix_bytes=prefix_bytes,
            warm=warm,
            observer=observer,
            gate=gate,
        )
        alone = settings.model_copy(update={"cascade": None})
        # The second first: where it is elsewhere and not there yet, nothing is loaded in vain.
        async with opening(alone) as second, opening(file.first.settings(settings)) as first:
            yield Cascade(first, second, file, observer)
        return
    for beginning, open_elsewhere in REMOTE.items():
        if settings.model.startswith(beginning):
            async with open_elsewhere(
                settings, max_waiting=max_waiting, observer=observer
            ) as elsewhere:
                yield elsewhere
            return
    engine = await asyncio.to_thread(open_engine, settings, prefix_bytes)
    if warm:
        await asyncio.to_thread(compile_for_gpu, engine, max_batch_tokens)
    async with Batched(
        engine,
        max_batch_tokens=max_batch_tokens,
        max_waiting=max_waiting,
        max_seconds=max_seconds,
        max_pass_seconds=max_pass_seconds,
        passes=engine.passes,
        observer=observer,
        gate=gate,
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
        max_pass_seconds=_PASS_SECONDS,
        prefix_bytes=settings.prefix_bytes,
        warm=True,
        observer=observer,
    )


@asynccontextmanager
async def open_candidate(
    settings: ServeSettings, precedence: Precedence
) -> AsyncIterator[OpenScorer]:
    """Open the candidate of `settings.shadow_scorer()` once the scorer that goes first is there."""
    candidate = settings.shadow_scorer()
    if candidate is None:
        raise ValueError("The candidate is judged by the scorer that goes first.")
    await precedence.opened()
    async with open_scorer(
        candidate,
        max_batch_tokens=settings.max_batch_tokens,
        max_waiting=settings.max_waiting,
        max_seconds=settings.guard_seconds,
        # Where the scorer that goes first is elsewhere, it is in nobody's way.
        gate=None if settings.servers else precedence.idle,
    ) as scorer:
        yield scorer


def compile_for_gpu(engine: "PackedEngine", max_batch_tokens: int) -> None:
    """Compile a scorer that is on one GPU; what can't be compiled there is left as it is."""
    for options in engine.kernel_options:
        try:
            engine.warm(max_batch_tokens, options=options)
        except Exception:  # compilers raise all sorts, and scoring goes on without
            log.warning("not compiled", scorer=engine.identity.name, exc_info=True)
        else:
            return


def open_prompts(model: str, *, revision: str | None = None, template: str) -> "PromptBuilder":
    """Load what builds the prompts of a model, but not the model; raise ConfigurationError."""
    if model.endswith(".gguf"):
        from shieldgate.scoring.local import load_gguf_prompts  # noqa: PLC0415

        return load_gguf_prompts(model, template=template)
    from shieldgate.scoring.prompts import PromptBuilder  # noqa: PLC0415
    from shieldgate.scoring.tokenizer_files import load_tokenizer  # noqa: PLC0415

    files = load_tokenizer(model, revision=revision)
    words, encoder = files.encoder(find_template(template))
    if files.context is None:
        raise ModelError(
            f"{model}: its config.json has no max_position_embeddings, so that the room for texts "
            "is unknown."
        )
    return PromptBuilder(words, encoder, files.context)


def open_engine(settings: ScoringSettings, prefix_bytes: int = 0) -> "PackedEngine":
    """Load the blocking core of the scorer and check it; raise ConfigurationError.

    `prefix_bytes` is for answers that are judged while they grow.
    """
    # Sooner than the seconds that importing torch takes.
    here(settings.model)
    find_template(settings.template)
    # Where torchao is installed, transformers imports it, and it tells what it was not built for.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with needed("Scoring in this process", "local"):
        # Here, because it imports torch: other commands, and the first answers, do without.
        from shieldgate.scoring.local import load_engine  # noqa: PLC0415
    engine = load_engine(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        template=settings.template,
        prefix_bytes=prefix_bytes,
    )
    if settings.known_languages:
        engine.identity = replace(engine.identity, languages=settings.known_languages)
    engine.check()
    return engine
