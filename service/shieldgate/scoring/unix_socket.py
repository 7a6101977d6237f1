"""A scorer in another process of this machine, over a unix socket.

A connection is one question and its answer, each a line of JSON after its length. Who closes it
early has left. One connection of each client asks who the scorer is and then stays, so that its
end tells that of the process.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, Self

import structlog

from shieldgate.errors import ConfigurationError, Overloaded, ScorerUnavailable
from shieldgate.policy import Policy
from shieldgate.scoring.interfaces import Identity, Scorer
from shieldgate.types import Exchange, Score

_PRESENCE: dict[str, Any] = {}
_LENGTH_BYTES = 4
_CONNECTIONS = 4096
_LOOK_SECONDS = 0.1

log = structlog.get_logger(__name__)


class UnixSocketScorer:
    """Asks the scorer that listens at a path; a Scorer, and an async context manager.

    It has an identity once it is entered, and can be entered again after `gone`.
    """

    identity: Identity

    def __init__(self, path: Path) -> None:
        """Take where the scorer listens, or will."""
        self._path = path
        self._presence: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        """Wait until the scorer is there, however long that takes."""
        while True:
            try:
                reader, _ = self._presence = await self._ask(_PRESENCE)
                said = await _receive(reader)
            except (OSError, EOFError):
                self._leave()
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                self.identity = Identity(**said["identity"])
                return self

    async def __aexit__(self, *_: object) -> None:
        """Leave the scorer."""
        self._leave()

    async def gone(self) -> None:
        """Wait until the scorer's process has ended."""
        if self._presence is not None:
            try:
                await self._presence[0].read()
            except OSError:
                return

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score one exchange; raise what the scorer there raises, or ScorerUnavailable."""
        question = {
            "exchange": asdict(exchange),
            "policies": [(p.id, p.guidelines[exchange.direction]) for p in policies],
        }
        writer = None
        try:
            reader, writer = await self._ask(question)
            said = await _receive(reader)
        except (OSError, EOFError) as ended:
            raise ScorerUnavailable("The scorer's process is not there.") from ended
        finally:
            if writer is not None:
                writer.close()
        return _scores(said)

    async def _ask(
        self, question: Mapping[str, Any]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            await _send(writer, question)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    def _leave(self) -> None:
        if self._presence is not None:
            self._presence[1].close()
            self._presence = None


@asynccontextmanager
async def listening(scorer: Scorer, path: Path) -> AsyncIterator[None]:
    """Let a scorer answer at a path, which only those can reach who may enter its folder."""
    answering: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(this := asyncio.current_task())
        try:
            question = await _receive(reader)
            if question == _PRESENCE:
                await _send(writer, {"identity": asdict(scorer.identity)})
                await reader.read()
            elif (said := await _while_connected(scorer, question, reader)) is not None:
                await _send(writer, said)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # who asked has left, or the scorer does
        finally:
            writer.close()
            answering.discard(this)

    async with await asyncio.start_unix_server(answer, path, backlog=_CONNECTIONS) as server:
        try:
            yield
        finally:
            server.close()
            # From Python 3.12 on, a server waits for its connections.
            tasks = [task for task in answering if task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _while_connected(
    scorer: Scorer, question: Mapping[str, Any], reader: asyncio.StreamReader
) -> dict[str, Any] | None:
    """Answer a question; None when who asked has left before."""
    answering = asyncio.create_task(_answer(scorer, question))
    leaving = asyncio.create_task(reader.read())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _answer(scorer: Scorer, question: Mapping[str, Any]) -> dict[str, Any]:
    exchange = Exchange(**question["exchange"])
    policies = [
        # All that a scorer reads of a policy is what it asks.
        Policy(id, "", {exchange.direction: guideline}, {})
        for id, guideline in question["policies"]
    ]
    try:
        scores = await scorer.score(exchange, policies)
    except Overloaded as full:
        return {"overloaded": full.retry_after}
    except ConfigurationError as wrong:
        return {"wrong": str(wrong)}
    except ScorerUnavailable as failed:
        return {"unavailable": str(failed), "retry_after": failed.retry_after}
    except Exception:
        log.exception("scoring failed")
        return {"unavailable": "The scorer failed.", "retry_after": None}
    return {"scores": [astuple(score) for score in scores]}


def _scores(said: Mapping[str, Any]) -> list[Score]:
    if "overloaded" in said:
        raise Overloaded(said["overloaded"])
    if "wrong" in said:
        raise ConfigurationError(said["wrong"])
    if "unavailable" in said:
        raise ScorerUnavailable(said["unavailable"], retry_after=said["retry_after"])
    return [Score(*score) for score in said["scores"]]


async def _send(writer: asyncio.StreamWriter, said: Mapping[str, Any]) -> None:
    # The standard library's JSON, because it can write half of a surrogate pair.
    data = json.dumps(said).encode()
    writer.write(len(data).to_bytes(_LENGTH_BYTES) + data)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES))
    said: dict[str, Any] = json.loads(await reader.readexactly(size))
    return said
