"""What the holders of keys have spent today and this month: dollars, and seconds of workers.

It is kept in a SQLite file, so that a proxy which is started again goes on from there. Processes
that share the folder share what is spent. Days and months are those of UTC.
"""

import itertools
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

log = logging.getLogger(__name__)

FILE: Final = "spending.db"
BUSY_SECONDS: Final = 0.2
"""How long another process may be writing: everything else waits meanwhile."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS spending (
    key TEXT, period TEXT, dollars REAL NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (key, period)
) WITHOUT ROWID"""
_LOOKS: Final = """
CREATE TABLE IF NOT EXISTS looks (
    endpoint TEXT PRIMARY KEY, at REAL NOT NULL, workers INTEGER NOT NULL
) WITHOUT ROWID"""
_ADD: Final = """
INSERT INTO spending VALUES %s ON CONFLICT DO UPDATE
SET dollars = dollars + excluded.dollars, seconds = seconds + excluded.seconds"""
_READ: Final = "SELECT period, dollars, seconds FROM spending WHERE key = ? AND period IN (?, ?)"
MAX_TOGETHER: Final = 1_000
"""How many rows are written by one statement."""


class Spent(msgspec.Struct, frozen=True, gc=False):
    """What was spent in a time: dollars as they are estimated, and seconds of workers."""

    dollars: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.dollars + other.dollars, self.seconds + other.seconds)


_NOTHING: Final = Spent()


@dataclass(frozen=True, slots=True)
class Periods:
    """The day and the month that are now, by their names in the file."""

    day: str
    month: str

    @classmethod
    def of(cls, now: datetime) -> "Periods":
        """Those of a moment in UTC."""
        day = now.date().isoformat()
        return cls(day, day[:7])


def next_day(now: datetime) -> datetime:
    """When the next day begins, in UTC."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def next_month(now: datetime) -> datetime:
    """When the next month begins, in UTC."""
    return next_day(now.replace(day=28) + timedelta(days=4)).replace(day=1)


class Spending:
    """What each key has spent, counted on from what the file in this folder says."""

    def __init__(
        self, folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.now = now
        self._folder = folder
        self._opened: sqlite3.Connection | None = None
        self._unwritten: dict[tuple[str, str], Spent] = {}
        """By key and period: what could not be written yet."""

    def note(self, key: str, spent: Spent) -> None:
        """The holder of this key has spent so much more."""
        periods = Periods.of(self.now())
        for period in (periods.day, periods.month):
            self._unwritten[key, period] = self._unwritten.get((key, period), _NOTHING) + spent
        try:
            while self._unwritten:
                self._write_some()
        except sqlite3.Error as exc:  # a full disk must not cost a request its answer
            log.error("what keys have spent cannot be written now, and is kept in memory: %s", exc)

    def of(self, key: str) -> tuple[Spent, Spent]:
        """What it has spent today, and this month."""
        periods = Periods.of(self.now())
        try:
            found = self._database.execute(_READ, (key, periods.day, periods.month)).fetchall()
        except sqlite3.Error as exc:
            log.error("what keys have spent cannot be read now: %s", exc)
            found = []
        written = {period: Spent(*spent) for period, *spent in found}
        today, month = (
            written.get(period, _NOTHING) + self._unwritten.get((key, period), _NOTHING)
            for period in (periods.day, periods.month)
        )
        return today, month

    def swap_look(self, endpoint: str, at: float, workers: int) -> tuple[float, int] | None:
        """Keep the last look at an endpoint's workers; returns the one before, if there was one.

        Raises sqlite3.Error.
        """
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            before: tuple[float, int] | None = database.execute(
                "SELECT at, workers FROM looks WHERE endpoint = ?", (endpoint,)
            ).fetchone()
            database.execute(
                "INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", (endpoint, at, workers)
            )
        return before

    def close(self) -> None:
        """Let go of the file."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _database(self) -> sqlite3.Connection:
        """Opened when the first key that has a budget comes."""
        if self._opened is None:
            periods = Periods.of(self.now())
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                path = self._folder / FILE
                path.touch(mode=0o600)
                self._opened = _opened(path, periods)
            except (OSError, sqlite3.Error) as exc:
                log.warning("what keys have spent will be forgotten when the proxy stops: %s", exc)
                self._opened = _opened(":memory:", periods)
        return self._opened

    def _write_some(self) -> None:
        """Write rows by one statement, which is a transaction by itself; raises sqlite3.Error."""
        some = list(itertools.islice(self._unwritten.items(), MAX_TOGETHER))
        values = [value for place, one in some for value in (*place, one.dollars, one.seconds)]
        self._database.execute(_ADD % ", ".join(["(?, ?, ?, ?)"] * len(some)), values)
        for place, _ in some:
            del self._unwritten[place]


def _opened(path: Path | str, periods: Periods) -> sqlite3.Connection:
    """The database, without the rows of months that have passed."""
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    # A killed process loses nothing that the system has; only a dead machine would.
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    with database:
        database.execute(_SCHEMA)
        database.execute(_LOOKS)
        database.execute("DELETE FROM spending WHERE period < ?", (periods.month,))
    return database
