"""Azure AI Content Safety's `text:analyze`.

https://learn.microsoft.com/rest/api/contentsafety/text-operations/analyze-text
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from shieldgate.gateway.errors import WITH_A_BODY, RequestError, declared
from shieldgate.gateway.guards.guard import Found, Guard, grade
from shieldgate.gateway.guards.wording import AzureError
from shieldgate.gateway.services import ServicesDep
from shieldgate.openai.chat import WritableRequest
from shieldgate.openai.text import Text
from shieldgate.policy import Policy
from shieldgate.schemas import Name
from shieldgate.types import Exchange

router = APIRouter()

AzureCategory = Literal["Hate", "SelfHarm", "Sexual", "Violence"]
_ALL: tuple[AzureCategory, ...] = ("Hate", "SelfHarm", "Sexual", "Violence")
# By the category of OpenAI's that a policy speaks for, up to the stroke.
_OF_OPENAI: dict[str, AzureCategory] = {
    "hate": "Hate",
    "harassment": "Hate",
    "self-harm": "SelfHarm",
    "sexual": "Sexual",
    "violence": "Violence",
    "illicit": "Violence",
}
_MOST_CHARS = 10_000
_HIGHEST = 7


class AnalyzeRequest(WritableRequest):
    """A text, and the categories that are asked for."""

    model_config = ConfigDict(frozen=True)

    text: Annotated[Text, Field(max_length=_MOST_CHARS, examples=["How do I bake bread?"])]
    categories: Annotated[list[AzureCategory], Field(max_length=4)] | None = None
    blocklistNames: list[Name] | None = None  # noqa: N815
    haltOnBlocklistHit: StrictBool | None = None  # noqa: N815
    outputType: Literal["FourSeverityLevels", "EightSeverityLevels"] | None = None  # noqa: N815


class BlocklistMatch(BaseModel):
    """A policy that is violated and speaks for none of the categories that were asked for."""

    blocklistName: str = "shieldgate"  # noqa: N815
    blocklistItemId: str  # noqa: N815
    blocklistItemText: str  # noqa: N815


class CategoryAnalysis(BaseModel):
    """A category; 2 and more is a violation by the profile."""

    category: AzureCategory
    severity: int = Field(ge=0, le=_HIGHEST)


class AnalyzeReply(BaseModel):
    """All categories that were asked for."""

    blocklistsMatch: list[BlocklistMatch]  # noqa: N815
    categoriesAnalysis: list[CategoryAnalysis]  # noqa: N815


@router.post(
    "/contentsafety/text:analyze", responses=declared(*WITH_A_BODY, 404, 429, model=AzureError)
)
async def analyze(
    body: AnalyzeRequest,
    request: Request,
    services: ServicesDep,
    response: Response,
    profile: Annotated[str | None, Query(max_length=200)] = None,
) -> AnalyzeReply:
    """Judge a text as a prompt; a severity of 2 and more is a block.

    A policy belongs to the categories for whose OpenAI counterparts it speaks. What a policy blocks
    that speaks for none of those asked for stands in all of them, and in `blocklistsMatch` by its
    name. `x-shieldgate-unmapped` lists the categories for which no policy speaks.
    """
    if body.blocklistNames:
        raise RequestError("There are no blocklists here.", "blocklistNames", 404)
    guard = Guard.of(request, services, profile=profile, may_open=False)
    found = await guard.screen([Exchange(body.text)], "prompt")
    asked = tuple(dict.fromkeys(body.categories or _ALL))
    spoken = {policy.id: _categories(policy) for policy in found.rules.policies}
    if missing := [c for c in asked if not any(c in of for of in spoken.values())]:
        response.headers["x-shieldgate-unmapped"] = ", ".join(missing)
    severities, beside = _severities(found, asked, spoken)
    eight = body.outputType == "EightSeverityLevels"
    return AnalyzeReply(
        blocklistsMatch=[
            BlocklistMatch(blocklistItemId=p.id, blocklistItemText=p.title)
            for p in found.rules.policies
            if p.id in beside
        ],
        categoriesAnalysis=[
            CategoryAnalysis(category=c, severity=s if eight else s // 2 * 2)
            for c, s in severities.items()
        ],
    )


def _categories(policy: Policy) -> set[AzureCategory]:
    found = (_OF_OPENAI.get(category.partition("/")[0]) for category in policy.openai)
    return {category for category in found if category}


def _severities(
    found: Found, asked: tuple[AzureCategory, ...], spoken: dict[str, set[AzureCategory]]
) -> tuple[dict[AzureCategory, int], set[str]]:
    """Give the severity of each category, and the policies that block and have none of them."""
    if found.unscreenable:
        return dict.fromkeys(asked, _HIGHEST), set()
    blocking, beside = found.blocking, set()
    severities = dict.fromkeys(asked, 0)
    for id, judgement in found.worst.items():
        severity = _severity(grade(judgement))
        if id not in blocking:
            severity = min(severity, 1)
        mine = spoken[id].intersection(asked)
        if not mine and id in blocking:
            beside.add(id)
            mine = set(asked)
        for category in mine:
            severities[category] = max(severities[category], severity)
    return severities, beside


def _severity(graded: float) -> int:
    """Cut a grade into eight levels, two of them below the threshold."""
    if graded < 0.5:
        return int(graded * 4)
    return min(2 + int((graded - 0.5) * 12), _HIGHEST)
