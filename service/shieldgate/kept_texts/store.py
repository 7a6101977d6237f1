"""Sealed texts in the database."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from sqlalchemy import and_, func, insert, or_, select, tuple_

from shieldgate.kept_texts.database import LABELLED, TEXTS, Database

_READ_AT_ONCE = 200

_COLUMNS = [TEXTS.c[name] for name in ("id", "caller", "at", "until", "sealed")]
_UNLABELLED = TEXTS.c.id.not_in(select(LABELLED.c.id))


@dataclass(frozen=True, slots=True)
class SealedText:
    """What the database sees of a kept text; times are seconds since 1970."""

    id: str
    caller: str
    at: float
    until: float
    sealed: bytes


class TextStore:
    """Keeps sealed texts; each method blocks, and raises StoreFailed."""

    def __init__(self, database: Database) -> None:
        """Take the database, which labels may share."""
        self.database = database

    @classmethod
    def at(cls, place: str, *, make: bool = True) -> Self:
        """Open the database at a place, as `Database.at` does; raise ConfigurationError."""
        return cls(Database.at(place, make=make))

    @property
    def name(self) -> str:
        """Name it for people, without a password."""
        return self.database.name

    def add(self, texts: Sequence[SealedText]) -> None:
        """Store texts, all or none."""
        rows = [
            {
                "id": text.id,
                "caller": text.caller,
                "at": text.at,
                "until": text.until,
                "bytes": len(text.sealed),
                "sealed": text.sealed,
            }
            for text in texts
        ]
        with self.database.connected() as connection:
            connection.execute(insert(TEXTS), rows)

    def read(self) -> Iterator[SealedText]:
        """Read all texts, the oldest first, a few at a time."""
        query = select(*_COLUMNS).order_by(TEXTS.c.at, TEXTS.c.id)
        with self.database.connected() as connection:
            streamed = connection.execution_options(yield_per=_READ_AT_ONCE)
            for row in streamed.execute(query):
                yield SealedText(*row)

    def find(self, ids: Sequence[str]) -> dict[str, SealedText]:
        """Read those of some texts that are there, by their ids."""
        with self.database.connected() as connection:
            rows = connection.execute(select(*_COLUMNS).where(TEXTS.c.id.in_(ids)))
            return {row.id: SealedText(*row) for row in rows}

    def unfinished(self, after: str, limit: int) -> list[SealedText]:
        """Read the first texts behind an id, in the order of ids, that lack a label.

        Ids are random, so this order says nothing of the texts.
        """
        lacking = or_(LABELLED.c.id.is_(None), LABELLED.c.open)
        query = (
            select(*_COLUMNS)
            .outerjoin(LABELLED, LABELLED.c.id == TEXTS.c.id)
            .where(TEXTS.c.id > after, lacking)
            .order_by(TEXTS.c.id)
            .limit(limit)
        )
        with self.database.connected() as connection:
            return [SealedText(*row) for row in connection.execute(query)]

    def count(self) -> int:
        """Count the texts."""
        with self.database.connected() as connection:
            return int(connection.execute(select(func.count()).select_from(TEXTS)).scalar_one())

    def expire(self, now: float, keep_seconds: float | None = None) -> int:
        """Delete what has expired, and what is older than `keep_seconds`; gives how many.

        A text with labels stays as long as they do.
        """
        over = TEXTS.c.until <= now
        if keep_seconds is not None:
            over = or_(over, TEXTS.c.at <= now - keep_seconds)
        [gone] = self.database.delete((TEXTS, and_(over, _UNLABELLED)))
        return gone

    def shrink(self, most: int) -> int:
        """Delete the oldest until all together have at most so many bytes; gives how many.

        Texts with labels don't count.
        """
        age = (TEXTS.c.at, TEXTS.c.id)
        last = None
        # Read apart from the deletion, because that holds up whoever writes.
        with self.database.connected() as connection:
            added = select(func.sum(TEXTS.c.bytes)).where(_UNLABELLED)
            over = int(connection.scalar(added) or 0) - most
            query = select(*age, TEXTS.c.bytes).where(_UNLABELLED).order_by(*age)
            if over > 0:
                streamed = connection.execution_options(yield_per=_READ_AT_ONCE)
                with streamed.execute(query) as oldest:
                    for at, id_, size in oldest:
                        last, over = (at, id_), over - size
                        if over <= 0:
                            break
        if last is None:
            return 0
        [gone] = self.database.delete((TEXTS, and_(tuple_(*age) <= tuple_(*last), _UNLABELLED)))
        return gone

    def forget(self, caller: str) -> int:
        """Delete all texts of a caller; gives how many. Their labels go when labels expire next."""
        [gone] = self.database.delete((TEXTS, TEXTS.c.caller == caller))
        return gone

    def close(self) -> None:
        """Close the connections."""
        self.database.close()
