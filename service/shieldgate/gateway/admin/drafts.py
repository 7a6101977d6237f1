"""`POST /admin/policies/draft`: a policy file that is not written yet, checked and tried."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shieldgate.errors import ConfigurationError, PolicyError, TooLong, UnknownName
from shieldgate.gateway.concurrency import while_connected
from shieldgate.gateway.errors import WITH_A_BODY, RequestError, declared
from shieldgate.gateway.services import Services, ServicesDep
from shieldgate.gateway.state import state_of
from shieldgate.openai.text import Text
from shieldgate.policy import Draft, PolicyBook, Rules, lax_thresholds
from shieldgate.schemas import ExchangeIn, ExchangeResult, Name, PoliciesReply
from shieldgate.types import DIRECTIONS, Exchange

router = APIRouter()

_MOST_ROWS = 50
# Ten times the shipped files; reading it takes a thread a second or two.
_MOST_CHARACTERS = 300_000
# Rows that are judged at a time, so that others find room in the queue.
_AT_ONCE = 4


class DraftRequest(BaseModel):
    """A draft, and rows to try it on.

    It stands for the file of the name `file` in the book, or beside its files where none has that
    name; without a name it is the whole book. Rows are judged under `profile`, which is the
    server's own where none is named.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "draft": "profiles:\n  default:\n    policies: [shieldgemma/hate]\n",
                    "file": "profiles.yaml",
                    "rows": [{"prompt": "How do I bake a sourdough loaf?"}],
                }
            ]
        },
    )

    draft: Annotated[Text, StringConstraints(max_length=_MOST_CHARACTERS)]
    file: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]{0,80}\.ya?ml$")] | None = None
    rows: Annotated[list[ExchangeIn], Field(max_length=_MOST_ROWS)] = []
    profile: Name | None = None


class DraftProblem(BaseModel):
    """What is wrong, and how to mend it; `file` and `line` are null where it has no place."""

    file: str | None
    line: int | None
    what: str


class Change(BaseModel):
    """What the draft says otherwise than the book in force; null where it says nothing."""

    at: str
    before: Any
    after: Any


class RowResult(BaseModel):
    """One row under the book in force and under the draft; `changed` where the verdict differs."""

    before: ExchangeResult
    after: ExchangeResult
    changed: bool

    @classmethod
    def of(cls, before: ExchangeResult, after: ExchangeResult) -> Self:
        """Compare two verdicts."""
        same = (before.action, before.violated) == (after.action, after.violated)
        return cls(before=before, after=after, changed=not same)


class DraftReply(BaseModel):
    """What became of a draft: `problems`, or the `version` of its book and what would change.

    `warnings` are for people; `results` in the order of the rows.
    """

    problems: list[DraftProblem] = []
    warnings: list[str] = []
    version: str | None = None
    changes: list[Change] = []
    results: list[RowResult] = []


class FilesReply(BaseModel):
    """What the policy files say now, by their names; `problems` where they are refused."""

    files: dict[str, str] = {}
    problems: list[DraftProblem] = []


@router.get("/admin/policies/files")
async def files(services: ServicesDep) -> FilesReply:
    """Show the policy files, for a draft to begin with."""
    try:
        return FilesReply(files=await services.policies.texts())
    except PolicyError as refused:
        return FilesReply(problems=_problems(refused))


@router.post("/admin/policies/draft", responses=declared(*WITH_A_BODY, 429))
async def draft(body: DraftRequest, request: Request, services: ServicesDep) -> DraftReply:
    """Check a draft as a reload would, and judge rows by it and by the book in force.

    Nothing comes into force, and nothing is counted or recorded as a decision.
    """
    try:
        new = await services.policies.read(Draft(body.draft, body.file))
    except PolicyError as refused:
        return DraftReply(problems=_problems(refused))
    except (ConfigurationError, UnknownName) as refused:
        return DraftReply(problems=[DraftProblem(file=None, line=None, what=str(refused))])
    old, name = services.policies.current, body.profile or services.settings.profile
    rules = [old.rules(old.profile(name))]
    reply = DraftReply(
        warnings=list(lax_thresholds(new)),
        version=new.version,
        changes=list(_changes(old, new, services.screener.name)),
    )
    if name not in new.profiles:
        reply.warnings.append(f"The draft has no profile {name!r}, so no row was tried under it.")
        return reply
    rules.append(new.rules(new.profile(name)))
    reply.results = await _judged(body, rules, request, services)
    return reply


def _problems(refused: PolicyError) -> list[DraftProblem]:
    placed = [DraftProblem(file=p.file.name, line=p.line, what=p.what) for p in refused.problems]
    return placed or [DraftProblem(file=None, line=None, what=str(refused))]


async def _judged(
    body: DraftRequest, rules: Sequence[Rules], request: Request, services: Services
) -> list[RowResult]:
    """Judge the rows by two rules."""
    rows = [row.exchange() for row in body.rows]
    await services.accept(state_of(request.scope).key, rows, "rows")
    places = asyncio.Semaphore(_AT_ONCE)

    async def judge(number: int, row: Exchange) -> RowResult:
        async with places:
            try:
                # One after the other, so that the second finds what the first has scored.
                judged = [await services.screener.judge(row, each) for each in rules]
            except TooLong as refused:
                raise RequestError(f"rows.{number}: {refused}", f"rows.{number}", 413) from refused
        return RowResult.of(*(ExchangeResult.of(j.verdict, j.seconds, j.failure) for j in judged))

    return await while_connected(request, (judge(n, row) for n, row in enumerate(rows)))


def _changes(old: PolicyBook, new: PolicyBook, scorer: str) -> Iterator[Change]:
    """Compare what two books say, in the words of `/v1/policies`."""
    before, after = _said(old, scorer), _said(new, scorer)
    for name in dict.fromkeys((*before, *after)):
        if name not in before or name not in after:
            # Who is new or gone is named, and not all that it says.
            yield _change(name, values=(_title(before.get(name)), _title(after.get(name))))
            continue
        left, right = dict(_flat(before[name])), dict(_flat(after[name]))
        paths = dict.fromkeys((*left, *right))
        said = {p: (left.get(p), right.get(p)) for p in paths if left.get(p) != right.get(p)}
        for path, change in said.items():
            prompts, responses = (said.get((*path[:-1], direction)) for direction in DIRECTIONS)
            if path[-1] not in DIRECTIONS or prompts != responses:
                yield _change(name, *path, values=change)
            elif path[-1] == DIRECTIONS[0]:  # what is the same for both is said once
                yield _change(name, *path[:-1], values=change)


def _change(*path: str, values: tuple[Any, Any]) -> Change:
    return Change(at=".".join(path), before=values[0], after=values[1])


def _said(book: PolicyBook, scorer: str) -> dict[str, dict[str, Any]]:
    said = PoliciesReply.of(book, scorer).model_dump(mode="json")
    policies = {f"policies.{policy.pop('id')}": policy for policy in said["policies"]}
    profiles = {f"profiles.{profile.pop('name')}": profile for profile in said["profiles"]}
    return policies | profiles


def _title(entry: Mapping[str, Any] | None) -> str | None:
    return None if entry is None else entry.get("title") or entry.get("description") or "there"


def _flat(entry: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """List the values of a tree by their paths; a list is a value."""
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*above, key))
        else:
            yield (*above, key), value
