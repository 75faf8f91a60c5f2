"""Keys in the database: made by a command, known to all proxies, refused when in doubt."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text

from proxy import check_storage, key_commands
from proxy.__main__ import parser
from proxy.access import stored_keys
from proxy.access.keys import KeyLimits, KeyMistake, StoredKey
from proxy.access.stored_keys import (
    MAX_AGE_SECONDS,
    PATIENCE_SECONDS,
    REFRESH_SECONDS,
    StoredKeys,
)
from proxy.app import create_app
from proxy.config.load import load
from proxy.config.settings import DATABASE_FILE, DatabaseSettings
from proxy.config.tables import digest
from proxy.errors import InvalidAPIKey, KeysUnavailable
from proxy.storage import database as database_module
from proxy.storage.database import Database
from tests.postgres import PostgreSQL, postgresql
from tests.proxy.conftest import KEY, settings_for
from tests.proxy.http.test_requests import error_of
from tests.servers import serve
from tests.waiting import wait_until

MODELS = "/v1/models"
PROXYS = {
    "RUNPOD_API_KEY": "rp",
    "RUNPOD_ENDPOINT_ID": "ep",
    "PROXY_API_KEYS": "sk-test",
    "PROXY_MODELS": "big",
}
"""What a proxy's environment has."""
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder of its own."""
    return tmp_path / "state"


@pytest.fixture
def command(folder: Path) -> Command:
    """`python -m proxy keys`, with that state folder."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        ours = {"PROXY_STATE_DIR": str(folder)} | variables
        return subprocess.run(
            [sys.executable, "-m", "proxy", "--env-file", os.devnull, "keys", *arguments],
            env=os.environ | ours,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


Start = Callable[..., AbstractContextManager[httpx.Client]]


@pytest.fixture
def start(scripted_runpod: tuple[Any, str], folder: Path) -> Start:
    """A proxy with that state folder; a client of it without a key."""

    @contextmanager
    def running(**changes: Any) -> Iterator[httpx.Client]:
        settings = settings_for(scripted_runpod[1], state_dir=folder, **changes)
        with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
            yield client

    return running


def listed(client: httpx.Client, key: str) -> httpx.Response:
    return client.get(MODELS, headers={"authorization": f"Bearer {key}"})


@pytest.mark.slow
def test_a_key_that_a_command_made_is_taken_and_refused_when_it_is_revoked(
    command: Command, start: Start
) -> None:
    first = command("create", "alice").stdout.strip()
    with start(api_keys="") as one, start(api_keys="") as other:
        assert [listed(client, first).status_code for client in (one, other)] == [200, 200]
        second = command("create", "bob", "--models", "m").stdout.strip()
        for client in (one, other):
            wait_until(lambda client=client: listed(client, second).status_code == 200)  # type: ignore[misc]
        assert command("revoke", "alice").returncode == 0
        for client in (one, other):
            wait_until(lambda client=client: listed(client, first).status_code == 401)  # type: ignore[misc]
            assert "has been revoked" in error_of(listed(client, first))["message"]
            assert listed(client, second).status_code == 200
            assert listed(client, "sk-other").status_code == 401
            assert client.get(MODELS).status_code == 401


@pytest.mark.slow
def test_a_budget_in_dollars_without_a_price_is_told_by_the_command_a_check_and_at_the_start(
    command: Command, start: Start, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "price" not in command("create", "bob", "--daily-gpu-seconds", "5").stderr
    made = command("create", "alice", "--daily-budget", "5")
    assert "where the proxy knows an endpoint's price_per_second" in made.stderr
    said = "the budget in dollars of the key alice counts nothing of the endpoint ep"
    config = load(settings_for("http://unused"))
    settings = settings_for("http://unused", state_dir=folder)
    (finding,) = asyncio.run(check_storage.check(settings, config))
    assert not finding.is_good
    assert said in finding.text
    priced = load(settings_for("http://unused", price_per_second=1))
    (finding,) = asyncio.run(check_storage.check(settings, priced))
    assert finding.is_good
    with start():
        wait_until(lambda: said in caplog.text)
    caplog.clear()
    with start(price_per_second=1) as client:
        assert listed(client, made.stdout.strip()).status_code == 200
    assert said not in caplog.text


@pytest.mark.slow
def test_a_rotated_keys_former_secret_is_refused(command: Command, start: Start) -> None:
    former = command("create", "alice").stdout.strip()
    with start() as client:
        assert listed(client, former).status_code == 200
        made = command("rotate", "alice").stdout.strip()
        wait_until(lambda: listed(client, former).status_code == 401)
        assert listed(client, made).status_code == 200
        assert listed(client, KEY).status_code == 200


@pytest.mark.slow
def test_commands_tell_what_a_key_may_do_and_never_the_key(command: Command, folder: Path) -> None:
    limits = ("--requests-per-minute", "60", "--expires", "2100-01-31")
    rights = ("--may-warm", "--may-name-tenants", "--may-administer")
    made = command("create", "alice", "--models", "m,n", *rights, *limits)
    key = made.stdout.strip()
    assert key.startswith("sk-")
    assert "not shown again" in made.stderr
    for action in (("list",), ("show", "alice")):
        told = command(*action).stdout
        for part in ("active", "models m, n", "requests per minute 60", "2100-01-31"):
            assert part in told
        assert "may warm, may name tenants, may administer" in told
        assert key not in told
    kept = b"".join(path.read_bytes() for path in folder.glob(f"{DATABASE_FILE}*"))
    assert digest_of(key) in kept
    assert key.encode() not in kept
    assert key.removeprefix("sk-").encode() not in kept


@pytest.mark.slow
def test_a_command_changes_what_it_names_and_leaves_the_rest(
    command: Command, folder: Path
) -> None:
    limits = ("--requests-per-minute", "60", "--max-requests", "2", "--expires", "90d")
    command("create", "alice", "--models", "m,n", "--may-warm", "--may-administer", *limits)
    changes = ("--models", "all", "--no-may-warm", "--max-requests", "none", "--expires", "never")
    told = command("change", "alice", *changes, "--priority", "3").stdout
    assert told == command("show", "alice").stdout
    assert told.partition("UTC, ")[2] == (
        "all models, may administer, requests per minute 60, priority 3\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "alice"), "there is a key of the name alice already"),
        (("create", "a b"), "letters, digits"),
        (("create", ".."), "letters, digits"),
        (("create", "x", "--expires", "soon"), "a date is needed"),
        (("change", "bob", "--may-warm"), "there is no key of the name bob"),
        (("change", "gone", "--may-warm"), "the key gone has been revoked"),
        (("create", "x", "--requests-per-minute", "0"), "a number above 0 is needed"),
        (("create", "x", "--requests-per-minute", "1.5"), "a whole number is needed"),
        (("create", "x", "--priority", "high"), "a whole number is needed"),
        (("revoke", "bob"), "there is no key of the name bob"),
        (("rotate", "gone"), "the key gone has been revoked"),
    ],
)
def test_what_cannot_be_done_is_told(
    command: Command, folder: Path, arguments: tuple[str, ...], says: str
) -> None:
    for name in ("alice", "gone"):
        make(folder, StoredKey(name, created=0))
    done(url_in(folder), lambda one: stored_keys.revoke(one, "gone"))
    refused = command(*arguments)
    assert refused.returncode != 0
    assert says in refused.stderr


@pytest.fixture
def command_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The same in this process: its exit code, and what it says beside."""
    for name in PROXYS:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, **variables: str) -> tuple[int, str]:
        with monkeypatch.context() as environment:
            for name, value in ({"PROXY_STATE_DIR": str(folder)} | variables).items():
                environment.setenv(name, value)
            code = key_commands.run(parser().parse_args(["keys", *arguments]), DatabaseSettings())
        return code, capsys.readouterr().err

    return run


def test_a_command_keeps_the_last_key_that_may_administer_unless_it_is_forced(
    command_here: Callable[..., tuple[int, str]], folder: Path
) -> None:
    for name in ("alice", "bob"):
        make(folder, StoredKey(name, created=0, may_administer=True))
    assert command_here("revoke", "bob")[0] == 0
    for arguments in (("revoke", "alice"), ("change", "alice", "--no-may-administer")):
        code, said = command_here(*arguments)
        assert code == 1
        assert "no key could administer this proxy" in said
    kept = done(url_in(folder), lambda one: stored_keys.find(one, "alice"))
    assert (kept.state, kept.may_administer) == ("active", True)
    assert command_here("change", "alice", "--no-may-administer", "--force")[0] == 0
    assert command_here("revoke", "alice")[0] == 0  # there was no admin before, either


@pytest.mark.parametrize("settings", [{}, PROXYS])
def test_the_last_key_may_go_where_the_environment_names_an_admin(
    command_here: Callable[..., tuple[int, str]], folder: Path, settings: dict[str, str]
) -> None:
    make(folder, StoredKey("alice", created=0, may_administer=True))
    assert command_here("revoke", "alice", **settings)[0] == 1
    admins = {"PROXY_ADMIN_KEYS": "sk-admin-of-this-test-0123456789abcdef"}
    assert command_here("revoke", "alice", **settings, **admins)[0] == 0


def test_a_model_that_is_not_served_is_told_by_the_command(
    command_here: Callable[..., tuple[int, str]],
) -> None:
    code, said = command_here("create", "alice", "--models", "big,bih", **PROXYS)
    assert code == 0
    assert "here there is no model 'bih'; did you mean big?" in said
    assert "'big'" not in said
    assert "no model" not in command_here("change", "alice", "--models", "all", **PROXYS)[1]


def test_a_key_does_what_was_said_when_it_was_made(folder: Path, start: Start) -> None:
    limited = make(folder, StoredKey("a", 0, limits=KeyLimits(requests_per_minute=1)))
    elsewhere = make(folder, StoredKey("b", 0, models=("other",)))
    over = make(folder, StoredKey("c", 0, expires=1))
    with start() as client:
        headers = {"authorization": f"Bearer {limited}"}
        warmed = client.post("/v1/models/m/warm", headers=headers)
        assert error_of(warmed)["code"] == "permission_denied"
        assert [model["id"] for model in listed(client, limited).json()["data"]] == ["m"]
        assert listed(client, elsewhere).json()["data"] == []
        assert "has expired" in error_of(listed(client, over))["message"]


async def test_a_key_has_the_rights_that_it_was_made_with(folder: Path) -> None:
    plain = make(folder, StoredKey("a", 0))
    trusted = make(folder, StoredKey("b", 0, may_name_tenants=True, may_administer=True))
    database = Database(url_in(folder))
    found = [await StoredKeys(database).find(digest_of(key)) for key in (plain, trusted)]
    rights = [key and (key.may_name_tenants, key.may_administer) for key in found]
    assert rights == [(False, False), (True, True)]
    await database.close()


def test_a_key_with_the_name_of_a_configured_one_is_refused(folder: Path, start: Start) -> None:
    same = make(folder, StoredKey("key-1", 0))
    with start() as client:
        assert listed(client, same).status_code == 401
        assert listed(client, KEY).status_code == 200


async def test_what_is_known_is_asked_for_again_before_it_is_a_second_old(tmp_path: Path) -> None:
    database = Database(url_in(tmp_path))
    key = make(tmp_path, StoredKey("a", 0))
    now = 0.0
    store = StoredKeys(database, clock=lambda: now)
    assert await store.find(digest_of(key)) is not None
    await database.run(lambda one: stored_keys.revoke(one, "a"))
    now = REFRESH_SECONDS / 2
    assert await store.find(digest_of(key)) is not None
    now = MAX_AGE_SECONDS + 0.01
    assert now < 1
    with pytest.raises(InvalidAPIKey):
        await store.find(digest_of(key))
    await database.close()


async def test_requests_do_not_wait_for_what_is_asked_again_in_time(tmp_path: Path) -> None:
    database = Database(url_in(tmp_path))
    key = make(tmp_path, StoredKey("a", 0))
    now = 0.0
    store = StoredKeys(database, clock=lambda: now)
    assert await store.find(digest_of(key)) is not None
    now = REFRESH_SECONDS + 0.01
    finding = asyncio.create_task(store.find(digest_of(key)))
    await asyncio.sleep(0)
    assert finding.done()
    await database.close()


async def test_keys_are_as_old_as_what_the_database_tells_and_not_as_its_opening(
    tmp_path: Path,
) -> None:
    database = Database(url_in(tmp_path))
    key = make(tmp_path, StoredKey("a", 0))
    gate, now = threading.Event(), 0.0
    held = asyncio.create_task(database.run(lambda _: gate.wait(60)))
    await asyncio.sleep(0)
    store = StoredKeys(database, clock=lambda: now)
    beginning = asyncio.create_task(store.begin())
    for _ in range(5):  # until it waits for the database
        await asyncio.sleep(0)
    now = 2 * MAX_AGE_SECONDS
    finding = asyncio.create_task(store.find(digest_of(key)))
    await asyncio.sleep(0)
    gate.set()
    assert await finding is not None
    await beginning
    assert await held
    await database.close()


@pytest.mark.slow
def test_a_proxy_that_starts_has_its_keys_before_the_first_request(
    folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make(folder, StoredKey("a", 0))
    migrate = database_module._migrate

    def slowly(engine: Engine) -> None:
        time.sleep(2 * PATIENCE_SECONDS)
        migrate(engine)

    monkeypatch.setattr(database_module, "_migrate", slowly)
    with start() as client:
        assert listed(client, key).status_code == 200


@pytest.mark.slow
async def test_what_is_too_old_is_not_taken_when_nothing_newer_can_be_had(
    server: PostgreSQL,
) -> None:
    url = server.new_database()
    key = done(url, lambda one: stored_keys.create(one, StoredKey("a", 0)))
    now = 0.0
    database = Database(url)
    store = StoredKeys(database, clock=lambda: now)
    assert await store.find(digest_of(key)) is not None
    server.stop(signal.SIGKILL)
    try:
        now = MAX_AGE_SECONDS + 0.01
        with pytest.raises(KeysUnavailable):
            await store.find(digest_of(key))
    finally:
        server.start()
        await database.close()


@pytest.mark.slow
async def test_with_the_database_away_its_keys_are_refused_and_taken_when_it_is_back(
    server: PostgreSQL, start: Start
) -> None:
    url = server.new_database()
    key = done(url, lambda one: stored_keys.create(one, StoredKey("a", 0)))

    def status() -> int:
        return listed(client, key).status_code

    with start(database_url=url) as client:
        assert await asyncio.to_thread(status) == 200
        server.stop(signal.SIGKILL)
        try:
            await asyncio.to_thread(wait_until, lambda: status() == 503)
            refused = await asyncio.to_thread(listed, client, key)
            assert error_of(refused)["code"] == "keys_unavailable"
            assert "retry-after" in refused.headers
            assert (await asyncio.to_thread(listed, client, KEY)).status_code == 200
        finally:
            server.start()
        await asyncio.to_thread(wait_until, lambda: status() == 200)


@pytest.mark.slow
async def test_a_database_that_hangs_keeps_no_request_waiting(server: PostgreSQL) -> None:
    database = Database(server.new_database())
    await database.run(lambda one: one.execute(text("SELECT 1")))
    gate = threading.Event()
    held = asyncio.create_task(database.run(lambda _: gate.wait(60)))
    await asyncio.sleep(0)
    store = StoredKeys(database)
    with pytest.raises(KeysUnavailable):
        await store.find(b"")
    gate.set()
    assert await held
    await database.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_two_admins_who_take_each_others_right_at_once_leave_one(
    server: PostgreSQL, tmp_path: Path, kind: str
) -> None:
    url = url_in(tmp_path) if kind == "sqlite" else server.new_database()
    databases = [Database(url) for _ in range(2)]
    for name in ("a", "b"):
        key = StoredKey(name, 0, may_administer=True)
        await databases[0].run(partial(stored_keys.create, key=key))
    one, other = (StoredKeys(database) for database in databases)
    begun, gate = threading.Event(), threading.Event()

    def taken(key: StoredKey) -> StoredKey:
        return replace(key, may_administer=False)

    def taken_slowly(key: StoredKey) -> StoredKey:
        begun.set()
        gate.wait(60)
        return taken(key)

    first = asyncio.create_task(one.change("a", taken_slowly, keeps_admin=True))
    assert await asyncio.to_thread(begun.wait, 60)
    second = asyncio.create_task(other.change("b", taken, keeps_admin=True))
    await asyncio.wait({second}, timeout=0.5)
    gate.set()
    ended = await asyncio.gather(first, second, return_exceptions=True)
    assert [isinstance(result, KeyMistake) for result in ended] == [False, True]
    rights = {key.name: key.may_administer for key in await one.listed()}
    assert rights == {"a": False, "b": True}
    for database in databases:
        await database.close()


@pytest.mark.slow
def test_without_a_database_nothing_of_it_is_loaded(folder: Path) -> None:
    program = (
        "import sys, proxy.__main__ as command\n"
        "command.Server.run = lambda *_: print({'sqlalchemy', 'alembic'} & {*sys.modules})\n"
        "command.main()"
    )
    given = {
        "RUNPOD_API_KEY": "rp",
        "RUNPOD_ENDPOINT_ID": "ep",
        "PROXY_API_KEYS": KEY,
        "PROXY_PORT": "0",
        "PROXY_STATE_DIR": str(folder),
    }
    command = [sys.executable, "-c", program, "--env-file", os.devnull]
    ended = subprocess.run(
        command, env=os.environ | given, capture_output=True, text=True, timeout=100
    )
    assert ended.stdout == "set()\n"


T = TypeVar("T")


def done(url: str, work: Callable[[Connection], T]) -> T:
    database = Database(url)
    try:
        return database.run_here(work)
    finally:
        database.close_here()


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder / DATABASE_FILE}"


def make(folder: Path, key: StoredKey) -> str:
    return done(url_in(folder), lambda one: stored_keys.create(one, key))


def digest_of(key: str) -> bytes:
    return digest(SecretStr(key))
