"""Rows of the ledger in the database: written once, expired, and summed."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Connection,
    Dialect,
    Float,
    case,
    cast,
    delete,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from proxy.ledger.sums import DAY_SECONDS, Total
from proxy.storage.schema import LEDGER
from proxy.telemetry.ended_request import WARM

GIVEN_UP: Final = "given_up"
"""The outcome of work in whose place a fallback was asked: it has cost, and is no request."""
EXPIRED_TOGETHER: Final = 5_000
"""How many rows are deleted in one transaction, so that none takes long."""


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one request has used at one endpoint, as far as it is known; times are in seconds."""

    id: str
    """The endpoint and the job: a request that joined another's job tells of the same row."""
    ended: int
    """A Unix time."""
    request_id: str
    job_id: str
    key: str
    model: str
    endpoint: str
    route: str
    status: int
    outcome: str
    seconds: float
    tokens_in: int | None = None
    tokens_out: int | None = None
    are_tokens_told: bool | None = None
    """By the answer's usage; else at least so many came out."""
    queue_seconds: float | None = None
    execution_seconds: float | None = None
    is_execution_told: bool | None = None
    """By RunPod; else it is what was seen from here."""
    was_cold: bool | None = None
    dollars: float | None = None
    """None where the endpoint has no price."""


_TOKENS: Final = ("tokens_in", "tokens_out", "are_tokens_told")
"""Of two that are known the larger one: what was seen of an answer is not more than was told."""
_ENDS: Final = ("request_id", "status", "outcome", "seconds")
"""How a request ended: of two that had the same job, the one that completed counts."""


def write(connection: Connection, rows: Sequence[Row]) -> None:
    """Write rows: what is written already stays, or becomes what is known better now.

    The statement goes to the driver as text: SQLAlchemy's part in each row would cost more than to
    write it does.
    """
    dialect = connection.dialect
    told = msgspec.structs.astuple if dialect.positional else msgspec.structs.asdict
    if rows:
        connection.exec_driver_sql(_statement(dialect), [told(row) for row in rows])


@cache
def _statement(dialect: Dialect) -> str:
    """As its driver takes it: with values by name, or in the order of the columns."""
    insert = (postgresql if dialect.name == "postgresql" else sqlite).insert(LEDGER)
    changed: dict[str, Any] = {}
    for column in LEDGER.c:
        if column.name in _ENDS:
            is_final = LEDGER.c.outcome == literal_column("'completed'")
            changed[column.name] = case((is_final, column), else_=insert.excluded[column.name])
        elif column.name in _TOKENS:
            new = insert.excluded[column.name]
            changed[column.name] = case((new > column, new), else_=func.coalesce(column, new))
        elif column.name not in ("id", "ended"):
            changed[column.name] = func.coalesce(insert.excluded[column.name], column)
    statement = insert.on_conflict_do_update(index_elements=["id"], set_=changed)
    return str(statement.compile(dialect=dialect))


def expire(connection: Connection, days: int) -> int:
    """Delete some of the rows that are older than that; returns how many."""
    before = int(time.time()) - days * DAY_SECONDS
    some = select(LEDGER.c.id).where(LEDGER.c.ended < before).limit(EXPIRED_TOGETHER)
    return connection.execute(delete(LEDGER).where(LEDGER.c.id.in_(some))).rowcount


def totals(connection: Connection, first_day: int, key: str | None = None) -> list[Total]:
    """The sums since the beginning of a day: of one key, or of all."""
    row = LEDGER.c
    day = (row.ended // DAY_SECONDS).label("day")
    groups = (day, row.key, row.model, row.endpoint)
    told = case((row.is_execution_told, row.execution_seconds), else_=0.0)
    sums = (
        _count(row.outcome.not_in((GIVEN_UP, WARM))),
        _count(row.outcome == "completed"),
        _count(row.was_cold),
        func.coalesce(func.sum(row.tokens_in), 0),
        func.coalesce(func.sum(row.tokens_out), 0),
        _sum(row.queue_seconds),
        _sum(row.execution_seconds),
        _sum(told),
        _sum(row.dollars),
    )
    chosen = select(*groups, *sums).where(row.ended >= first_day * DAY_SECONDS)
    if key is not None:
        chosen = chosen.where(row.key == key)
    found = connection.execute(chosen.group_by(*groups).order_by(*groups))
    return [Total(*_plain(one)) for one in found]


def _count(condition: Any) -> Any:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _sum(column: Any) -> Any:
    return cast(func.coalesce(func.sum(column), 0.0), Float)


def _plain(row: Sequence[Any]) -> list[Any]:
    """PostgreSQL sums large whole numbers to decimals."""
    is_whole = {int, float, str}
    return [value if type(value) in is_whole else int(value) for value in row]
