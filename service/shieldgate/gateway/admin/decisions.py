"""`GET /admin/decisions`: the last records of decisions."""

from datetime import datetime
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from shieldgate.gateway.services import ServicesDep
from shieldgate.schemas import Name
from shieldgate.types import Action

router = APIRouter()


class DecisionInfo(BaseModel):
    """A record as docs/audit.md has it; `at` is its place among the others."""

    at: int
    timestamp: datetime
    record: dict[str, Any]


class DecisionsReply(BaseModel):
    """Records, the newest first; with `next` as `before` come those that are older.

    `callers` are all that are known here. `kept` records are there in all, the oldest of them is
    from `since`.
    """

    decisions: list[DecisionInfo]
    next: int | None
    callers: list[str]
    kept: int
    since: datetime | None


@router.get("/admin/decisions")
async def decisions(
    services: ServicesDep,
    *,
    caller: Name | None = None,
    policy: Name | None = None,
    action: Action | None = None,
    before: int | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> DecisionsReply:
    """Show the last decisions of a `caller`, with an `action`, that violated a `policy`."""
    recent = list(services.screener.audit.recent)
    wanted = (
        decision
        for decision in recent
        if (before is None or decision.at < before)
        and (caller is None or decision.record.get("caller") == caller)
        and (action is None or decision.record["action"] == action)
        and (policy is None or policy in decision.record["violated"])
    )
    found = list(islice(wanted, limit + 1))
    page, older = found[:limit], found[limit:]
    return DecisionsReply(
        decisions=[DecisionInfo(at=d.at, timestamp=d.time, record=dict(d.record)) for d in page],
        next=page[-1].at if older else None,
        callers=sorted({d.record["caller"] for d in recent if "caller" in d.record}),
        kept=len(recent),
        since=recent[-1].time if recent else None,
    )
