"""LogQuery: what a caller of RunPod's REST API asks of a worker's log, checked."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from starlette.requests import Request

from emulator.errors import BadRequest
from emulator.fleet.worker_log import Line
from emulator.gateway.http import whole_number

DEFAULT_TAIL: Final = 100
MAX_TAIL: Final = 5000


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a log is resumed: at a moment, or behind the event of this id."""

    moment: datetime
    event_number: str = ""
    """What an event's id has behind its moment; empty for a moment alone."""

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """`2026-06-01T12:05:04Z`, with any offset, or an event's id; BadRequest for all else."""
        moment, _, number = text.strip().partition("/")
        try:
            parsed = datetime.fromisoformat(moment)
        except ValueError:
            parsed = None
        if parsed is None or parsed.tzinfo is None:
            raise BadRequest(f"{name} must be an RFC3339 timestamp")
        return cls(parsed, number)

    def is_before(self, line: Line) -> bool:
        """True for a line that is still to be sent."""
        moment, _, number = line.id.partition("/")
        return (datetime.fromisoformat(moment), number) > (self.moment, self.event_number)


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What a client asks of a worker's log."""

    source: str | None
    tail: int
    cursor: Cursor | None

    @classmethod
    def parse(cls, request: Request) -> Self:
        """The parameters as RunPod documents them; BadRequest for one that makes no sense."""
        source = request.query_params.get("source")
        if source not in (None, "container", "system"):
            raise BadRequest("source must be container or system")
        tail = whole_number(request, "tail", DEFAULT_TAIL)
        if tail > MAX_TAIL:
            raise BadRequest(f"tail must be at most {MAX_TAIL}")
        cursor = None
        if last_event_id := request.headers.get("last-event-id"):
            cursor = Cursor.parse("Last-Event-ID", last_event_id)
        elif since := request.query_params.get("since"):
            cursor = Cursor.parse("since", since)
        return cls(source, tail, cursor)

    def select(self, lines: list[Line]) -> list[Line]:
        """Those of the source that is asked for."""
        return [line for line in lines if self.source in (None, line.source)]

    def backlog(self, lines: list[Line]) -> list[Line]:
        """What is sent of the lines that are there: from the cursor on, or the last `tail`."""
        selected = self.select(lines)
        if self.cursor is not None:
            return [line for line in selected if self.cursor.is_before(line)]
        return selected[max(0, len(selected) - self.tail) :]
