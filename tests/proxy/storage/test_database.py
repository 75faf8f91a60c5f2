"""The database: made and brought up to date by itself, away and back, with nothing half done."""

import asyncio
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, inspect, select, text

from proxy.storage import database as storage
from proxy.storage.database import MIGRATIONS, Database, DatabaseAway
from proxy.storage.schema import METADATA, REVISIONS
from tests.postgres import PostgreSQL, postgresql

OPENED = """
import sys
from sqlalchemy import text
from proxy.storage.database import Database
print(Database(sys.argv[1]).run_here(lambda one: one.execute(text("SELECT 7")).scalar()))
"""
COPIES = 4
on_postgresql = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=on_postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that nobody has opened yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/proxy.sqlite3"
    server: PostgreSQL = request.getfixturevalue("server")
    return server.new_database()


def add(connection: Connection, subject: str = "one") -> None:
    connection.execute(insert(REVISIONS).values(subject=subject, number=1))


def count(cursor: Any) -> int:
    """How many were added here, asked by the driver's own means."""
    cursor.execute("SELECT count(*) FROM revisions WHERE subject != 'keys'")
    [number] = cursor.fetchone()
    return int(number)


def subjects(connection: Connection) -> list[str]:
    """Those that were added here."""
    found = connection.scalars(select(REVISIONS.c.subject).where(REVISIONS.c.subject != "keys"))
    return list(found)


async def test_the_tables_are_made_at_the_first_use(url: str) -> None:
    database = Database(url)
    found = await database.run(lambda one: inspect(one).get_table_names())
    assert {*found} - {"alembic_version"} == {*METADATA.tables}
    await database.close()


async def test_a_schema_that_is_changed_is_told_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.storage.database")
    for _ in range(2):
        database = Database(url)
        await database.run(subjects)
        await database.close()
    [line] = [one.getMessage() for one in caplog.records if one.name == "proxy.storage.database"]
    newest = max(MIGRATIONS.glob("versions/*.py")).name[:4]
    assert line.startswith(f"the database's schema is now {newest}")


@pytest.mark.slow
def test_copies_that_start_together_make_them_once(url: str) -> None:
    command = [sys.executable, "-c", OPENED, url]
    copies = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(COPIES)
    ]
    assert [copy.communicate(timeout=100)[0] for copy in copies] == [b"7\n"] * COPIES


async def test_what_fails_in_its_middle_has_not_been_done(url: str) -> None:
    database = Database(url)

    def fail(connection: Connection) -> None:
        add(connection, "one")
        add(connection, "one")

    with pytest.raises(DatabaseAway):
        await database.run(fail)
    assert await database.run(subjects) == []
    await database.close()


async def test_the_event_loop_goes_on_meanwhile(url: str) -> None:
    database, gate = Database(url), threading.Event()
    work = asyncio.create_task(database.run(lambda _: gate.wait(60)))
    await asyncio.sleep(0)
    gate.set()
    assert await work
    await database.close()


async def test_what_only_reads_does_not_wait_for_a_writer(url: str) -> None:
    writer, reader, gate = Database(url), Database(url), threading.Event()
    await writer.run(add)
    await reader.read(subjects)  # its first use looks at the schema, and waits for writers

    def slowly(connection: Connection) -> None:
        add(connection, "two")
        gate.wait(60)

    writing = asyncio.create_task(writer.run(slowly))
    await asyncio.sleep(0)
    assert await reader.read(subjects) == ["one"]
    assert await reader.look(count) == 1
    gate.set()
    await writing
    assert await reader.read(subjects) == ["one", "two"]
    assert await reader.look(count) == 2
    await writer.close()
    await reader.close()


async def test_what_was_begun_is_done_when_its_caller_is_gone(url: str) -> None:
    database, gate = Database(url), threading.Event()

    def slowly(connection: Connection) -> None:
        gate.wait(60)
        add(connection)

    work = asyncio.create_task(database.run(slowly))
    await asyncio.sleep(0)
    work.cancel()
    gate.set()
    assert await database.run(subjects) == ["one"]
    await database.close()


@on_postgresql
async def test_a_server_that_was_killed_and_is_back_is_used_again(server: PostgreSQL) -> None:
    database = Database(server.new_database())
    await database.run(add)
    server.stop(signal.SIGKILL)
    for work in (database.run(subjects), database.look(count)):
        with pytest.raises(DatabaseAway):
            await work
    server.start()
    assert await database.look(count) == 1
    assert await database.run(subjects) == ["one"]
    await database.close()


@on_postgresql
async def test_a_connection_that_breaks_under_a_look_is_made_anew(server: PostgreSQL) -> None:
    database = Database(server.new_database())
    with pytest.raises(DatabaseAway, match="terminat"):
        await database.look(
            lambda one: one.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        )
    assert await database.look(count) == 0
    await database.close()


@on_postgresql
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere not all of it can be set")
async def test_a_server_that_has_gone_without_a_word_is_noticed(server: PostgreSQL) -> None:
    def options(connection: Connection) -> list[int]:
        driver: Any = connection.connection.driver_connection
        names = (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)
        with socket.socket(fileno=os.dup(driver.pgconn.socket)) as one:
            return [one.getsockopt(socket.IPPROTO_TCP, name) for name in names]

    database = Database(server.new_database())
    user_timeout_ms, idle, interval = await database.run(options)
    await database.close()
    assert 0 < user_timeout_ms <= 20_000
    assert idle + 2 * interval <= 20


@on_postgresql
async def test_a_server_that_says_nothing_does_not_hold_up_a_stop(
    server: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CLOSE_SECONDS", 0.5)
    database = Database(server.new_database())
    pid = await database.run(lambda one: one.scalar(text("SELECT pg_backend_pid()")))
    os.kill(pid, signal.SIGSTOP)
    try:
        asked = [asyncio.create_task(database.run(subjects)) for _ in range(3)]
        await asyncio.sleep(0)
        await database.close()
        said = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert said[0] == []  # by a connection that was made anew
    assert [type(one) for one in said[1:]] == [asyncio.CancelledError] * 2


async def test_a_database_that_cannot_be_opened_is_told_without_its_password() -> None:
    database = Database("postgresql://me:SECRET@127.0.0.1:1/none")
    with pytest.raises(DatabaseAway) as caught:
        await database.run(subjects)
    assert "SECRET" not in str(caught.value)
    assert str(caught.value)
    await database.close()


async def test_a_schema_of_a_newer_version_is_left_alone(url: str) -> None:
    database = Database(url)
    await database.run(lambda one: one.execute(text("UPDATE alembic_version SET version_num='9'")))
    await database.close()
    newer = Database(url)
    with pytest.raises(DatabaseAway, match="newer version"):
        await newer.run(subjects)
    await newer.close()


async def test_others_cannot_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sqlite3"
    database = Database(f"sqlite:///{path}")
    await database.run(add)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    await database.close()
