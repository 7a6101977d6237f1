"""What an API that chats speak is to the gateway.

A dialect says what of a request is judged, what a reply or an event of a stream carries, and how a
block, an ending and an error look. The gateway asks, judges, holds and releases; it knows texts,
choices and pieces, and no field of any API. A new API is one file with a `Dialect` and one entry
in `DIALECTS`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self

from pydantic import BaseModel

from shieldgate.dialects.plan import Plan
from shieldgate.policy import AddedScreening, Profile
from shieldgate.sse import Event
from shieldgate.types import Judged, Verdict

JsonObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Credential:
    """A header in which a key is shown, and the scheme before it where there is one."""

    header: str
    scheme: str = ""

    def secret(self, headers: Mapping[str, str]) -> str | None:
        """Find the key that headers bear; None where they bear none in this way."""
        given = headers.get(self.header)
        if given is None or not self.scheme:
            return given and given.strip()
        scheme, _, secret = given.partition(" ")
        return secret.strip() if scheme.lower() == self.scheme.lower() else None

    def value(self, secret: str) -> str:
        """Write the header's value."""
        return f"{self.scheme} {secret}".lstrip()

    def openapi(self) -> tuple[str, dict[str, str]]:
        """Name and describe it as a security scheme of OpenAPI."""
        if self.scheme:
            return "key", {"type": "http", "scheme": self.scheme.lower()}
        return self.header, {"type": "apiKey", "in": "header", "name": self.header}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an upstream serves an API, and which headers belong to it, in lower case.

    `account` are those that say who the caller is; they are not sent where the operator's key is.
    `passes` are sent always. The operator's key is shown as `credential` says.
    """

    path: str
    credential: Credential
    account: tuple[str, ...]
    passes: tuple[str, ...] = ()


class Thread(Protocol):
    """What a request may go on with: what upstream has kept of earlier ones, by id."""

    ids: Sequence[str]
    """What the request refers to."""

    def read(self, known: Mapping[str, Sequence[Any]]) -> JsonObject:
        """Write the body as the model reads it, with what is `known` in place of the ids."""
        ...

    def said(self, read: JsonObject, reply: JsonObject) -> Mapping[str, Sequence[Any]]:
        """List what later requests may refer to; `read` is what the method of that name gave."""
        ...


@dataclass(frozen=True, slots=True)
class CallerRequest:
    """A caller's request as it was read: what goes upstream, and what is for us.

    It has a `thread` where upstream keeps conversations.
    """

    body: dict[str, Any]
    streamed: bool
    screening: AddedScreening | None = None
    thread: Thread | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a whole reply; `unscreenable` if it holds anything but text.

    Each of `texts` comes with the name of its strand, as `shieldgate.strands` reads them.
    """

    choice: int
    texts: tuple[tuple[str, str], ...]
    unscreenable: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """What is sent or held back as one: an event of a stream, or one choice's part of it.

    `choice` is None where it belongs to none, and then it holds nothing that is to be judged.
    Each of `texts` comes with the name of the strand that it continues. What stands in no text
    passes unjudged: so give all that an event of an unknown kind says, and of one that repeats
    text whatever it doesn't repeat. `ends` says that no more text of this choice is expected.
    `reply` is the whole reply, where a piece repeats it.
    """

    choice: int | None
    data: bytes
    texts: tuple[tuple[str, str], ...] = ()
    unscreenable: bool = False
    ends: bool = False
    reply: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What stands in place of an answer; `as_content` for clients that show nothing else."""

    text: str
    as_content: bool = False

    @classmethod
    def of(cls, profile: Profile) -> Self:
        """Take what a profile says."""
        return cls(profile.refusal, profile.refusal_field == "content")

    def after(self, *, begun: bool) -> Self:
        """Set it apart from what of an answer has left: many clients show both as one text."""
        return replace(self, text=f"\n\n{self.text}") if begun else self


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was found in both directions of one request, for its caller to see."""

    inputs: Sequence[Judged]
    outputs: Sequence[Judged]
    scorer: str


@dataclass(frozen=True, slots=True)
class Problem:
    """An error that is told to a caller, before a dialect words it.

    `type` is the kind of error in upstream's words; ours follow from the status.
    """

    status: int
    code: str | None
    message: str
    param: str | None = None
    type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class StreamReader(Protocol):
    """One streamed reply, which it reads event by event and writes piece by piece."""

    @property
    def body(self) -> JsonObject:
        """Give what is sent upstream."""
        ...

    def read(self, name: str, data: dict[str, Any]) -> Iterable[Piece]:
        """Part an event into pieces; raise UpstreamError where it makes no sense."""
        ...

    def release(self, piece: Piece) -> bytes:
        """Write a piece that leaves now; the pieces of a choice leave in their order."""
        ...

    def ending(self, choice: int, refusal: Refusal) -> bytes:
        """Write the end of a choice that was stopped, after what was released of it."""
        ...

    def prompt_annotation(self, inputs: Sequence[Judged]) -> bytes:
        """Write what is told of the prompts first, where answers are judged after they left."""
        ...

    def annotation(self, choice: int, verdict: Verdict, start: int, end: int) -> bytes:
        """Write what is told of the characters from `start` to `end`, which have left."""
        ...

    def closing(
        self, verdicts: Verdicts | None, held: Sequence[Piece] = (), *, unasked: bool = False
    ) -> bytes:
        """Write what follows the choices: verdicts to be told, `held` pieces, usage, the end.

        `unasked` says that no model was asked, so that the usage is zero.
        """
        ...

    def error_event(self, error: JsonObject, after: int) -> bytes:
        """Write the event that ends a stream, `after` so many, in an error whose body is given."""
        ...


class Wording(Protocol):
    """How callers of an API show a key, and how its errors look, which `error_model` declares.

    `request_id` is the header with the id of a request.
    """

    credentials: tuple[Credential, ...]
    error_model: type[BaseModel]
    request_id: str

    def status(self, problem: Problem) -> int:
        """Choose the status of an error, where the API has one of its own for it."""
        ...

    def error(self, problem: Problem) -> dict[str, Any]:
        """Write the body of an error."""
        ...


class Dialect(Wording, Protocol):
    """An API that chats speak.

    Callers ask at `route`, with a body that `request_model` declares and a key shown in one of
    `credentials`; the model answers at `endpoint`. `prompt_param` and `choices_param` name the
    fields with the prompts and the number of choices, where it can be chosen. `on_block` says how
    the API itself tells that a prompt was blocked. `responses` declares what else comes back.
    """

    name: str
    description: str
    route: str
    request_model: type[BaseModel]
    responses: Mapping[int | str, dict[str, Any]]
    endpoint: Endpoint
    prompt_param: str
    choices_param: str | None
    on_block: Literal["error", "refusal"]

    def read(self, request: Any) -> CallerRequest:
        """Read a request, an instance of `request_model`."""
        ...

    def plan(self, body: JsonObject, profile: Profile) -> Plan:
        """Say what is judged of a body that `read` gave."""
        ...

    def answers(self, reply: JsonObject, body: JsonObject) -> list[Answer]:
        """Read the choices of a whole reply to `body`; none where it makes no sense."""
        ...

    def screened(
        self,
        reply: JsonObject,
        stopped: Sequence[bool],
        refusal: Refusal,
        verdicts: Verdicts | None,
    ) -> dict[str, Any]:
        """Write a whole reply without the choices that are `stopped`, in the order of `answers`."""
        ...

    def blocked(self, verdicts: Verdicts) -> dict[str, Any]:
        """Write the body of the 400 that says that a prompt was blocked."""
        ...

    def refused(
        self, body: JsonObject, choices: int, refusal: Refusal, verdicts: Verdicts, *, unasked: bool
    ) -> dict[str, Any]:
        """Write the reply that has a refusal in place of each answer; `unasked` as for a stream."""
        ...

    def stream(
        self, body: JsonObject, choices: int, *, enforces: bool = True, counts_usage: bool = False
    ) -> StreamReader:
        """Begin a streamed reply of so many choices.

        Unless it `enforces`, all passes as it comes. `counts_usage` says that upstream can
        count the usage with each event.
        """
        ...

    def is_end(self, event: Event) -> bool:
        """Tell whether an event of upstream says only that the stream is over."""
        ...
