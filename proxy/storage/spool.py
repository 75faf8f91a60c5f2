"""Lines that wait in files until they have been written elsewhere.

A line is in a file as soon as it is added, so that a process which is killed loses none: the next
one takes its files over. Where no file can be written, as on a full disk, lines wait in memory, as
many as may. Only what the system has and the disk has not goes with a machine that dies.
"""

import itertools
import logging
import os
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Final

from proxy.storage.owned_files import created, owned

log = logging.getLogger(__name__)

MAX_IN_MEMORY: Final = 10_000
"""How many lines may wait there."""
PAUSE_SECONDS: Final = 1.0
"""Between two tries to write a file that cannot be written."""
READ_BYTES: Final = 256 * 1024
"""How much is read at a time; no line is longer."""


class _File:
    """A file of lines, whose lock is held; read from its beginning on."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self.position = 0
        """What comes before this has been written elsewhere."""
        self._descriptor = descriptor

    def append(self, lines: bytes) -> None:
        """Write lines whole, or nothing of them; raises OSError."""
        written = 0
        try:
            while written < len(lines):
                at = self.size + written
                written += os.pwrite(self._descriptor, lines[written:], at)
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(lines)

    def read(self, count: int) -> list[bytes]:
        """The next lines, at most so many. What a dying machine has left of one is no line."""
        piece = os.pread(self._descriptor, READ_BYTES, self.position)
        lines = piece.splitlines(keepends=True)
        if self.position + len(piece) < self.size and not piece.endswith(b"\n"):
            lines.pop()
        return lines[:count]

    def count(self) -> int:
        """How many lines there are to read."""
        place, lines = self.position, 0
        while piece := os.pread(self._descriptor, READ_BYTES, place):
            place += len(piece)
            lines += piece.count(b"\n")
        return lines

    def close(self) -> None:
        """Let go of it, and leave it to the next process unless all of it has been read."""
        if self.position >= self.size:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


class Spool:
    """The lines of this process, oldest first, and those that were left in the same folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.waiting = 0
        """How many lines there are."""
        self.lost = 0
        """How many there was no room for."""
        self._folder = folder
        self._name = name
        self._files: deque[_File] = deque()
        self._last: _File | None = None
        """The one of them that lines are added to."""
        self._in_memory: deque[bytes] = deque()
        """What no file has, and is newer than what they have."""
        self._retry_at = 0.0
        """When a file is tried again after one could not be written; else 0."""
        self._source: _File | None = None
        self._taken: list[bytes] = []
        """What was given last, and from where; None for the memory."""

    def add(self, line: bytes) -> None:
        """Keep one more line, which ends with its only line feed."""
        self._in_memory.append(line)
        self.waiting += 1
        if self._retry_at and time.monotonic() < self._retry_at:
            self._bound()
            return
        try:
            self._write()
        except OSError as exc:
            if not self._retry_at:
                log.error("the %s waits in memory, as no file can be written: %s", self._name, exc)
            self._retry_at = time.monotonic() + PAUSE_SECONDS
            self._bound()
        else:
            self._retry_at = 0.0

    def take_over(self) -> None:
        """Add what processes have left that do not run any more."""
        for path in sorted(self._folder.glob(f"{self._name}-*.jsonl")):
            try:
                if (descriptor := owned(path)) is not None:
                    file = _File(path, descriptor)
                    self._files.appendleft(file)
                    self.waiting += file.count()
            except OSError as exc:
                log.warning("what an earlier process left is not taken over: %s", exc)

    def next(self, count: int) -> list[bytes]:
        """The oldest lines, at most so many; they stay until they are said to be `done`.

        Raises:
            OSError: they cannot be read.
        """
        while self._files:
            self._source = self._files[0]
            if self._source is self._last:
                self._last = None  # what is added from now on has a file of its own
            if taken := self._source.read(count):
                self._taken = taken
                return taken
            self._files.popleft().close()
        self._source = None
        self._taken = list(itertools.islice(self._in_memory, count))
        return self._taken

    def done(self) -> None:
        """What `next` has given is written elsewhere."""
        if self._source is not None:
            self._source.position += sum(map(len, self._taken))
            self._count_off(len(self._taken))
        else:  # some may have gone into a file meanwhile: they will be given once more
            taken, before = set(map(id, self._taken)), len(self._in_memory)
            self._in_memory = deque(line for line in self._in_memory if id(line) not in taken)
            self._count_off(before - len(self._in_memory))
        self._taken = []

    def close(self) -> None:
        """Let go of the files; what waits in them is the next process's."""
        for file in self._files:
            file.close()
        self._files.clear()
        if self._in_memory:
            log.error("%d lines of the %s are lost", len(self._in_memory), self._name)

    def _write(self) -> None:
        """Write what is in memory; raises OSError if it stays there."""
        if self._last is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._folder / f"{self._name}-{uuid.uuid4().hex}.jsonl"
            self._last = _File(path, created(path))
            self._files.append(self._last)
        self._last.append(b"".join(self._in_memory))
        self._in_memory.clear()

    def _bound(self) -> None:
        if len(self._in_memory) > MAX_IN_MEMORY:
            self._in_memory.popleft()
            self.waiting -= 1
            self.lost += 1
            if self.lost == 1:
                log.error("lines of the %s are lost from now on: memory is full", self._name)

    def _count_off(self, number: int) -> None:
        self.waiting = max(0, self.waiting - number)  # the last of a file may be no whole line
