"""Sessions in the database, which all copies share: each request asks for its own.

How many ask at a time is bounded, so that made-up tokens do not keep keys from being looked up.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import Connection, delete, insert, select, update

from proxy.access.sessions import IDLE_SECONDS, MAX_SECONDS, MAX_SESSIONS, NOTED_SECONDS, Session
from proxy.errors import KeysUnavailable
from proxy.storage.database import Database, DatabaseAway
from proxy.storage.patience import within
from proxy.storage.schema import SESSIONS

T = TypeVar("T")

PATIENCE_SECONDS: Final = 2.0
"""How long a request waits for a database that does not answer."""
MAX_ASKING: Final = 4


class StoredSessions:
    """The table `sessions`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = asyncio.Semaphore(MAX_ASKING)

    async def add(self, token: bytes, session: Session) -> None:
        """Keep a new one; raises KeysUnavailable."""
        await self._do(lambda connection: _add(connection, token, session))

    async def use(self, token: bytes, now: int) -> Session | None:
        """The session that lasts and is now used; raises KeysUnavailable."""
        return await self._do(lambda connection: _use(connection, token, now))

    async def remove(self, token: bytes) -> None:
        """Forget it; raises KeysUnavailable."""
        await self._do(lambda connection: _remove(connection, token))

    async def _do(self, work: Callable[[Connection], T]) -> T:
        try:
            return await within(PATIENCE_SECONDS, self._in_turn(work))
        except (DatabaseAway, TimeoutError):
            raise KeysUnavailable(
                "Sessions cannot be checked now: their database is away.", retry_after_seconds=1
            ) from None

    async def _in_turn(self, work: Callable[[Connection], T]) -> T:
        async with self._turns:
            return await self._database.run(work)


def _add(connection: Connection, token: bytes, session: Session) -> None:
    now = session.began
    over = (SESSIONS.c.began <= now - MAX_SECONDS) | (SESSIONS.c.used <= now - IDLE_SECONDS)
    connection.execute(delete(SESSIONS).where(over))
    by_use = select(SESSIONS.c.token).order_by(SESSIONS.c.used.desc(), SESSIONS.c.token)
    for excess in connection.scalars(by_use.offset(MAX_SESSIONS - 1)).all():
        _remove(connection, excess)
    row = {"token": token, "key": session.key, "began": session.began, "used": session.used}
    connection.execute(insert(SESSIONS).values(row))


def _use(connection: Connection, token: bytes, now: int) -> Session | None:
    its = SESSIONS.c.token == token
    row = connection.execute(select(SESSIONS).where(its)).mappings().first()
    if row is None:
        return None
    session = Session(bytes(row["key"]), row["began"], row["used"])
    if not session.lasts(now):
        _remove(connection, token)
        return None
    if now - session.used >= NOTED_SECONDS:
        connection.execute(update(SESSIONS).where(its).values(used=now))
    return session


def _remove(connection: Connection, token: bytes) -> None:
    connection.execute(delete(SESSIONS).where(SESSIONS.c.token == token))
