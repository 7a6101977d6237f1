"""What the gateway knows of one request while it is answered."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from starlette.types import Scope

from shieldgate.access.keys import Key
from shieldgate.dialects.interface import StreamReader, Wording
from shieldgate.telemetry import Outcome
from shieldgate.types import Action, Judged

_NAME = "shieldgate"


@dataclass(slots=True)
class RequestState:
    """The state of one request; the outermost middleware makes it.

    `wording` is that of the request's path. `key` is what the caller was admitted with, None where
    no keys are asked for. `profile` names what it is judged by, once that is known. `outcome` is
    what a route or a middleware names for the metrics; the status says it where none does.
    `unscreened` counts the fields that passed because they hold no text. `limits` writes the
    headers that tell how a key stands with its limits. `stream` is the answer where it is
    streamed, `left` counts the events of it that have left, and `complete` is set once its last one
    is written.
    """

    wording: Wording
    key: Key | None = None
    profile: str | None = None
    outcome: Outcome | None = None
    stream: StreamReader | None = None
    left: int = 0
    complete: bool = False
    unscreened: int = 0
    limits: Callable[[], Mapping[str, str]] | None = None

    @property
    def caller(self) -> str:
        """Name the caller; all are one where no keys are asked for."""
        return self.key.name if self.key else ""

    def name_outcome(self, judged: Iterable[Judged]) -> None:
        """Name the outcome that verdicts have."""
        actions = {j.verdict.action for j in judged}
        if Action.BLOCKED in actions:
            self.outcome = "blocked"
        else:
            self.outcome = "unjudged" if Action.FAILED_CLOSED in actions else "answered"

    def attach(self, scope: Scope) -> None:
        """Let `state_of` find this state."""
        scope[_NAME] = self


def state_of(scope: Scope) -> RequestState:
    """Find the state of a request."""
    state: RequestState = scope[_NAME]
    return state
