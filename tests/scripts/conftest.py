"""`python -m scripts.run` as a process, with the scripted engine in vLLM's place."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from scripts.set_up import VLLM_FLAGS
from tests.servers import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "scripts" / "scripted_engine.py"


class Run:
    """One `python -m scripts.run`, its output in a file."""

    def __init__(
        self,
        folder: Path,
        engine_flags: str,
        environment: dict[str, str],
        python: Path | str = sys.executable,
    ) -> None:
        model = folder / "some-model"
        model.mkdir()
        self.ports = {name: free_port() for name in ("PROXY_PORT", "EMULATOR_PORT")}
        self._output = folder / "output"
        self._mark = f"run-{folder}"
        engine = shlex.join([sys.executable, str(ENGINE), *shlex.split(engine_flags)])
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [python, "-m", "scripts.run"],
                cwd=ROOT,
                env={
                    **os.environ,
                    **{name: str(port) for name, port in self.ports.items()},
                    "MODEL": str(model),
                    "WORKER_VLLM_COMMAND": engine,
                    "WORKER_VLLM_FLAGS": str(VLLM_FLAGS),
                    "RUN_LOGS": str(folder / "logs"),
                    "MARK": self._mark,
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until it has printed that."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, seconds=120)
        assert text in self.output, self.output

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends it to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def left(self) -> list[psutil.Process]:
        """All processes that this run has started, whoever their parent is by now."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def engines(self) -> list[list[str]]:
        """The command lines of the engines that run."""
        lines = [words_of(process) for process in self.left()]
        return [words for words in lines if words[1:2] == [str(ENGINE)]]

    def served(self) -> list[str]:
        """The names of the models that the engines serve."""
        return [words[words.index("--served-model-name") + 1] for words in self.engines()]

    def end(self) -> None:
        """Kill whatever the test has not ended."""
        self.process.kill()
        self.process.wait()
        for process in self.left():
            with suppress(psutil.NoSuchProcess):  # it went with another one
                process.kill()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("MARK") == self._mark
        except psutil.Error:
            return False


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; nothing if it has ended by now."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


Start = Callable[..., Run]


@contextmanager
def runs(folders: Callable[[], Path]) -> Iterator[Start]:
    started: list[Run] = []

    def start(
        engine_flags: str = "", *, python: Path | str = sys.executable, **environment: str
    ) -> Run:
        started.append(Run(folders(), engine_flags, environment, python))
        return started[-1]

    yield start
    for run in started:
        run.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with runs(lambda: tmp_path) as start:
        yield start
