"""A scorer in another process of this machine, over a unix socket.

A connection is one request and its reply, each JSON after its length in bytes. A request says on
whose behalf it is, and how many seconds it has left. A client that closes it early cancels it.
One connection of each client asks for the identity and then stays open: it tells when the scorer
is no longer available and when it is again, and its end tells that of the process.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

import structlog

from shieldgate.errors import ConfigurationError, Overloaded, ScorerUnavailable, TooLong
from shieldgate.policy import Policy
from shieldgate.scoring import turn
from shieldgate.scoring.interfaces import Identity, OpenScorer
from shieldgate.types import Exchange, Score

_IDENTITY: dict[str, Any] = {}
_LENGTH_BYTES = 4
_BACKLOG = 4096
_RETRY_SECONDS = 0.1
_LOOK_SECONDS = 0.25
_CHECK_SECONDS = 30.0

log = structlog.get_logger(__name__)


class UnixSocketScorer:
    """Asks the scorer that listens at a path; an OpenScorer, and an async context manager.

    It has an identity once it is entered, and can be entered again after `gone`.
    """

    identity: Identity

    def __init__(self, path: Path) -> None:
        self._path = path
        self.available = True
        self._lasting: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        """Connect, and wait for the scorer as long as that takes."""
        while True:
            try:
                reader, _ = self._lasting = await self._connect(_IDENTITY)
                reply = await _receive(reader)
            except (OSError, EOFError):
                self._close()
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self.identity = Identity(**reply["identity"])
                self.available = True
                return self

    async def __aexit__(self, *_: object) -> None:
        """Close the lasting connection."""
        self._close()

    async def gone(self) -> None:
        """Wait until the scorer's process has ended, and take meanwhile whether it can score."""
        if self._lasting is not None:
            try:
                while True:
                    self.available = (await _receive(self._lasting[0]))["available"]
            except (OSError, EOFError):
                return

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange; raise what the scorer there raises, or ScorerUnavailable."""
        direction = exchange.direction
        asked = [(p.id, {direction: p.guidelines[direction]}) for p in policies]
        request = {"exchange": asdict(exchange), "policies": asked, "turn": _turn()}
        reply = await self._request(request)
        turn.count(reply["tokens"], reply["seconds"])
        return [Score(*score) for score in reply["scores"]]

    async def check(self, policies: Iterable[Policy]) -> None:
        """Check policies; raise what the scorer there raises, or ScorerUnavailable."""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._request({"policies": [(p.id, dict(p.guidelines)) for p in policies]})
        except TimeoutError:
            raise ScorerUnavailable("The scorer's process does not answer.") from None

    async def _request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        writer = None
        try:
            reader, writer = await self._connect(request)
            reply = await _receive(reader)
        except (OSError, EOFError) as ended:
            raise ScorerUnavailable("The scorer's process is not there.") from ended
        finally:
            if writer is not None:
                writer.close()
        _raise_error(reply)
        return reply

    async def _connect(
        self, request: Mapping[str, Any]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            await _send(writer, request)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    def _close(self) -> None:
        if self._lasting is not None:
            self._lasting[1].close()
            self._lasting = None


@asynccontextmanager
async def listening(scorer: OpenScorer, path: Path) -> AsyncIterator[None]:
    """Serve a scorer at a path, which only those can reach who may enter its folder."""
    handlers: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(this := asyncio.current_task())
        try:
            request = await _receive(reader)
            if request == _IDENTITY:
                await _send(writer, {"identity": asdict(scorer.identity)})
                await _tell_available(scorer, reader, writer)
            elif (reply := await _while_connected(scorer, request, reader)) is not None:
                await _send(writer, reply)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the client is gone, or the scorer ends
        finally:
            writer.close()
            handlers.discard(this)

    async with await asyncio.start_unix_server(handle, path, backlog=_BACKLOG) as server:
        try:
            yield
        finally:
            server.close()
            # From Python 3.12 on, a server waits for its connections.
            tasks = [task for task in handlers if task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _tell_available(
    scorer: OpenScorer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Tell a client whenever the scorer is no longer available or is again, until it leaves."""
    told = True
    left = asyncio.ensure_future(reader.read())
    try:
        while not left.done():
            if scorer.available != told:
                told = scorer.available
                await _send(writer, {"available": told})
            await asyncio.wait((left,), timeout=_LOOK_SECONDS)
        await left  # may say that the connection broke
    finally:
        left.cancel()


async def _while_connected(
    scorer: OpenScorer, request: Mapping[str, Any], reader: asyncio.StreamReader
) -> dict[str, Any] | None:
    """Compute a reply; None when the client has disconnected before."""
    replying = asyncio.create_task(_reply(scorer, request))
    disconnected = asyncio.create_task(reader.read())
    try:
        await asyncio.wait((replying, disconnected), return_when=asyncio.FIRST_COMPLETED)
        return replying.result() if replying.done() else None
    finally:
        for task in (replying, disconnected):
            task.cancel()
        await asyncio.gather(replying, disconnected, return_exceptions=True)


async def _reply(scorer: OpenScorer, request: Mapping[str, Any]) -> dict[str, Any]:
    # All that a scorer reads of a policy is what it asks.
    policies = [Policy(id, "", guidelines, {}) for id, guidelines in request["policies"]]
    try:
        if "exchange" not in request:
            await scorer.check(policies)
            return {}
        _take_turn(**request["turn"])
        with turn.metered() as meter:
            scores = await scorer.score(_exchange(request["exchange"]), policies)
    except Overloaded as full:
        return {"overloaded": full.retry_after}
    except (ConfigurationError, TooLong) as refused:
        return {"too_long" if isinstance(refused, TooLong) else "wrong": str(refused)}
    except ScorerUnavailable as failed:
        return {"unavailable": str(failed), "retry_after": failed.retry_after}
    except Exception:
        log.exception("scoring failed")
        return {"unavailable": "The scorer failed.", "retry_after": None}
    return {"scores": [astuple(score) for score in scores], **asdict(meter)}


def _turn() -> dict[str, Any]:
    """Write on whose behalf a text is judged, and until when: clocks differ, what is left doesn't.

    The id lets texts of a request be counted together there.
    """
    deadline = turn.deadline.get()
    within = deadline and {"id": deadline.id, "left": deadline.left, "seconds": deadline.seconds}
    return {"caller": turn.caller.get(), "within": within}


# Of requests with texts under way; who scores one keeps its deadline.
_deadlines: WeakValueDictionary[str, turn.Deadline] = WeakValueDictionary()


def _take_turn(caller: str, within: Mapping[str, Any] | None) -> None:
    """Let what this task scores be on another's behalf."""
    turn.caller.set(caller)
    if within is None:
        return
    deadline = _deadlines.get(within["id"])
    if deadline is None:
        until = asyncio.get_running_loop().time() + within["left"]
        deadline = turn.Deadline(within["id"], until, within["seconds"])
        _deadlines[deadline.id] = deadline
    turn.deadline.set(deadline)


def _raise_error(reply: Mapping[str, Any]) -> None:
    if "overloaded" in reply:
        raise Overloaded(reply["overloaded"])
    if "wrong" in reply:
        raise ConfigurationError(reply["wrong"])
    if "too_long" in reply:
        raise TooLong(reply["too_long"])
    if "unavailable" in reply:
        raise ScorerUnavailable(reply["unavailable"], retry_after=reply["retry_after"])


async def _send(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    # The standard library's JSON, because it can write half of a surrogate pair.
    data = json.dumps(message).encode()
    writer.write(len(data).to_bytes(_LENGTH_BYTES) + data)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES))
    message: dict[str, Any] = json.loads(await reader.readexactly(size))
    return message


def _exchange(given: Mapping[str, Any]) -> Exchange:
    # JSON has no tuples.
    return Exchange(**{**given, "parts": tuple(given["parts"])})
