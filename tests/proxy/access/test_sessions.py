"""Sessions of admins: how long they last, how many there are, and where they are kept."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection

from proxy.access.keys import Keys
from proxy.access.sessions import (
    IDLE_SECONDS,
    MAX_FAILURES,
    MAX_FAILURES_OF_ALL,
    MAX_SECONDS,
    MAX_SESSIONS,
    Attempts,
    MemorySessions,
    Session,
    Sessions,
    SessionStore,
)
from proxy.access.stored_sessions import StoredSessions
from proxy.errors import InvalidAPIKey, KeysUnavailable, RateLimitExceeded
from proxy.storage.database import Database
from tests.postgres import PostgreSQL, postgresql
from tests.proxy.access.test_keys import ADMIN_KEY
from tests.proxy.access.test_stored_keys import digest_of
from tests.proxy.conftest import settings_for

KEY = digest_of(ADMIN_KEY)
KEYS = Keys(settings_for("http://unused", admin_keys=ADMIN_KEY), {})
START = 1_000_000
T = TypeVar("T")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each place where sessions are kept, empty."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemorySessions()
            return
        url = f"sqlite:///{tmp_path}/proxy.sqlite3"
        if request.param == "postgresql":
            url = request.getfixturevalue("server").new_database()
        database = Database(url)
        stack.push_async_callback(database.close)
        yield StoredSessions(database)


async def begun(store: SessionStore, number: int, used: int = START) -> bytes:
    """A session's token, kept as it is."""
    token = number.to_bytes(32, "big")
    await store.add(token, Session(KEY, began=START, used=used))
    return token


async def test_a_session_that_is_used_lasts_until_its_time_is_over(store: SessionStore) -> None:
    token = await begun(store, 1)
    now = START
    while now < START + MAX_SECONDS - IDLE_SECONDS:
        now += IDLE_SECONDS - 61
        session = await store.use(token, now)
        assert session is not None
        assert session.key == KEY
    assert await store.use(token, START + MAX_SECONDS) is None
    assert await store.use(token, now) is None


async def test_a_session_that_is_not_used_ends(store: SessionStore) -> None:
    token = await begun(store, 1)
    assert await store.use(token, START + IDLE_SECONDS - 1) is not None
    assert await store.use(token, START + 2 * IDLE_SECONDS - 1) is None


async def test_a_session_is_known_by_its_own_token_until_it_is_removed(
    store: SessionStore,
) -> None:
    one, other = await begun(store, 1), await begun(store, 2)
    await store.remove(one)
    await store.remove(one)
    assert await store.use(one, START) is None
    assert await store.use(other, START) is not None


async def test_one_session_too_many_ends_the_one_that_was_not_used_for_longest(
    store: SessionStore,
) -> None:
    tokens = [await begun(store, n, used=START + n) for n in range(MAX_SESSIONS + 2)]
    lasting = [await store.use(token, START + MAX_SESSIONS + 2) for token in tokens]
    assert [session is not None for session in lasting] == [False] * 2 + [True] * MAX_SESSIONS


async def test_copies_share_a_sessions_end_at_once(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path}/proxy.sqlite3") for _ in range(2)]
    one, other = (Sessions(StoredSessions(database)) for database in databases)
    token = await one.begin(KEY)
    assert (await other.holder(token, KEYS)).name == "admin-1"
    await other.end(token)
    with pytest.raises(InvalidAPIKey):
        await one.holder(token, KEYS)
    for database in databases:
        await database.close()


async def test_a_session_ends_with_its_key_and_does_not_come_back_with_it() -> None:
    sessions, without = Sessions(), Keys(settings_for("http://unused"), {})
    token = await sessions.begin(KEY)
    for keys in (without, KEYS):
        with pytest.raises(InvalidAPIKey):
            await sessions.holder(token, keys)


@pytest.mark.parametrize(
    "token", ["", "x", "a" * 42, "a" * 44, "ä" * 43, "a" * 42 + "\n", "a" * 43]
)
async def test_what_is_no_token_is_no_session(tmp_path: Path, token: str) -> None:
    database = Database(f"sqlite:///{tmp_path}/proxy.sqlite3")
    sessions = Sessions(StoredSessions(database))
    await sessions.end(token)
    with pytest.raises(InvalidAPIKey):
        await sessions.holder(token, KEYS)
    await database.close()


def test_no_token_is_kept(tmp_path: Path) -> None:
    async def begin() -> str:
        database = Database(f"sqlite:///{tmp_path}/proxy.sqlite3")
        token = await Sessions(StoredSessions(database)).begin(KEY)
        await database.close()
        return token

    token = asyncio.run(begin())
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in kept
    assert ADMIN_KEY.encode() not in kept


class Away:
    """A database that does not answer."""

    async def add(self, token: bytes, session: Session) -> None:
        raise KeysUnavailable("away")

    async def use(self, token: bytes, now: int) -> Session | None:
        raise KeysUnavailable("away")

    async def remove(self, token: bytes) -> None:
        raise KeysUnavailable("away")


async def test_while_the_database_is_away_a_login_holds_here_and_no_other_is_taken() -> None:
    sessions = Sessions(Away())
    assert (await sessions.holder(await sessions.begin(KEY), KEYS)).may_administer
    with pytest.raises(KeysUnavailable):
        await sessions.holder("a" * 43, KEYS)


class Watched(Database):
    """Tells in which order it did what."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.done: list[Any] = []

    def run_here(self, work: Callable[[Connection], T]) -> T:
        self.done.append(work)
        return super().run_here(work)


async def test_made_up_tokens_do_not_stand_before_others_at_the_database(tmp_path: Path) -> None:
    database, gate = Watched(f"sqlite:///{tmp_path}/proxy.sqlite3"), threading.Event()
    await database.run(lambda _: None)
    held = asyncio.create_task(database.run(lambda _: gate.wait(60)))
    sessions = Sessions(StoredSessions(database))
    asking = [asyncio.create_task(sessions.holder("a" * 43, KEYS)) for _ in range(50)]
    await asyncio.sleep(0.01)

    def others(_: Connection) -> None:
        """Such as a look at the keys."""

    of_others = asyncio.create_task(database.run(others))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(held, of_others, *asking, return_exceptions=True)
    assert database.done.index(others) < 10
    await database.close()


def test_logins_that_fail_are_bounded_for_each_address_and_for_all() -> None:
    now = 0.0
    attempts = Attempts(clock=lambda: now)
    for _ in range(3 * MAX_FAILURES):
        attempts.begin("one")()
    for _ in range(MAX_FAILURES):
        attempts.begin("one")
    with pytest.raises(RateLimitExceeded) as refused:
        attempts.begin("one")
    assert refused.value.headers["retry-after"] == "60"
    for number in range(MAX_FAILURES_OF_ALL - MAX_FAILURES):
        attempts.begin(f"other {number}")
    with pytest.raises(RateLimitExceeded):
        attempts.begin("another")
    now = 61.0
    attempts.begin("one")
