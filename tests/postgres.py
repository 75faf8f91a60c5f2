"""A real PostgreSQL server for tests, on a port of its own, with nothing of it left behind."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.servers import free_port
from tests.waiting import wait_until

START_SECONDS = 60.0
DEBIAN = Path("/usr/lib/postgresql")
"""Where Debian's packages have the programs of each version."""
UNPRIVILEGED = ("postgres", "nobody")


class PostgreSQL:
    """One server; it can be killed and started again on what it has kept."""

    def __init__(self, folder: Path, program: Path, user: Sequence[str]) -> None:
        self._data = folder / "data"
        self.program = program
        self._user = user
        self._log = folder / "log"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://tests@127.0.0.1:{self._port}/postgres"

    def create(self) -> None:
        """Make its folder."""
        command = [
            *(*self._user, str(self.program.with_name("initdb")), "--no-sync"),
            *("--auth", "trust", "--username", "tests", "--encoding", "UTF8", str(self._data)),
        ]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [*self._user, str(self.program), "-D", str(self._data), "-p", str(self._port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options], stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        wait_until(self._is_up, seconds=START_SECONDS)

    def new_database(self) -> str:
        """The URL of a database with nothing in it."""
        name = f"tests_{uuid.uuid4().hex}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url.replace("/postgres", f"/{name}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it: in order, connections or not, or with SIGKILL as a crash does."""
        if self._process is not None:
            group = self._process.pid
            if number is signal.SIGKILL:
                os.killpg(group, number)
            else:
                self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server that is up, until the block ends."""
    if (program := _program()) is None:
        message = "no PostgreSQL here: on Debian and Ubuntu `apt-get install postgresql`"
        if os.environ.get("REQUIRE_SERVICES"):
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgreSQL(Path(folder), program, _unprivileged(folder))
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)


def _program() -> Path | None:
    found = sorted(DEBIAN.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1]
    name = shutil.which("postgres")
    return Path(name).resolve() if name else None


def _unprivileged(folder: str) -> list[str]:
    """What runs a command as somebody else: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    for name in UNPRIVILEGED:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return [
            *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"),
            *("--clear-groups", "--"),
        ]
    pytest.skip("there is no user for PostgreSQL to run as")
