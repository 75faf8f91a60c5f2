"""What a terminal showed, and when: a command filmed by tmux, which is the terminal."""

import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scripts.progress import run

FRAME_SECONDS = 0.1


@dataclass(frozen=True)
class Frame:
    """The screen, from `seconds` after the start until the next frame."""

    seconds: float
    lines: tuple[str, ...]
    """From the top, with ANSI escapes for colours and nothing else."""

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


class Terminal:
    """A terminal of its own, in which one command runs."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ("tmux", "-S", str(socket), "-f", "/dev/null")

    def start(self, command: str, *, columns: int, lines: int) -> None:
        """Run the command, a shell's, with our environment, in a window of this size."""
        size = ("-x", str(columns), "-y", str(lines))
        self._run("new-session", "-d", *size, command, ";", "set", "status", "off")

    def screen(self) -> tuple[str, ...] | None:
        """What is on it now; None when the command has ended."""
        words = (*self._tmux, "capture-pane", "-e", "-p")
        done = subprocess.run(words, capture_output=True, text=True)
        return None if done.returncode else tuple(done.stdout.rstrip("\n").split("\n"))

    def press(self, key: str) -> None:
        """Press a key, by tmux's name of it."""
        self._run("send-keys", key)

    def close(self) -> None:
        """End the command, if it still runs, and the terminal."""
        subprocess.run((*self._tmux, "kill-server"), capture_output=True)

    def _run(self, *words: str) -> None:
        run((*self._tmux, *words))


@contextmanager
def terminal(socket: Path) -> Iterator[Terminal]:
    """A terminal whose tmux talks over this socket, and that is closed in any case."""
    window = Terminal(socket)
    try:
        yield window
    finally:
        window.close()


def film(
    window: Terminal, is_over: Callable[[Frame], bool], *, most_seconds: float
) -> Iterator[Frame]:
    """Each screen that differs from the one before, until `is_over` or the command has ended.

    Raises:
        TimeoutError: neither has come in time.
    """
    started, last = time.monotonic(), None
    while (lines := window.screen()) is not None:
        now = time.monotonic() - started
        frame = Frame(now, lines)
        if lines != last:
            last = lines
            yield frame
        if is_over(frame):
            return
        if now > most_seconds:
            raise TimeoutError(f"not over after {most_seconds:.0f} s:\n{frame.text}")
        time.sleep(FRAME_SECONDS)


def shell(*words: str) -> str:
    """A command that shows itself first, as if it had been typed, and not by another make.

    A make within a make tells which folder it enters, and that is nobody's affair.
    """
    line = shlex.join(words)
    return f"printf '$ %s\\n' {shlex.quote(line)}; unset MAKEFLAGS MFLAGS MAKELEVEL; exec {line}"


def shortened(frames: list[Frame], *, longest_seconds: float, lapse: float) -> list[Frame]:
    """The same film with no pause longer than this, and with waiting `lapse` times as quick.

    Waiting is a frame that differs from the one before in its numbers alone. The screens are left
    as they were; of those that would follow one another too quickly to be seen some are left out.
    """
    found = frames[:1]
    moment = frames[0].seconds
    for before, frame in pairwise(frames):
        seconds = min(frame.seconds - before.seconds, longest_seconds)
        is_waiting = _without_numbers(before) == _without_numbers(frame)
        moment += seconds / lapse if is_waiting else seconds
        if is_waiting and moment - found[-1].seconds < FRAME_SECONDS:
            continue
        found.append(Frame(round(moment, 3), frame.lines))
    return found


def _without_numbers(frame: Frame) -> str:
    """What is on the screen but numbers, and the characters that turn while one waits."""
    return re.sub(r"\x1b\[[\d;]*m|[\d.:\u2800-\u28ff]+", "", frame.text)
