"""What other gateways ask of a guard, each in its own words; `guard` judges for all of them."""

from collections.abc import Mapping, Sequence

from fastapi import APIRouter

from shieldgate.dialects.interface import Wording
from shieldgate.gateway.errors import declared
from shieldgate.gateway.guards import (
    agentgateway,
    azure,
    classify,
    detectors,
    litellm,
    portkey,
    wording,
)

_GUARDS = (litellm, detectors, classify, azure, portkey, agentgateway)

WORDINGS: Mapping[str, Wording] = {
    "/api/v1/text": wording.Detectors(),
    "/contentsafety": wording.Azure(),
    "/v1/guards/portkey": wording.Portkey(),
}


def routers(statuses: Sequence[int]) -> list[APIRouter]:
    """List the routes; `statuses` are the errors that every route may answer with."""
    return [guard.router for guard in _GUARDS]
