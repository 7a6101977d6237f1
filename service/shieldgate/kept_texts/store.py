"""Where sealed texts lie: SQLite, or PostgreSQL by URL."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy import (
    Column,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    or_,
    select,
    tuple_,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    NoSuchModuleError,
    SQLAlchemyError,
)

from shieldgate.errors import ConfigurationError, StoreFailed, first_line
from shieldgate.given_settings import flag

_PLACE = flag("keep_texts")
_SECONDS = 5
_READ_AT_ONCE = 200

_TABLES = MetaData()
_TEXTS = Table(
    "shieldgate_kept_texts",
    _TABLES,
    Column("id", String(64), primary_key=True),
    Column("caller", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("until", Float, nullable=False, index=True),
    Column("bytes", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    # So that adding up reads no texts.
    Index("shieldgate_kept_texts_bytes", "at", "id", "bytes"),
)
_COLUMNS = [_TEXTS.c[name] for name in ("id", "caller", "at", "until", "sealed")]


@dataclass(frozen=True, slots=True)
class SealedText:
    """What the database sees of a kept text; times are seconds since 1970."""

    id: str
    caller: str
    at: float
    until: float
    sealed: bytes


class TextStore:
    """Keeps sealed texts; each method blocks, and raises StoreFailed.

    What is deleted is gone from the file, too: SQLite overwrites it.
    """

    def __init__(self, engine: Engine) -> None:
        """Take what `at` makes."""
        self._engine = engine
        self._prepared = False

    @classmethod
    def at(cls, place: str, *, make: bool = True) -> Self:
        """Open a file of SQLite's, which `make` lets be made, or a PostgreSQL by its URL.

        A file is opened at once, a server when it is first used. Raises ConfigurationError.
        """
        url = _url(place)
        if url.get_backend_name() == "postgresql":
            seconds = {"connect_timeout": _SECONDS, "tcp_user_timeout": 1000 * _SECONDS}
            return cls(
                create_engine(
                    url,
                    hide_parameters=True,
                    pool_pre_ping=True,
                    connect_args={**seconds, "options": f"-c statement_timeout={4000 * _SECONDS}"},
                )
            )
        path = Path(url.database or "")
        try:
            if make:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            engine = create_engine(url, hide_parameters=True, connect_args={"timeout": _SECONDS})
            event.listen(engine, "connect", _configure_sqlite)
            store = cls(engine)
            if not path.is_file():
                raise ConfigurationError(
                    f"{_PLACE} {path}: there is no such file. Give the one that `shieldgate serve "
                    f"{_PLACE}` writes."
                )
            store.count()
        except OSError as refused:
            raise ConfigurationError(
                f"{_PLACE} {path}: can't be opened: {refused.strerror}."
            ) from None
        except StoreFailed as refused:
            raise ConfigurationError(f"{_PLACE} {path}: {refused}") from None
        return store

    @property
    def name(self) -> str:
        """Name it for people, without a password."""
        url = self._engine.url
        if url.get_backend_name() == "sqlite":
            return url.database or ""
        return str(url.set(query={}))  # where a password may stand, too

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
        with self._connected() as connection:
            connection.execute(insert(_TEXTS), rows)

    def read(self) -> Iterator[SealedText]:
        """Read all texts, the oldest first, a few at a time."""
        query = select(*_COLUMNS).order_by(_TEXTS.c.at, _TEXTS.c.id)
        with self._connected() as connection:
            streamed = connection.execution_options(yield_per=_READ_AT_ONCE)
            for row in streamed.execute(query):
                yield SealedText(*row)

    def count(self) -> int:
        """Count the texts."""
        with self._connected() as connection:
            return int(connection.execute(select(func.count()).select_from(_TEXTS)).scalar_one())

    def expire(self, now: float, keep_seconds: float | None = None) -> int:
        """Delete what has expired, and what is older than `keep_seconds`; gives how many."""
        over = _TEXTS.c.until <= now
        if keep_seconds is not None:
            over = or_(over, _TEXTS.c.at <= now - keep_seconds)
        return self._delete(over)

    def shrink(self, most: int) -> int:
        """Delete the oldest until all together have at most so many bytes; gives how many."""
        age = (_TEXTS.c.at, _TEXTS.c.id)
        last = None
        # Read apart from the deletion, because that holds up whoever writes.
        with self._connected() as connection:
            over = int(connection.scalar(select(func.sum(_TEXTS.c.bytes))) or 0) - most
            query = select(*age, _TEXTS.c.bytes).order_by(*age)
            if over > 0:
                streamed = connection.execution_options(yield_per=_READ_AT_ONCE)
                with streamed.execute(query) as oldest:
                    for at, id_, size in oldest:
                        last, over = (at, id_), over - size
                        if over <= 0:
                            break
        return self._delete(tuple_(*age) <= tuple_(*last)) if last else 0

    def forget(self, caller: str) -> int:
        """Delete all texts of a caller; gives how many."""
        return self._delete(_TEXTS.c.caller == caller)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _delete(self, where: Any) -> int:
        with self._connected() as connection:
            gone = int(connection.execute(delete(_TEXTS).where(where)).rowcount)
        if self._engine.dialect.name == "sqlite":
            # What was deleted also stands in the write-ahead log, until that begins anew; and not
            # only now, because whoever reads meanwhile keeps it from that.
            with self._connected() as connection:
                connection.exec_driver_sql("pragma wal_checkpoint(truncate)")
        return gone

    @contextmanager
    def _connected(self) -> "Iterator[Any]":
        """Open a transaction, in which the table is there."""
        try:
            if not self._prepared:
                self._prepare()
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as failure:
            cause = first_line(getattr(failure, "orig", None) or failure)
            raise StoreFailed(f"the database refused: {cause}") from failure

    def _prepare(self) -> None:
        try:
            _TABLES.create_all(self._engine)
        except DatabaseError:
            # Another process was faster; a second time it is seen.
            _TABLES.create_all(self._engine)
        self._prepared = True


def _url(place: str) -> URL:
    if "://" not in place:
        return URL.create("sqlite", database=str(Path(place).expanduser()))
    try:
        url = make_url(place.replace("postgres://", "postgresql://", 1))
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):  # the last for a port
        backend = ""
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database:
        return url
    raise ConfigurationError(
        f"{_PLACE}: give the path of a file, or postgresql://user@host/database."
    )


def _configure_sqlite(connection: Any, _: object) -> None:
    # Gateways write while somebody reviews.
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=normal")
    connection.execute("pragma secure_delete=on")
