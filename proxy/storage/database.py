"""The database, on a thread of its own: the event loop never waits for it.

Each piece of work is one transaction. The schema is made, or brought up to date, before the first:
proxies that start together do it one after the other.
"""

import asyncio
import logging
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import alembic.command
import alembic.config
import alembic.util
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import SQLAlchemyError

T = TypeVar("T")

log = logging.getLogger(__name__)

MIGRATIONS: Final = Path(__file__).with_name("migrations")
CONNECT_SECONDS: Final = 5
BUSY_SECONDS: Final = 10
"""How long to wait for another process that writes."""
STATEMENT_SECONDS: Final = 30
SILENCE_SECONDS: Final = 15
"""How long the network may lose all that is sent before a connection counts as broken."""
CLOSE_SECONDS: Final = 5.0
"""How long what was begun may take when the proxy stops."""
CONNECTION_OK: Final = 0
"""What libpq says of a connection that is open."""
_PROBES: Final = {
    "tcp_user_timeout": SILENCE_SECONDS * 1000,
    "keepalives_idle": SILENCE_SECONDS // 3,
    "keepalives_interval": SILENCE_SECONDS // 3,
    "keepalives_count": 2,
}
"""libpq's: a server that has gone without a word is noticed, which by itself takes two hours."""
_MIGRATION_LOCK: Final = 7_295_118_043
"""A number of PostgreSQL's advisory locks that is ours."""


class DatabaseAway(Exception):
    """The database could not do it; the message has no password and no value in it."""


class Database:
    """One database, opened at its first use and again whenever it has been away.

    `url` is SQLAlchemy's: `sqlite:////folder/file` or `postgresql://user:password@host/name`.
    """

    def __init__(self, url: str) -> None:
        self._url = with_driver(url)
        self._engine: Engine | None = None
        self._connection: Any = None
        """The driver's own, of those made the last."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")

    async def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, done in one transaction.

        It is not given up when the caller is: what was begun is done.

        Raises:
            DatabaseAway: it could not be done, and nothing of it was.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.run_here, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """The same for work that writes nothing: it neither waits for writers nor holds them up."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.read_here, work)

    async def look(self, work: Callable[[Any], T]) -> T:
        """The same for a single statement that is asked again and again.

        `work` is given a cursor of the driver's own: SQLAlchemy would cost twenty times as much.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._looked, work)

    def run_here(self, work: Callable[[Connection], T]) -> T:
        """What `run` does, in the caller's thread, for commands."""
        return self._done(work, only_reads=False)

    def read_here(self, work: Callable[[Connection], T]) -> T:
        """What `read` does, in the caller's thread, for commands."""
        return self._done(work, only_reads=True)

    async def close(self) -> None:
        """Finish what was begun, as long as that may take, then let go of it."""
        closing = asyncio.create_task(asyncio.to_thread(self.close_here))
        done, _ = await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        if not done:
            self._hang_up()
        await closing

    def close_here(self) -> None:
        """The same in the caller's thread, for commands."""
        self._thread.shutdown()
        if self._engine is not None:
            self._engine.dispose()

    def _hang_up(self) -> None:
        """Break off what a server that says nothing would never end."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        server = getattr(self._connection, "pgconn", None)
        if server is not None and server.status == CONNECTION_OK:
            with suppress(OSError), socket.socket(fileno=os.dup(server.socket)) as connection:
                connection.shutdown(socket.SHUT_RDWR)

    def _note_connection(self, connection: Any, _: Any) -> None:
        self._connection = connection

    def _done(self, work: Callable[[Connection], T], *, only_reads: bool) -> T:
        with _away_if(SQLAlchemyError, OSError):
            engine = self._opened().execution_options(only_reads=only_reads)
            with engine.begin() as connection:
                return work(connection)

    def _looked(self, work: Callable[[Any], T]) -> T:
        with _away_if(SQLAlchemyError, OSError):
            engine = self._opened()
        with (
            _away_if(engine.dialect.loaded_dbapi.Error, SQLAlchemyError, OSError),
            closing(engine.raw_connection()) as connection,
        ):
            return work(connection.cursor())

    def _opened(self) -> Engine:
        if self._engine is None:
            engine = _engine(self._url)
            event.listen(engine, "connect", self._note_connection)
            try:
                _migrate(engine)
            except BaseException:
                engine.dispose()
                raise
            self._engine = engine
        return self._engine


@contextmanager
def _away_if(*failures: type[Exception]) -> Iterator[None]:
    try:
        yield
    except failures as exc:
        raise DatabaseAway(_reason(exc)) from exc


def reach(url: str, work: Callable[[Connection], T]) -> tuple[str, T | None]:
    """Why this database cannot be used, if it cannot; else what `work` finds in it.

    No table is made, as by the first use, and there is none to be read before that.
    """
    engine = _engine(with_driver(url))
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            with suppress(SQLAlchemyError):  # no tables yet, or those of an older version
                return "", work(connection)
    except (SQLAlchemyError, OSError) as exc:
        return _reason(exc), None
    finally:
        engine.dispose()
    return "", None


def with_driver(url: str) -> URL:
    """The URL with the driver that we bring."""
    found = make_url(url)
    if found.drivername in ("postgres", "postgresql"):
        return found.set(drivername="postgresql+psycopg")
    return found


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        options = f"-c statement_timeout={STATEMENT_SECONDS * 1000}"
        wanted = {"connect_timeout": CONNECT_SECONDS, "options": options} | _PROBES
        # A connection that has died is noticed and made anew before it is used.
        return create_engine(url, pool_size=1, pool_pre_ping=True, connect_args=wanted)
    if url.database:
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # we say when a transaction begins: see _begin
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    """A transaction that means to write does from its beginning: none then fails in its middle."""
    only_reads = connection.get_execution_options().get("only_reads")
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


def _migrate(engine: Engine) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            lock = text("SELECT pg_advisory_xact_lock(:number)")
            connection.execute(lock, {"number": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        before = _schema_of(connection)
        try:
            alembic.command.upgrade(config, "head")
        except alembic.util.CommandError as exc:
            raise DatabaseAway(f"its schema is not known, as of a newer version: {exc}") from exc
        if (after := _schema_of(connection)) != before:
            log.info("the database's schema is now %s, and was %s", after, before or "none")


def _schema_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _reason(exc: Exception) -> str:
    """What went wrong, without the statement and its values."""
    cause = getattr(exc, "orig", None) or exc
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
