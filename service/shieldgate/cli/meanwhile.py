"""What a server does while its scorer is loaded: it says so, and has a look at upstream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from shieldgate.dialects.openai import MODELS
from shieldgate.errors import UpstreamError
from shieldgate.given_settings import flag
from shieldgate.upstream import Upstream

log = structlog.get_logger(__name__)


@asynccontextmanager
async def looking_at(upstream: Upstream | None) -> AsyncIterator[None]:
    """Have a look at upstream meanwhile, if there is one."""
    looking = asyncio.create_task(_look_at(upstream)) if upstream else None
    try:
        yield
    finally:
        if looking:
            looking.cancel()


@asynccontextmanager
async def while_loading(model: str, seconds: float = 10) -> AsyncIterator[Callable[[], object]]:
    """Say every few seconds that a scorer is being loaded, until what this gives is called."""

    async def say() -> None:
        log.info("loading", model=model)
        while True:
            await asyncio.sleep(seconds)
            log.info("still loading", model=model)

    saying = asyncio.create_task(say())
    try:
        yield saying.cancel
    finally:
        saying.cancel()


async def _look_at(upstream: Upstream) -> None:
    """Ask upstream for its models once, and say what of its URL seems wrong."""
    try:
        await upstream.models(MODELS, {})
    except UpstreamError as failure:
        if failure.code in ("upstream_unreachable", "upstream_untrusted", "upstream_timeout"):
            log.warning("upstream can't be asked", url=upstream.url, why=str(failure))
        elif not upstream.url.endswith("/v1") and (
            failure.status == 404 or failure.code == "upstream_invalid"
        ):
            log.warning(
                "upstream seems to have no API at this URL",
                url=upstream.url,
                why=str(failure),
                mend=f"most end with /v1: {flag('upstream')} {upstream.url}/v1",
            )
