"""`GET /admin/decisions`: the last records of decisions."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from shieldgate.gateway.services import ServicesDep
from shieldgate.schemas import Name
from shieldgate.telemetry import DecisionQuery
from shieldgate.types import Action

router = APIRouter()


class DecisionInfo(BaseModel):
    """A record as docs/audit.md has it; `at` is its place among the others."""

    at: int
    timestamp: datetime
    record: dict[str, Any]


class DecisionsReply(BaseModel):
    """Records, the newest first; with `next` as `before` come those that are older.

    `kept` records are there in all, of so many `processes`; the oldest of them is from `since`, and
    `callers` are all that they name.
    """

    decisions: list[DecisionInfo]
    next: int | None
    callers: list[str]
    kept: int
    since: datetime | None
    processes: int


@router.get("/admin/decisions")
async def decisions(
    services: ServicesDep,
    *,
    caller: Name | None = None,
    policy: Name | None = None,
    action: Action | None = None,
    before: Annotated[int, Query(ge=0, lt=2**53)] | None = None,  # as JavaScript has it
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> DecisionsReply:
    """Show the last decisions of a `caller`, with an `action`, that violated a `policy`."""
    finding = services.shared_decisions or services.screener.audit.recent
    page = await finding.find(DecisionQuery(limit, before, caller, policy, action))
    return DecisionsReply(
        decisions=[
            DecisionInfo(at=found.at, timestamp=_time(found.at), record=dict(found.record))
            for found in page.decisions
        ],
        next=page.decisions[-1].at if page.more else None,
        callers=sorted(page.callers),
        kept=page.kept,
        since=None if page.since is None else _time(page.since),
        processes=page.processes,
    )


def _time(at: int) -> datetime:
    return datetime.fromtimestamp(at / 1e6, UTC)
