"""Joins a reply to the prompt that it answers, where a gateway asks of the one, then the other."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shieldgate.gateway.guards.guard import Asked
from shieldgate.history import History

# Longer than any answer takes.
_KEEP_SECONDS = 900.0
# A call has one prompt. Whoever sends others under its id is judged with all of them.
_MOST = 4


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of a call; `answering` says that a part of its reply was judged before."""

    asked: tuple[Asked, ...] = ()
    answering: bool = False


class Calls:
    """Remembers the prompts of calls for their owner alone, here and in Redis."""

    def __init__(self, history: History | None, owner: str) -> None:
        self._history = history
        self._owner = owner

    async def find(self, ids: Collection[str]) -> dict[str, Call]:
        """Find calls by their ids; those that are not known are left out."""
        if not (ids and self._history):
            return {}
        found = await self._history.find(self._owner, [_name(id) for id in ids])
        return {id: _read(found[_name(id)]) for id in ids if _name(id) in found}

    async def begin(self, ids: Collection[str], asked: Asked) -> None:
        """Remember a prompt under each of the ids that its reply may come with."""
        known = await self.find(ids)
        begun = {}
        for id in ids:
            others = [each for each in known.get(id, Call()).asked if each != asked]
            begun[id] = Call((*others, asked)[-_MOST:])
        await self._keep(begun)

    async def answered(self, id: str, call: Call) -> None:
        """Remember that a part of the reply was judged: what comes next is longer."""
        if not call.answering:
            await self._keep({id: replace(call, answering=True)})

    async def _keep(self, calls: Mapping[str, Call]) -> None:
        if calls and self._history:
            said = {_name(id): _written(call) for id, call in calls.items()}
            await self._history.keep(self._owner, said, _KEEP_SECONDS)


def _name(id: str) -> str:
    # Apart from the ids of responses, which callers may name.
    return f"call/{id}"


def _written(call: Call) -> Sequence[object]:
    return [call.answering, *([each.prompt, each.prefill] for each in call.asked)]


def _read(written: Sequence[Any]) -> Call:
    answering, *asked = written
    return Call(tuple(Asked(*each) for each in asked), bool(answering))
