"""Builds the gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from fastapi import FastAPI

from shieldgate.gateway import chat, moderations, operations, screen
from shieldgate.gateway.admission import OPEN, Admission
from shieldgate.gateway.drain import Draining
from shieldgate.gateway.edge import Account, BodyLimit
from shieldgate.gateway.errors import declared, install
from shieldgate.gateway.services import Services
from shieldgate.version import __version__

_LAST_SPANS_SECONDS = 2.0

_PARTS = (chat, moderations, screen, operations)


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Describe the routes, with the keys they take; FastAPI's 422 is our 400."""
        described = super().openapi()
        for path, methods in described["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                if self.state.services.keys and path not in OPEN:
                    operation["security"] = [{"key": []}]
        if self.state.services.keys:
            bearer = {"key": {"type": "http", "scheme": "bearer"}}
            described["components"]["securitySchemes"] = bearer
        for assumed in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(assumed, None)
        return described


def create_app(services: Services) -> FastAPI:
    """Build the app around `services`; its lifespan holds the scorer and follows the policies.

    It answers from the start, and scoring routes with 503 until the scorer is there.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(services.run(), name="services")
        try:
            async with services.upstream or nullcontext(), services.shared or nullcontext():
                yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SPANS_SECONDS):
                    await asyncio.to_thread(services.telemetry.traces.close)

    app = _App(
        title="shieldgate",
        version=__version__,
        summary="Content moderation with ShieldGemma, in front of any LLM",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        responses=declared(500, *((401, 403, 429) if services.keys else ())),
        # FastAPI's own spans and logs hold paths, queries and the messages of exceptions.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.services = services
    for part in _PARTS:
        app.include_router(part.router)
    install(app)
    app.add_middleware(
        BodyLimit,
        max_bytes=services.settings.max_body_bytes,
        seconds=services.settings.receive_seconds,
    )
    app.add_middleware(Draining, drain=services.drain)
    if services.keys:
        routes = [route for part in _PARTS for route in part.router.routes]
        app.add_middleware(Admission, keys=services.keys, limiter=services.limiter, routes=routes)
    app.add_middleware(Account, telemetry=services.telemetry)
    return app
