"""What other gateways ask of a guard, each in its own words; `guard` judges for all of them."""

from collections.abc import Mapping, Sequence

from fastapi import APIRouter

from shieldgate.dialects.interface import Wording
from shieldgate.gateway.errors import declared
from shieldgate.gateway.guards import (
    agentgateway,
    azure,
    chat,
    classify,
    detectors,
    litellm,
    portkey,
    wording,
)

WORDINGS: Mapping[str, Wording] = {
    "/api/v1/text": wording.Detectors(),
    "/contentsafety": wording.Azure(),
    "/v1/guards/portkey": wording.Portkey(),
}
_DETECTORS, _AZURE, _PORTKEY = WORDINGS.values()


def routers(statuses: Sequence[int], default: Wording) -> list[APIRouter]:
    """List the routes; `statuses` are the errors that every route may answer with."""
    worded = (
        (litellm, default),
        (detectors, _DETECTORS),
        (classify, default),
        (chat, default),
        (azure, _AZURE),
        (portkey, _PORTKEY),
        (agentgateway, default),
    )
    found = []
    for guard, words in worded:
        router = APIRouter()
        router.include_router(guard.router, responses=declared(*statuses, model=words.error_model))
        found.append(router)
    return found
