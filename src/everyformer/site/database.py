"""The database: SQLite in a file, or PostgreSQL by its URL, with the same statements for both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, Executable, create_engine, event, literal, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 4_510_625  # advisory lock of migrations on PostgreSQL; any number that others do not use


class Database:
    """An engine with two ways in: :meth:`read` and :meth:`write`, each one transaction.

    On SQLite a write takes the write lock at its beginning, waits for up to ten seconds for another writer, and is on
    the disk when it returns; readers never wait.
    """

    def __init__(self, url: str) -> None:
        self.url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self.is_sqlite = make_url(self.url).get_backend_name() == "sqlite"
        if self.is_sqlite and (file := make_url(self.url).database):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        # SQLite's connections are cheap: one for each thread that may want it, so that none is opened for a request.
        options: dict[str, Any] = (
            {"connect_args": {"timeout": 10}, "pool_size": 40}
            if self.is_sqlite
            else {"pool_pre_ping": True, "pool_size": 8}
        )
        self.engine: Engine = create_engine(self.url, max_overflow=32, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._writer = self.engine.execution_options(writes=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent view of the data."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed at the end, undone by an exception."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def insert_once(self, session: Session, table: type[Any], unique: list[str], values: dict[str, Any]) -> bool:
        """Insert a row unless one with the same ``unique`` columns is there; whether it was inserted."""
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        statement = insert(table).values(values).on_conflict_do_nothing(index_elements=unique)
        return session.execute(statement.returning(literal(1))).first() is not None

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables to ``revision``; an empty database gets them all. Several processes may ask at once."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
            config.attributes["connection"] = connection
            command.upgrade(config, revision)


def changed(session: Session, statement: Executable) -> int:
    """Run a statement; the number of rows it changed."""
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -16384"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
