"""The last records of decisions, in memory, for whoever looks at the server now."""

import asyncio
import os
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import Any, Self

import orjson
import structlog

_KEPT = 1000
_ANSWER_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RecentDecision:
    """A record, and when it was written: microseconds since the epoch, another for each record."""

    at: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DecisionQuery:
    """Which decisions are wanted: at most `limit`, those written `before`, of a kind.

    A `policy` is one that they violate.
    """

    limit: int
    before: int | None = None
    caller: str | None = None
    policy: str | None = None
    action: str | None = None

    def wants(self, decision: RecentDecision) -> bool:
        """Tell whether a decision is of that kind."""
        record = decision.record
        return (
            (self.before is None or decision.at < self.before)
            and (self.caller is None or record.get("caller") == self.caller)
            and (self.action is None or record["action"] == self.action)
            and (self.policy is None or self.policy in record["violated"])
        )


@dataclass(frozen=True, slots=True)
class DecisionPage:
    """What was found, the newest first, and whether there is `more`.

    Of all that is `kept`, the oldest is from `since`; `callers` are in no order.
    """

    decisions: list[RecentDecision]
    more: bool
    callers: list[str]
    kept: int
    since: int | None
    processes: int = 1

    @classmethod
    def of(cls, decisions: list[Mapping[str, Any]], **others: Any) -> Self:
        """Read a page as JSON has it."""
        return cls([RecentDecision(**decision) for decision in decisions], **others)


class RecentDecisions:
    """Keeps the last records, and forgets the older ones; a Sink of `Audit`."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept: deque[RecentDecision] = deque(maxlen=kept)

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        at = int(datetime.now(UTC).timestamp() * 1e6)
        if self._kept:
            at = max(at, self._kept[-1].at + 1)
        self._kept.append(RecentDecision(at, record))

    async def find(self, query: DecisionQuery) -> DecisionPage:
        """Find decisions of a kind, the newest first."""
        found = list(islice(filter(query.wants, reversed(self._kept)), query.limit + 1))
        return DecisionPage(
            found[: query.limit],
            more=len(found) > query.limit,
            callers=list({d.record["caller"]: None for d in self._kept if "caller" in d.record}),
            kept=len(self._kept),
            since=self._kept[0].at if self._kept else None,
        )


class SharedDecisions:
    """Finds the last decisions of all processes that have a socket in one folder.

    They ask each other when somebody asks one of them, so that nothing is shared until then.
    Whoever may enter the folder may ask. A query and its page are JSON, each all that is sent.
    """

    def __init__(self, own: RecentDecisions, folder: Path) -> None:
        self._own = own
        self._folder = folder
        self._socket = folder / f"decisions-{os.getpid()}"

    async def run(self) -> None:
        """Answer the others until cancelled; where that can't be, they do without."""
        try:
            server = await asyncio.start_unix_server(self._answer, self._socket)
        except OSError as refused:
            log.warning("other processes can't ask for decisions", why=str(refused))
            return
        async with server:
            await server.serve_forever()

    async def find(self, query: DecisionQuery) -> DecisionPage:
        """Find decisions of a kind, the newest first; leave out a process that doesn't answer."""
        others = [path for path in self._folder.glob("decisions-*") if path != self._socket]
        found = await asyncio.gather(self._own.find(query), *(_ask(o, query) for o in others))
        return _together([page for page in found if page], query.limit)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                query = DecisionQuery(**orjson.loads(await reader.read()))
                writer.write(orjson.dumps(await self._own.find(query)))
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # who asked is gone
        finally:
            writer.close()


async def _ask(path: Path, query: DecisionQuery) -> DecisionPage | None:
    writer = None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(orjson.dumps(asdict(query)))
            writer.write_eof()
            return DecisionPage.of(**orjson.loads(await reader.read()))
    except (OSError, TimeoutError, ValueError):
        return None  # it has ended, or ends
    finally:
        if writer is not None:
            writer.close()


def _together(pages: Iterable[DecisionPage], limit: int) -> DecisionPage:
    pages = list(pages)
    found = [decision for page in pages for decision in page.decisions]
    return DecisionPage(
        nlargest(limit, found, key=lambda decision: decision.at),
        more=len(found) > limit or any(page.more for page in pages),
        callers=list({caller: None for page in pages for caller in page.callers}),
        kept=sum(page.kept for page in pages),
        since=min((page.since for page in pages if page.since is not None), default=None),
        processes=len(pages),
    )
