"""`GET /admin/shadow`: what a candidate says of live traffic beside what is in force."""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter
from pydantic import BaseModel

from shieldgate.gateway.services import ServicesDep
from shieldgate.telemetry import Flip, ShadowFigures, ShadowOutcome
from shieldgate.types import Action, Direction

router = APIRouter()


class Decided(BaseModel):
    """How many texts were decided so by both."""

    direction: Direction
    in_force: Action
    candidate: Action
    texts: int


class Flipped(BaseModel):
    """How many texts only one of the two finds violating a policy."""

    policy: str
    direction: Direction
    flip: Flip
    texts: int


class ShadowReply(BaseModel):
    """Who the candidate is, and what was counted since the start.

    `share` of all decisions are judged twice; `texts` are by what became of them. `tokens` were
    computed for the candidate, in `seconds`. docs/shadow.md says what each word means.
    """

    ready: bool
    scorer: str
    policy_book: str
    profile: str | None
    share: float
    texts: dict[ShadowOutcome, int]
    decisions: Sequence[Decided]
    flips: Sequence[Flipped]
    tokens: int
    seconds: float


@router.get("/admin/shadow")
async def shadow(services: ServicesDep) -> ShadowReply | None:
    """Show second opinions, out of the metrics; null where none are asked for."""
    candidate = services.screener.shadow
    if candidate is None:
        return None
    # In a thread, because the files of several processes are read.
    found = await asyncio.to_thread(
        lambda: ShadowFigures.of(services.telemetry.gathered().collect())
    )
    return ShadowReply.model_validate(
        {
            "ready": found.ready,
            "scorer": candidate.scorer,
            "policy_book": candidate.candidate.book().version,
            "profile": candidate.candidate.profile,
            "share": candidate.share,
            "texts": found.texts,
            "decisions": [
                {"direction": direction, "in_force": before, "candidate": after, "texts": texts}
                for (direction, before, after), texts in sorted(found.decisions.items())
            ],
            "flips": [
                {"policy": policy, "direction": direction, "flip": flip, "texts": texts}
                for (policy, direction, flip), texts in sorted(found.flips.items())
            ],
            "tokens": found.tokens,
            "seconds": found.seconds,
        }
    )
