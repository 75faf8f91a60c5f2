"""A real Redis for tests, on a socket of its own, with nothing of it left behind."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.waiting import wait_until

START_SECONDS = 60.0


class RedisServer:
    """One server, which keeps nothing; it can be killed, held, and started again."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder}/socket"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ("--port", "0", "--save", "", "--unixsocket", str(self._folder / "socket"))
        self._process = subprocess.Popen(
            [self._program, *options], cwd=self._folder, stdout=subprocess.DEVNULL
        )
        wait_until(self._is_up, seconds=START_SECONDS)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    def hold(self) -> None:
        """Let it answer nothing until it is killed; its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "Redis has ended"
        try:
            with redis.Redis.from_url(self.url) as client:
                client.ping()
        except redis.RedisError:
            return False
        return True


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A server that is up, until the block ends."""
    if (program := shutil.which("redis-server")) is None:
        message = "no Redis here: on Debian and Ubuntu `apt-get install redis-server`"
        if os.environ.get("REQUIRE_SERVICES"):
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(Path(folder), program)
        server.start()
        try:
            yield server
        finally:
            server.stop()
