"""Processes that end with us, however we end, and whose output is kept in files."""

import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from scripts.progress import SetUpError

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = ROOT / "emulator" / "fleet" / "launcher.py"
"""Ends all that it started when its standard input closes, so also when we are killed."""

KILL_SECONDS = 10.0


class ProcessDied(Exception):
    """A process ended that should run; the message ends with the last lines it wrote."""


class Process:
    """One running program; its output goes to `log`."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._launcher = subprocess.Popen(
                [sys.executable, "-I", str(LAUNCHER), *command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                # A Ctrl-C in the terminal is for us alone: we decide who stops when.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The id of the launcher, which is the parent of the program."""
        return self._launcher.pid

    def poll(self) -> int | None:
        """Its exit code, as a shell tells it; None while it runs."""
        return self._launcher.poll()

    def check(self) -> None:
        """Return if it runs.

        Raises:
            ProcessDied: it has ended.
        """
        if (code := self.poll()) is not None:
            said = "\n".join(last_lines(self.log))
            raise ProcessDied(f"{self.name} ended with exit code {code}, {self.log} ends:\n{said}")

    def terminate(self) -> None:
        """Ask it to end."""
        self._launcher.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Return when it has ended or the time is over."""
        with suppress(subprocess.TimeoutExpired):
            self._launcher.wait(seconds)

    def kill(self) -> None:
        """End it at once, with everything it started."""
        assert self._launcher.stdin is not None
        self._launcher.stdin.close()
        self.wait(KILL_SECONDS)
        self._launcher.kill()
        self._launcher.wait()


def stop(processes: Iterable[Process], seconds: float) -> None:
    """Ask one after the other to end; kill those that take too long, and all when interrupted."""
    stopping = list(processes)
    try:
        for process in stopping:
            process.terminate()
            process.wait(seconds)
    finally:
        for process in stopping:
            process.kill()


def with_name(log: Path, line: str) -> str:
    """The line after its file's name."""
    return f"{log.stem} | {line}"


class Follower:
    """Prints what is appended to the log files in a folder, each line as `shown` has it.

    A line of which that makes None is not printed, nor what is `old`: there already.
    """

    def __init__(
        self,
        folder: Path,
        shown: Callable[[Path, str], str | None] = with_name,
        *,
        old: bool = True,
    ) -> None:
        self._folder = folder
        self._shown = shown
        logs = () if old else folder.glob("*.log")
        self._read = {log: log.stat().st_size for log in logs}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(0.2):
            for log in sorted(self._folder.glob("*.log")):
                self._print_new_lines(log)

    def _print_new_lines(self, log: Path) -> None:
        with log.open("rb") as file:
            file.seek(self._read.get(log, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read[log] = self._read.get(log, 0) + len(line)
                text = self._shown(log, line.decode(errors="replace").rstrip())
                if text is not None:
                    print(text, flush=True)


def last_lines(file: Path, count: int = 30) -> list[str]:
    """The last lines of a file."""
    with file.open(errors="replace") as lines:
        return [line.rstrip() for line in deque(lines, maxlen=count)]


def is_free(port: int) -> bool:
    """Whether a server can listen on that port of loopback."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def check_port(port: int, setting: str) -> None:
    """Return if a server can listen on that port; 0 stands for any.

    Raises:
        SetUpError: another program does; the message names the setting that changes the port.
    """
    if port and not is_free(port):
        raise SetUpError(f"port {port} is taken: stop what listens there, or set {setting}")


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
