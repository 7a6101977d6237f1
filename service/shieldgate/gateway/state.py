"""What the gateway knows of one request while it is answered."""

from dataclasses import dataclass

from starlette.types import Scope

from shieldgate.access.keys import Key
from shieldgate.dialects import Dialect
from shieldgate.telemetry import Outcome

_NAME = "shieldgate"


@dataclass(slots=True)
class RequestState:
    """The state of one request; the outermost middleware makes it.

    `dialect` is that of the request's path. `key` is what the caller was admitted with, None where
    no keys are asked for. `profile` names what it is judged by, once that is known. `outcome` is
    what a route or a middleware names for the metrics; the status says it where none does.
    `complete` is set once the last event of a stream is written.
    """

    dialect: Dialect
    key: Key | None = None
    profile: str | None = None
    outcome: Outcome | None = None
    complete: bool = False

    def attach(self, scope: Scope) -> None:
        """Let `state_of` find this state."""
        scope[_NAME] = self


def state_of(scope: Scope) -> RequestState:
    """Find the state of a request."""
    state: RequestState = scope[_NAME]
    return state
