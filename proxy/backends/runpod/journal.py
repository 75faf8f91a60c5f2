"""The journal of jobs in flight: what a proxy that was killed leaves for the next one to cancel.

One SQLite file for each running proxy, locked as long as it lives, so that several proxies can
share a folder. At start-up the files that no process holds any more are taken over.
"""

import logging
import os
import sqlite3
import uuid
from dataclasses import dataclass
from pathlib import Path

from proxy.storage.owned_files import created, owned

log = logging.getLogger(__name__)

_SCHEMA = "CREATE TABLE jobs (id TEXT PRIMARY KEY, endpoint TEXT NOT NULL) WITHOUT ROWID"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A job that a proxy submitted and did not see the end of."""

    endpoint: str
    """The URL of its endpoint."""
    job_id: str


class Journal:
    """The jobs of this proxy. A write takes microseconds: it reaches the system, not the disk.

    Where the folder cannot be written they are in memory alone, and a proxy that is killed leaves
    its jobs to their own limits.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"jobs-{uuid.uuid4().hex}.sqlite3"
        self._lock: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = created(self._path)
            self._database = _created(self._path)
        except (OSError, sqlite3.Error) as exc:
            log.warning("jobs in flight will not survive a crash of the proxy: %s", exc)
            self._database = _created(":memory:")

    def orphans(self) -> list[Orphan]:
        """What proxies before this one left; from now on it stands in this one's journal."""
        taken = []
        for path in self._folder.glob("jobs-*.sqlite3"):
            try:
                taken += self._take_over(path)
            except OSError as exc:
                log.warning("an earlier proxy's journal is not taken over: %s", exc)
        return taken

    def _take_over(self, path: Path) -> list[Orphan]:
        if (lock := owned(path)) is None:
            return []
        try:
            orphans = _read(path)
            for orphan in orphans:
                self.add(orphan.endpoint, orphan.job_id)
            path.unlink(missing_ok=True)
        except OSError as exc:  # its jobs are cancelled all the same, at each start
            log.warning("an earlier proxy's journal cannot be removed: %s", exc)
        finally:
            os.close(lock)
        return orphans

    def add(self, endpoint: str, job_id: str) -> None:
        """Note a job that RunPod has taken."""
        self._write("INSERT OR IGNORE INTO jobs VALUES (?, ?)", (job_id, endpoint))

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended."""
        self._write("DELETE FROM jobs WHERE id = ?", (job_id,))

    def close(self) -> None:
        """Leave nothing behind if nothing is in flight; else leave it to the next proxy."""
        (count,) = self._database.execute("SELECT count(*) FROM jobs").fetchone()
        self._database.close()
        if self._lock is not None:
            if count:
                log.warning("%d jobs stay in %s for the next proxy to cancel", count, self._path)
            else:
                self._path.unlink(missing_ok=True)
            os.close(self._lock)

    def _write(self, statement: str, values: tuple[str, ...]) -> None:
        # A full disk must not cost a request its answer: it has a job that must be followed.
        try:
            self._database.execute(statement, values)
        except sqlite3.Error as exc:
            log.error("the journal of jobs in flight cannot be written: %s", exc)


def _created(path: Path | str) -> sqlite3.Connection:
    # One process alone ever has it open, by its lock: nothing to lock for each write, and
    # nothing to read again.
    uri = f"{path.resolve().as_uri()}?nolock=1" if isinstance(path, Path) else path
    database = sqlite3.connect(uri, uri=True, isolation_level=None)
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    # A killed process loses nothing that the system has; only a dead machine would.
    database.execute("PRAGMA synchronous = OFF")
    database.execute("PRAGMA journal_mode = MEMORY")
    database.execute(_SCHEMA)
    return database


def _read(path: Path) -> list[Orphan]:
    database = sqlite3.connect(path)
    try:
        return [Orphan(*row) for row in database.execute("SELECT endpoint, id FROM jobs")]
    except sqlite3.DatabaseError as exc:
        log.warning("the journal %s cannot be read: %s", path, exc)
        return []
    finally:
        database.close()
