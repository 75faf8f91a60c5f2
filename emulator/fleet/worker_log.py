"""WorkerLog: what a worker has written, line by line, and what the platform did with it."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

MAX_LINES: Final = 20_000
"""What a worker writes after so many lines is in its file alone."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line, and when it was first seen."""

    id: str
    ts: str
    source: str
    text: str


class WorkerLog:
    """The lines of one worker: its own, and the platform's."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._path: Path | None = None
        self._offset = 0

    def follow(self, path: Path) -> None:
        """The worker writes to this file."""
        self._path = path

    def add(self, text: str, source: str = "system") -> None:
        """One more line."""
        if len(self._lines) < MAX_LINES:
            now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
            ts = now.replace("+00:00", "Z")
            self._lines.append(Line(f"{ts}/{len(self._lines):012}", ts, source, text))

    def read(self) -> list[Line]:
        """All lines so far; one that has no end yet is left for later."""
        if self._path is not None and self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")
            if whole[1]:
                self._offset += len(whole[0]) + 1
                for line in whole[0].split(b"\n"):
                    self.add(line.decode(errors="replace").rstrip("\r"), "container")
        return self._lines
