"""What operators and clients ask of the service itself."""

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from shieldgate.dialects.openai import MODELS
from shieldgate.errors import UpstreamError
from shieldgate.gateway.errors import RequestError, declared
from shieldgate.gateway.services import Services, ServicesDep
from shieldgate.gateway.state import state_of
from shieldgate.openai.models import Model, ModelList
from shieldgate.schemas import PoliciesReply, Status

router = APIRouter()
log = structlog.get_logger(__name__)


@router.get("/v1/policies")
async def policies(request: Request, services: ServicesDep) -> PoliciesReply:
    """Show the policies and profiles in force, and where their thresholds come from.

    From which data they were calibrated is shown to keys with `admin: true`, and to this machine
    where it has the server for itself.
    """
    key = state_of(request.scope).key
    admin = key.admin if key else not services.settings.keyless
    return PoliciesReply.of(services.policies.current, services.screener.name, provenance=admin)


@router.get("/v1/models")
async def models(request: Request, services: ServicesDep) -> ModelList:
    """List upstream's models, which chats may name, then what moderations may name.

    The latter are the profiles and the scorer behind them.
    """
    return ModelList(data=await _models(request, services))


@router.get("/v1/models/{model:path}", responses=declared(404))
async def model(model: str, request: Request, services: ServicesDep) -> Model:
    """Show one of them."""
    found = (known for known in await _models(request, services) if known.id == model)
    if first := next(found, None):
        return first
    raise RequestError(
        "There is no model of this name. /v1/models lists those there are.", "model", 404
    )


async def _models(request: Request, services: Services) -> list[Model]:
    names = list(services.policies.current.profiles)
    if scorer := services.screener.name:
        names.append(scorer)
    return await _models_of_upstream(request, services) + [Model(id=n) for n in names]


async def _models_of_upstream(request: Request, services: Services) -> list[Model]:
    if services.upstream is None:
        return []
    try:
        listed = await services.upstream.models(MODELS, request.headers)
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
async def ready(services: ServicesDep, response: Response) -> Status:
    """Say whether all is there: the scorer is loaded, checked and available, the worker answers.

    From SIGTERM on it is not ready, while it finishes what is in progress.
    """
    if services.drain.stopping:
        status = "stopping"
    elif not services.screener.scorer.loaded:
        status = "loading"
    elif not services.screener.scorer.ready:
        status = "waiting for the scorer"
    elif services.worker and not services.worker.ready:
        status = "waiting for the generator"
    else:
        return Status(status="ready")
    response.status_code = 503
    return Status(status=status)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: ServicesDep) -> Response:
    """Show all metrics, for Prometheus."""
    return Response(services.telemetry.page(), media_type=CONTENT_TYPE_LATEST)
