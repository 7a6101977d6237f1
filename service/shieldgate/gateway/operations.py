"""What operators and clients ask of the service itself."""

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from shieldgate.errors import UpstreamError
from shieldgate.gateway.services import Given, Services
from shieldgate.openai.models import Model, ModelList
from shieldgate.schemas import PoliciesReply, PolicyInfo, ProfileInfo, Status

router = APIRouter()
log = structlog.get_logger(__name__)


@router.get("/v1/policies")
async def policies(services: Given) -> PoliciesReply:
    """Show the policies and profiles in force."""
    book = services.policies.current
    return PoliciesReply(
        version=book.version,
        policies=[PolicyInfo.of(p) for p in book.policies.values()],
        profiles=[ProfileInfo.of(p) for p in book.profiles.values()],
    )


@router.get("/v1/models")
async def models(request: Request, services: Given) -> ModelList:
    """List upstream's models, which chats may name, then what moderations may name.

    The latter are the profiles and the scorer behind them.
    """
    names = list(services.policies.current.profiles)
    if services.scorer.ready:
        names.append(services.scorer.identity.name)
    return ModelList(
        data=await _models_of_upstream(request, services) + [Model(id=n) for n in names]
    )


async def _models_of_upstream(request: Request, services: Services) -> list[Model]:
    if services.upstream is None:
        return []
    try:
        listed = await services.upstream.models(request.headers)
    except UpstreamError as failure:
        # Not every server can list its models, and ours are still worth knowing.
        log.warning("upstream did not list its models", status=failure.status, code=failure.code)
        return []
    return [Model.of(entry) for entry in listed if isinstance(entry.get("id"), str)]


@router.get("/healthz")
async def health() -> Status:
    """Say that the process answers."""
    return Status(status="ok")


@router.get("/readyz", responses={503: {"model": Status}})
async def ready(services: Given, response: Response) -> Status:
    """Say whether all is there: the scorer is loaded and checked, the worker answers.

    From SIGTERM on it is not ready, while it finishes what is in progress.
    """
    if services.drain.stopping:
        status = "stopping"
    elif not services.scorer.ready:
        status = "loading"
    elif services.worker and not services.worker.ready:
        status = "waiting for the generator"
    else:
        return Status(status="ready")
    response.status_code = 503
    return Status(status=status)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: Given) -> Response:
    """Show all metrics, for Prometheus."""
    return Response(services.telemetry.page(), media_type=CONTENT_TYPE_LATEST)
