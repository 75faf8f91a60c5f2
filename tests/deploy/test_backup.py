"""The commands of docs/operate.md, Backup, bring back what was there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.deploy.conftest import BARE, ROOT
from tests.postgres import postgresql

pytestmark = pytest.mark.slow

SECTION = re.search(r"^## Backup\n(.*?)^## ", (ROOT / "docs/operate.md").read_text(), re.M | re.S)
COMMANDS = re.findall(r"^\$ (.*)$", SECTION[1] if SECTION else "", re.MULTILINE)


def written_with(program: str) -> str:
    """The command of the document that has this word."""
    [command] = [command for command in COMMANDS if program in command]
    return str(command)


def in_postgres(program: str, environment: dict[str, str], folder: Path) -> None:
    """Run what the document has run in PostgreSQL's container."""
    command = written_with(program).removeprefix("docker compose exec -T postgres ")
    subprocess.run(["sh", "-c", command], env=environment, cwd=folder, check=True, timeout=60)


def keys(database: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "proxy", "keys", *arguments]
    environment = {**BARE, "PROXY_DATABASE_URL": database}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_a_dump_of_postgresql_brings_back_the_keys_that_were_there(tmp_path: Path) -> None:
    with postgresql() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE proxy LOGIN SUPERUSER")
            connection.execute("CREATE DATABASE proxy OWNER proxy")
        url = server.url.replace("tests@", "proxy@").replace("/postgres", "/proxy")
        place = psycopg.conninfo.conninfo_to_dict(url)
        programs = Path(server.program).parent
        environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PGHOST": str(place["host"]),
            "PGPORT": str(place["port"]),
        }
        keys(url, "create", "alice")
        in_postgres("pg_dump", environment, tmp_path)
        keys(url, "revoke", "alice")
        keys(url, "create", "bob")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE of_a_newer_version (id integer)")
        for program in ("dropdb", "createdb", "pg_restore"):
            in_postgres(program, environment, tmp_path)
        listed = keys(url, "list")
        with psycopg.connect(url) as connection:
            left = connection.execute("SELECT to_regclass('of_a_newer_version')").fetchone()
    assert left == (None,)
    assert "alice" in listed
    assert "active" in listed
    assert "bob" not in listed


def test_a_copy_of_sqlite_has_what_was_there(tmp_path: Path) -> None:
    keys(f"sqlite:///{tmp_path}/proxy.sqlite3", "create", "alice")
    command = [sys.executable, *shlex.split(written_with("sqlite3.connect"))[1:]]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    assert "alice" in keys(f"sqlite:///{tmp_path}/backup.sqlite3", "list")
