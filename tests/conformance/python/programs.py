"""Agents that are programs: what each is told, run in an empty home and folder, and what it said.

Their own prompts are thousands of tokens long and hold the day and the folder, so what vLLM says to
them is not known beforehand: what can be checked is that an answer came whole, and that errors are
told with the reason. Nothing but loopback can be reached by them: they would look for news.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SECONDS = 110.0
PACKAGES = Path(sys.prefix) / "node_modules"
"""Where the programs that are npm packages are."""
NODE = Path(sys.prefix) / "bin" / "node"
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Said:
    """What a program printed, and how it ended."""

    code: int
    text: str

    @property
    def words(self) -> str:
        """The text with its line ends, which follow a terminal's width, taken for blanks."""
        return " ".join(self.text.split())


def run(
    command: Sequence[str | Path], home: Path, environment: Mapping[str, str] | None = None
) -> Said:
    """Run a program to its end, in an empty folder below `home`.

    Raises:
        TimeoutExpired: it did not end in time.
    """
    folder = home / "work"
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    alone = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1"}
    lowered = {name.lower(): value for name, value in alone.items()}
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env={**kept, **alone, **lowered, "HOME": str(home), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
        )
    finally:
        _kill_all(home)
    return Said(done.returncode, done.stdout.decode(errors="replace"))


def _kill_all(home: Path) -> None:
    """End what a program has left running, such as Cline's hub: it has our home as its own."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"HOME={home}".encode() in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)


def platform_binary(package: str, program: str) -> Path:
    """The program in the package for this platform, which npm chose."""
    found = sorted(PACKAGES.glob(f"{package}-{sys.platform}-*/bin/{program}"))
    assert found, f"npm installed no {package} for this platform"
    return found[0]
