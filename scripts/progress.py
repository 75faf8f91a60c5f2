"""Progress: a line per phase with the time it took, and one process at a time."""

import fcntl
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SHOWN_LINES = 40
TICK_SECONDS = 1.0
CLOCK = "clock of a phase"


class SetUpError(Exception):
    """The set-up cannot go on; the message says why and what to do."""


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Print the name of what is being done now, and afterwards the seconds it took.

    On a terminal the seconds so far as well.
    """
    started, is_over = time.monotonic(), threading.Event()
    line = f"  {name} ..."
    again = f"\r{line}" if sys.stdout.isatty() else ""
    print(line, end="", flush=True)
    facts = (again, started, is_over)
    clock = threading.Thread(target=_show_clock, args=facts, daemon=True, name=CLOCK)
    if again:
        clock.start()
    ended = " failed"
    try:
        yield
        ended = f" {time.monotonic() - started:.1f} s"
    finally:
        is_over.set()
        if again:
            clock.join()
        print(f"{again}{ended}", flush=True)


def _show_clock(line: str, started: float, is_over: threading.Event) -> None:
    while not is_over.wait(TICK_SECONDS):
        print(f"{line} {time.monotonic() - started:.0f} s", end="", flush=True)


def run(
    command: Iterable[str | Path],
    *,
    text: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command in silence, with `text` as its input, and return its standard output.

    Raises:
        SetUpError: it failed; the message ends with the last lines it printed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()[-SHOWN_LINES:]
        raise SetUpError("\n".join([f"{' '.join(words)} failed:", *said]))
    return done.stdout


@contextmanager
def only_one(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock at `path`, waiting while another process does the same.

    The kernel lets go of the lock when its holder ends, however that happens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"  another process is {doing}: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
