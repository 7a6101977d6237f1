"""Builds the gateway."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from shieldgate.access.rate_limits import LIMITED
from shieldgate.dialects import DIALECTS, Dialect
from shieldgate.dialects.interface import Wording
from shieldgate.gateway import (
    admin,
    chat,
    console,
    count_tokens,
    decisions,
    docs_page,
    embeddings,
    guards,
    moderations,
    operations,
    screen,
)
from shieldgate.gateway.errors import UPSTREAM_ID, components, declared, install
from shieldgate.gateway.middleware.admission import LIMIT_HEADERS, OPEN, AdmissionMiddleware
from shieldgate.gateway.middleware.body_limit import BodyLimitMiddleware
from shieldgate.gateway.middleware.drain import DrainMiddleware
from shieldgate.gateway.middleware.loopback import LoopbackMiddleware
from shieldgate.gateway.middleware.requests import RequestMiddleware
from shieldgate.gateway.services import Services
from shieldgate.telemetry import DriftWatch, RecentFigures
from shieldgate.version import __version__

# What pages of other origins may see of a reply's headers.
_EXPOSED = (
    *("x-request-id", UPSTREAM_ID, "retry-after"),
    *("x-shieldgate-profile", "x-shieldgate-unscreened"),
    *(name.format(what) for what in LIMITED for name in LIMIT_HEADERS),
)

_LAST_SPANS_SECONDS = 2.0


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Describe the routes, with the keys they take; FastAPI's 422 is our 400."""
        described = super().openapi()
        wordings: Mapping[str, Wording] = self.state.wordings
        default: Wording = self.state.dialects[0]
        schemes: dict[str, Any] = {}
        for path, methods in described["paths"].items():
            for operation in methods.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
                if self.state.services.keys and path not in OPEN:
                    found = [c.openapi() for c in wordings.get(path, default).credentials]
                    schemes |= dict(found)
                    operation["security"] = [{name: []} for name, _ in found]
        if schemes:
            described["components"]["securitySchemes"] = schemes
        errors = components({w.error_model for w in (*DIALECTS, *wordings.values())})
        schemas = errors | described["components"]["schemas"]
        described["components"]["schemas"] = dict(sorted(schemas.items()))
        for assumed in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(assumed, None)
        return described


def create_app(services: Services, dialects: Sequence[Dialect] = DIALECTS) -> FastAPI:
    """Build the app around `services`; its lifespan holds the scorer and follows the policies.

    It answers from the start, and scoring routes with 503 until the scorer is there. What belongs
    to no route of `dialects` is worded by the first of them.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(_run(services, app.state.figures), name="services")
        try:
            async with (
                services.upstream or nullcontext(),
                services.shared or nullcontext(),
                services.screener.keeper or nullcontext(),
            ):
                yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SPANS_SECONDS):
                    await asyncio.to_thread(services.telemetry.traces.close)

    if patterns := [d.route for d in dialects if "{" in d.route]:
        # The layers around the routes find the dialect by the path that is asked.
        raise ValueError(f"The route of a dialect is a plain path, and this is none: {patterns[0]}")
    settings = services.settings
    everywhere = (500, *((401, 403, 429) if services.keys else ()))
    app = _App(
        title="shieldgate",
        version=__version__,
        summary="Content moderation with ShieldGemma, in front of any LLM",
        lifespan=lifespan,
        redirect_slashes=False,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        docs_url=None,
        redoc_url=None,
        responses=declared(*everywhere),
        # FastAPI's own spans and logs hold paths, queries and the messages of exceptions.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.services = services
    app.state.dialects = dialects
    wordings: dict[str, Wording] = {**{d.route: d for d in dialects}, **guards.WORDINGS}
    app.state.wordings = wordings
    routers = (
        chat.routes(dialects, everywhere),
        *(part.router for part in (count_tokens, embeddings, decisions)),
        *(part.router for part in (moderations, screen, operations, console, docs_page)),
        *guards.routers(everywhere, dialects[0]),
    )
    described = [
        (route.path, "POST" in (route.methods or ()))
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
    ]
    asked = [path for path, takes_text in described if takes_text]
    app.state.paths, app.state.screened = [path for path, _ in described], asked
    app.state.figures = RecentFigures(services.telemetry, frozenset(asked).__contains__)
    routers = (*routers, *admin.routers)
    for router in routers:
        app.include_router(router)
    install(app)
    app.add_middleware(
        BodyLimitMiddleware,
        max_bytes=settings.max_body_bytes,
        seconds=settings.receive_seconds,
    )
    app.add_middleware(DrainMiddleware, drain=services.drain)
    if services.keys:
        app.add_middleware(
            AdmissionMiddleware,
            keys=services.keys,
            limiter=services.limiter,
            routes=[route for router in routers for route in router.routes],
        )
    elif not settings.uds:
        # Who may ask for verdicts without a key may not see those of others.
        below = "/admin/" if settings.keyless else "/"
        app.add_middleware(LoopbackMiddleware, origins=settings.origins, below=below)
    app.add_middleware(
        RequestMiddleware,
        telemetry=services.telemetry,
        wordings=wordings,
        default=dialects[0],
        root_path=settings.root_path,
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )
    return app


async def _run(services: Services, figures: RecentFigures) -> None:
    """Hold what runs beside the routes until cancelled; stop the server on failure."""
    drift = DriftWatch(
        services.telemetry,
        lambda: services.policies.current.expected_scores(services.screener.name),
    )
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(drift.run())
            group.create_task(services.screener.scorer.hold(services.telemetry.ready))
            group.create_task(services.policies.watch())
            group.create_task(services.limiter.run())
            group.create_task(figures.run())
            if services.shared_decisions:
                group.create_task(services.shared_decisions.run())
            if services.keys:
                group.create_task(services.keys.watch())
            if services.worker:
                group.create_task(services.worker.run())
            if services.screener.shadow:
                group.create_task(services.screener.shadow.run(services.screener.threads))
    except ExceptionGroup as failures:
        services.stop(failures.exceptions[0])
    finally:
        services.telemetry.ready(False)
