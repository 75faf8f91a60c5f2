"""The ledger: what each request that started work has used, kept in the database.

A row is in a file of the state folder as soon as its request has ended, and written to the
database a moment later, together with others. So no request waits for it, and none is lost while
the database is away or when the proxy is killed. A row has an id of its own: written twice it is
there once. Nothing of what was asked and answered is in it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy.exc import DataError

from proxy.api.answer import Course
from proxy.api.call import OnSpent, Work
from proxy.errors import LedgerUnavailable
from proxy.ledger.job_times import JobTimes
from proxy.ledger.rows import GIVEN_UP, Row, expire, totals, write
from proxy.ledger.sums import Total
from proxy.storage.database import Database, DatabaseAway
from proxy.storage.spool import Spool
from proxy.telemetry.ended_request import EndedRequest

log = logging.getLogger(__name__)

FILES: Final = "ledger"
"""What the names of its files begin with."""
GATHER_SECONDS: Final = 1.0
"""How long rows are gathered before they are written."""
RETRY_SECONDS: Final = 2.0
"""Between two tries while the database is away."""
LATE_SECONDS: Final = 5.0
"""How long the database may take for what is written together, before rows count as waiting."""
CLOSE_SECONDS: Final = 10.0
"""How long a proxy that stops waits for the last rows to be written."""
EXPIRE_SECONDS: Final = 3_600.0
"""How often old rows are looked for."""
MAX_TOGETHER: Final = 500
"""How many rows are written in one transaction."""
MAX_TEXT: Final = 200
NO_TOKENS: Final = (None, None, None)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Row).decode


class Ledger:
    """Takes rows, and sees that they come into the database."""

    def __init__(
        self, database: Database, folder: Path, *, days: int, status_calls_per_second: float
    ) -> None:
        self.times = JobTimes(status_calls_per_second)
        self._database = database
        self._days = days
        self._spool = Spool(folder, FILES)
        self._noted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_away = False
        self._began: float | None = None
        """When the database was given what it is writing now."""

    @property
    def waiting(self) -> int:
        """How many rows wait for a database that is away, or does not come to an end."""
        is_late = self._began is not None and time.monotonic() - self._began > LATE_SECONDS
        return self._spool.waiting if self._is_away or is_late else 0

    @property
    def lost(self) -> int:
        """How many rows found no room in the database, in the state folder and in memory."""
        return self._spool.lost

    @property
    def troubles(self) -> dict[str, int]:
        """What is to be told of it by the way, if anything is."""
        found = {"ledger_rows_waiting": self.waiting, "ledger_rows_lost": self.lost}
        return {name: number for name, number in found.items() if number}

    def begin(self) -> None:
        """Write what an earlier proxy has left, and from now on what comes."""
        self._spool.take_over()
        if self._spool.waiting:
            self._noted.set()
        self._tasks = [asyncio.create_task(self._write_on()), asyncio.create_task(self._expire())]

    def entry(self, model: str, on_spent: OnSpent) -> "Entry":
        """What the rows of a request are made by; `on_spent` is told of its work as well."""
        return Entry(self, model, on_spent)

    def add(self, row: Row) -> None:
        """Keep a row, or what is known better of one."""
        self._spool.add(_encode(row) + b"\n")
        self._noted.set()

    async def totals(self, first_day: int, key: str | None = None) -> list[Total]:
        """The sums since a day, of one key or of all; raises LedgerUnavailable."""
        try:
            return await self._database.read(lambda one: totals(one, first_day, key))
        except DatabaseAway as exc:
            raise LedgerUnavailable(
                "The ledger cannot be read now: its database is away.", retry_after_seconds=1
            ) from exc

    async def close(self) -> None:
        """Write the last rows; those that cannot be written stay for the next proxy."""
        await self.times.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._write_all()
        if self._spool.waiting:
            log.warning("%d rows of the ledger are left to the next proxy", self._spool.waiting)
        self._spool.close()
        await self._database.close()

    async def _write_on(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            await asyncio.sleep(RETRY_SECONDS if self._is_away else GATHER_SECONDS)
            if not await self._write_all():
                self._noted.set()

    async def _write_all(self) -> bool:
        """Write all that waits; tell whether that was possible."""
        try:
            while lines := self._spool.next(MAX_TOGETHER):
                await self._write(_rows(lines))
                self._spool.done()
        except (DatabaseAway, OSError) as exc:
            if not self._is_away:
                log.error("the ledger waits in the state folder, as its database is away: %s", exc)
            self._is_away = True
            return False
        if self._is_away:
            log.info("the database of the ledger is back")
        self._is_away = False
        return True

    async def _write(self, rows: Sequence[Row]) -> None:
        self._began = time.monotonic()
        try:
            await self._database.run(partial(write, rows=rows))
        except DatabaseAway as exc:
            if not isinstance(exc.__cause__, DataError):
                raise
            if len(rows) == 1:  # it would be in the way of all that follow
                log.error("a row of the ledger is left out, as it cannot be written: %s", exc)
                return
            for row in rows:
                await self._write([row])
        finally:
            self._began = None

    async def _expire(self) -> None:
        while True:
            with contextlib.suppress(DatabaseAway):
                while await self._database.run(partial(expire, days=self._days)):
                    pass
            await asyncio.sleep(EXPIRE_SECONDS)


class Entry:
    """What one request has used. Its rows are written when it has ended, and so has its work.

    A request with a fallback may have had work done at two endpoints, and each has a row.
    """

    __slots__ = ("_ended", "_ledger", "_model", "_moment", "_on_spent", "_works")

    def __init__(self, ledger: Ledger, model: str, on_spent: OnSpent) -> None:
        self._ledger = ledger
        self._model = model
        self._on_spent = on_spent
        self._works: list[Work] = []
        self._ended: EndedRequest | None = None
        self._moment = 0

    def note(self, work: Work) -> None:
        """A piece of its work was let go of: as a rule before the request has ended."""
        self._on_spent(work)
        self._works.append(work)
        if self._ended is not None:
            self._write(work, self._ended)

    def end(self, ended: EndedRequest) -> None:
        """The request has ended."""
        self._ended, self._moment = ended, int(time.time())
        for work in self._works:
            self._write(work, ended)
        endpoint, work_id = ended.course.endpoint, ended.course.work_id
        is_told = any(work.id == work_id for work in self._works)
        if work_id and not is_told:  # it goes on, or is another request's
            work = Work(endpoint, id=work_id, job_id=ended.job_id)
            self._ledger.add(self._row(work, ended))

    def _write(self, work: Work, ended: EndedRequest) -> None:
        """The row of a piece of work, and what RunPod tells of it later."""
        row = self._row(work, ended)
        told = work.course.execution_seconds
        seconds = work.seconds if told is None else told
        row = _priced(row, seconds, work, is_told=told is not None)
        self._ledger.add(row)
        if told is not None:
            self._settle(work, told)
        elif work.ended_course is not None:

            def note(course: Course) -> None:
                if (seconds := course.execution_seconds) is not None:
                    known = msgspec.structs.replace(row, queue_seconds=course.queue_seconds)
                    self._ledger.add(_priced(known, seconds, work, is_told=True))
                    self._settle(work, seconds)

            self._ledger.times.ask(work.ended_course, note)

    def _settle(self, work: Work, seconds: float) -> None:
        """What was spent as seen from here becomes what RunPod tells."""
        self._on_spent(replace(work, seconds=seconds - work.seconds))

    def _row(self, work: Work, ended: EndedRequest) -> Row:
        work_id = ended.course.work_id
        is_answer = work.id == work_id if work_id else work is self._works[-1]
        tokens_in, tokens_out, are_tokens_told = _tokens(ended) if is_answer else NO_TOKENS
        queue_seconds = work.course.queue_seconds
        if queue_seconds is None and is_answer:
            queue_seconds = ended.course.queue_seconds
        return Row(
            id=f"{work.endpoint}/{work.id}"[:500],
            ended=self._moment,
            request_id=ended.id[:MAX_TEXT],
            job_id=work.job_id,
            key=ended.key[:MAX_TEXT],
            model=self._model[:MAX_TEXT],
            endpoint=work.endpoint[:MAX_TEXT],
            route=(ended.route or f"{ended.method} {ended.path}")[:MAX_TEXT],
            status=ended.status,
            outcome=ended.outcome if is_answer else GIVEN_UP,
            seconds=ended.seconds,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            are_tokens_told=are_tokens_told,
            queue_seconds=queue_seconds,
            was_cold=ended.course.was_cold if is_answer else None,
        )


def _tokens(ended: EndedRequest) -> tuple[int | None, int | None, bool | None]:
    """How many went in and came out, and whether that was told; what is not known is None."""
    if not any(ended.tokens):
        return NO_TOKENS
    tokens_in, tokens_out = ended.tokens
    if ended.are_tokens_told:
        return tokens_in, tokens_out, True
    return tokens_in or None, tokens_out or None, False


def _priced(row: Row, seconds: float, work: Work, *, is_told: bool) -> Row:
    """The row with how long a worker had the work, and what that is estimated to cost."""
    return msgspec.structs.replace(
        row,
        execution_seconds=seconds,
        is_execution_told=is_told,
        dollars=seconds * work.price_per_second if work.price_per_second else None,
    )


def _rows(lines: Sequence[bytes]) -> list[Row]:
    rows = []
    for line in lines:
        try:
            rows.append(_decode(line))
        except ValueError:  # what was being written when the machine died
            log.error("a line of the ledger cannot be read, and is left out")
    return rows
