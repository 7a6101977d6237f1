"""The database of kept texts and their labels: SQLite, or PostgreSQL by URL."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import (
    Boolean,
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
)
from sqlalchemy.dialects import postgresql, sqlite
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

_TABLES = MetaData()
TEXTS = Table(
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
# What is said of a text, once for all that say the same: `digest` is the text's. `reviewer` is who
# was asked last, and alone until `asked_until`.
LABELS = Table(
    "shieldgate_labels",
    _TABLES,
    Column("digest", String(64), primary_key=True),
    Column("reviewer", String(64), nullable=False, index=True),
    Column("asked_until", Float, nullable=False),
    Column("answered", Float),
    Column("until", Float),
    Column("sealed", LargeBinary),
)
# Which texts have labels; `open` where something is still to be asked.
LABELLED = Table(
    "shieldgate_labelled_texts",
    _TABLES,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("open", Boolean, nullable=False),
)


class Database:
    """Connects to the database; each method blocks, and raises StoreFailed.

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
            database = cls(engine)
            if not path.is_file() or not (make or path.stat().st_size):
                why = "the file is empty" if path.is_file() else "there is no such file"
                raise ConfigurationError(
                    f"{_PLACE} {path}: {why}. Give the one that `shieldgate serve {_PLACE}` writes."
                )
            with database.connected():
                pass
        except OSError as refused:
            raise ConfigurationError(
                f"{_PLACE} {path}: can't be opened: {refused.strerror}."
            ) from None
        except StoreFailed as refused:
            raise ConfigurationError(f"{_PLACE} {path}: {refused}") from None
        return database

    @property
    def name(self) -> str:
        """Name it for people, without a password."""
        url = self._engine.url
        if url.get_backend_name() == "sqlite":
            return url.database or ""
        return str(url.set(query={}))  # where a password may stand, too

    @contextmanager
    def connected(self) -> "Iterator[Any]":
        """Open a transaction, in which the tables are there."""
        try:
            if not self._prepared:
                self._prepare()
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as failure:
            cause = first_line(getattr(failure, "orig", None) or failure)
            raise StoreFailed(f"the database refused: {cause}") from failure

    def insert(self, table: Table) -> Any:
        """Begin an INSERT that may say what to do where the row is there already."""
        dialects = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        return dialects[self._engine.dialect.name](table)

    def delete(self, *which: tuple[Table, Any]) -> Sequence[int]:
        """Delete rows, of table after table, all or none; gives how many of each."""
        with self.connected() as connection:
            gone = [
                int(connection.execute(delete(table).where(where)).rowcount)
                for table, where in which
            ]
        if self._engine.dialect.name == "sqlite":
            # What was deleted also stands in the write-ahead log, until that begins anew; and not
            # only now, because whoever reads meanwhile keeps it from that.
            with self.connected() as connection:
                connection.exec_driver_sql("pragma wal_checkpoint(truncate)")
        return gone

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _prepare(self) -> None:
        for table in _TABLES.sorted_tables:
            try:
                table.create(self._engine, checkfirst=True)
            except DatabaseError:
                # Another process was faster; a second time it is seen.
                table.create(self._engine, checkfirst=True)
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
