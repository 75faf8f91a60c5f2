"""What all targets stand on: the cores, a folder for logs, the engine, and what was started."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from scripts.processes import ROOT, Process, free_port, stop
from tests.bench.load import Load, Seen
from tests.bench.processes import Cores
from tests.waiting import wait_until

READY_SECONDS = 300.0
"""Much longer than anything takes to start on a quiet machine."""
STOP_SECONDS = 10.0
LOAD_SECONDS = 600.0


@dataclass(frozen=True)
class Build:
    """A checkout of the project: this one, or the one before. Both run in this environment."""

    folder: Path = ROOT

    def command(self, module: str, *arguments: str) -> list[str]:
        """How to run a module of it; `-P`, or the working folder's would be found first."""
        return ["env", f"PYTHONPATH={self.folder}", sys.executable, "-P", "-m", module, *arguments]


THIS = Build()


@dataclass
class Ground:
    """Starts processes on their cores, and ends what was started."""

    folder: Path
    cores: Cores = field(default_factory=Cores)
    engine_port: int = 0
    _serial: int = 0

    @property
    def engine_url(self) -> str:
        """The stand-in for vLLM that all but workers share."""
        return f"http://127.0.0.1:{self.engine_port}"

    @contextmanager
    def running(
        self,
        name: str,
        command: Sequence[str],
        is_up: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        *,
        is_target: bool = False,
    ) -> Iterator[Process]:
        """A process, once it is up, until the block ends; what is measured has a core of its own.

        Raises:
            ProcessDied: it ended instead; the message has its last lines.
        """
        self._serial += 1
        log = self.folder / f"{self._serial:02}-{name}.log"
        if is_target:
            with self.cores.for_target():
                process = Process(name, command, self.environment(environment), log)
        else:
            process = Process(name, command, self.environment(environment), log)
        try:
            wait_until(lambda: _is_up(process, is_up), seconds=READY_SECONDS)
            yield process
        finally:
            stop([process], STOP_SECONDS)

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """Ours, without what is about a real account or a setting of the proxy, and with these."""
        left_out = ("RUNPOD_", "PROXY_", "WORKER_", "PYTHONPATH")
        kept = {key: text for key, text in os.environ.items() if not key.startswith(left_out)}
        loopback = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        return kept | loopback | {"PYTHONUNBUFFERED": "1"} | dict(changes or {})

    def see(self, load: Load) -> Seen:
        """Put this load on a target, in a process of its own, and tell what it saw.

        Raises:
            RuntimeError: the load generator failed.
        """
        with self.seeing(load) as told:
            pass
        seen = told.read_bytes()
        if not seen:
            said = (self.folder / "load.log").read_text()[-2000:]
            raise RuntimeError(f"the load generator failed: {said}")
        return msgspec.json.decode(seen, type=Seen)

    @contextmanager
    def seeing(self, load: Load) -> Iterator[Path]:
        """The same, with something else meanwhile; what was seen is in the file afterwards."""
        given, told = self.folder / "load.json", self.folder / "seen.json"
        given.write_bytes(msgspec.json.encode(load))
        run = shlex.join(THIS.command("tests.bench.load"))
        command = ["sh", "-c", f"exec {run} < {given} > {told}"]
        log = self.folder / "load.log"
        process = Process("the load generator", command, self.environment(), log)
        try:
            yield told
            process.wait(LOAD_SECONDS)
        finally:
            process.kill()


@contextmanager
def bare_ground() -> Iterator[Ground]:
    """The ground alone; we ourselves leave the target's core."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = Ground(Path(folder), engine_port=free_port())
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, found.cores.others)
        try:
            yield found
        finally:
            os.sched_setaffinity(0, before)


@contextmanager
def ground() -> Iterator[Ground]:
    """The ground with its engine running."""
    with bare_ground() as found:
        command = THIS.command("tests.bench.engine", "--port", str(found.engine_port))
        with found.running("engine", command, lambda: answers(found.engine_url)):
            yield found


def answers(url: str, key: str = "") -> bool:
    """Whether a GET of it is answered 200."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        return httpx.get(url, headers=headers, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _is_up(process: Process, is_up: Callable[[], bool]) -> bool:
    process.check()
    return is_up()
