"""`/admin/review/`: kept texts, one at a time, for people to label; and the labels."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Self

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shieldgate.errors import NothingKept
from shieldgate.gateway.errors import WITH_A_BODY, declared
from shieldgate.gateway.services import ServicesDep
from shieldgate.given_settings import flag
from shieldgate.policy import PolicyBook
from shieldgate.review.candidates import Candidate
from shieldgate.review.rows import line
from shieldgate.review.shown import parts
from shieldgate.schemas import Name
from shieldgate.types import Label

if TYPE_CHECKING:
    from shieldgate.review.desk import Desk

# The functions here are no coroutines: they wait for the database, each in a thread.
router = APIRouter()

_UNSTORED = {"cache-control": "no-store"}

Shown = list[tuple[str, bool]]
TextId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Reviewer = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,64}$")]


class NextRequest(BaseModel):
    """Who asks for a text, behind which, to label it by which policies; by all where none is named.

    A `reviewer` is whoever has one text at a time, such as a tab, and makes its name up.
    """

    model_config = ConfigDict(extra="forbid")

    reviewer: Reviewer
    after: TextId | None = None
    policies: Annotated[list[Name], Field(min_length=1)] | None = None


class PolicyQuestion(BaseModel):
    """Whether a text violates a policy, and what the scorer said, which sways who sees it."""

    policy: str
    title: str
    guideline: str
    probability: float
    threshold: float


class ReviewText(BaseModel):
    """A kept text, or an answer with its prompt, and what is asked about it.

    Texts come in parts, each with true where it is a hidden character that is shown by its number.
    `chosen` says by which rules it was kept.
    """

    id: str
    prompt: Shown
    response: Shown | None
    chosen: list[str]
    questions: list[PolicyQuestion]

    @classmethod
    def of(cls, candidate: Candidate, book: PolicyBook) -> Self:
        """Show a candidate."""
        exchange = candidate.exchange
        judged = {j.policy: j for j in candidate.text.judgements}
        return cls(
            id=candidate.text.key.id,
            prompt=list(parts(exchange.prompt)),
            response=None if exchange.response is None else list(parts(exchange.response)),
            chosen=list(candidate.chosen.why),
            questions=[
                PolicyQuestion(
                    policy=id,
                    title=book.policies[id].title,
                    guideline=book.policies[id].guidelines[exchange.direction],
                    probability=judged[id].probability,
                    threshold=judged[id].threshold,
                )
                for id in candidate.asked
            ],
        )


class NextReply(BaseModel):
    """A text to label, null behind the last one; `keeping` tells whether texts are kept at all.

    Of `kept` texts, `unfinished` lack a label, `labelled` have one, and `elsewhere` are with other
    reviewers now. `locked` were passed over because no key opens them.
    """

    keeping: bool = False
    text: ReviewText | None = None
    kept: int = 0
    unfinished: int = 0
    labelled: int = 0
    elsewhere: int = 0
    locked: int = 0


class LeaveRequest(BaseModel):
    """Who leaves."""

    model_config = ConfigDict(extra="forbid")

    reviewer: Reviewer


class LabelRequest(BaseModel):
    """What a reviewer says of a text by policy id: 1 where it is violated; null takes it back."""

    model_config = ConfigDict(extra="forbid")

    reviewer: Reviewer
    id: TextId
    labels: dict[Name, Label | None]


class LabelReply(BaseModel):
    """All labels of the text."""

    labels: dict[str, Label]


@router.post("/admin/review/next", responses=declared(*WITH_A_BODY))
def next_text(body: NextRequest, services: ServicesDep, response: Response) -> NextReply:
    """Give the next text to label, which nobody else is given for half an hour.

    What the reviewer had before is given back.
    """
    response.headers.update(_UNSTORED)
    desk, book = services.desk, services.policies.current
    if desk is None:
        return NextReply()
    wanted = {policy.id for policy in book.find(body.policies or book.policies)}
    handed = desk.next(body.reviewer, body.after or "", wanted, book.policies)
    standing = desk.standing(body.reviewer)
    return NextReply(
        keeping=True,
        text=ReviewText.of(handed.candidate, book) if handed.candidate else None,
        locked=handed.locked,
        **standing._asdict(),
    )


@router.post("/admin/review/leave", status_code=204, responses=declared(*WITH_A_BODY))
def leave(body: LeaveRequest, services: ServicesDep) -> None:
    """Give back the text that a reviewer has, so that others are asked about it."""
    if services.desk:
        services.desk.leave(body.reviewer)


@router.post("/admin/review/label", responses=declared(*WITH_A_BODY, 404, 409))
def label(body: LabelRequest, services: ServicesDep, response: Response) -> LabelReply:
    """Label a text; the labels are kept when this is answered."""
    response.headers.update(_UNSTORED)
    desk, book = _desk(services.desk), services.policies.current
    return LabelReply(labels=desk.label(body.reviewer, body.id, body.labels, book.policies))


@router.get(
    "/admin/review/labels",
    response_class=StreamingResponse,
    responses={
        **declared(400, 404, 503),
        200: {"content": {"application/jsonl": {}}, "description": "Rows of labels, one a line."},
    },
)
def labels(services: ServicesDep) -> StreamingResponse:
    """Give all labelled texts, in rows that evaluate, calibrate and tune read."""
    rows = _desk(services.desk).rows()
    # Here, so that a database that is away is an error and no torn file.
    first = list(islice(rows, 1))
    lines: Iterator[bytes] = map(line, chain(first, rows))
    headers = {
        **_UNSTORED,
        "content-disposition": 'attachment; filename="labelled.jsonl"',
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(lines, media_type="application/jsonl", headers=headers)


def _desk(desk: "Desk | None") -> "Desk":
    if desk is None:
        raise NothingKept(
            "This server keeps no texts, so there is nothing to label. Its operator can have it "
            f"keep some with {flag('keep_texts')}."
        )
    return desk
