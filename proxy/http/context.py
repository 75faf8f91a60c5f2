"""What is known of one request, from its first byte to its one end.

The outermost middleware makes the record and finishes it; what happens in between is noted here and
nowhere else.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import HTTPConnection

from proxy.access.keys import Key
from proxy.access.limits import Permit
from proxy.api.answer import NO_COURSE, Answer
from proxy.api.call import OnSpent
from proxy.api.dialects import Dialect
from proxy.errors import ProxyError
from proxy.services import Services
from proxy.serving.models import Model
from proxy.telemetry.ended_request import EndedRequest
from proxy.telemetry.logs import log_request

if TYPE_CHECKING:
    from proxy.ledger.ledger import Entry
    from proxy.telemetry.traces import RequestTrace

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class RequestContext:
    """The record of a request."""

    id: str
    method: str
    path: str
    dialect: Dialect
    """How its client is told of an error."""
    remark: str = ""
    """For the log line, about the id."""
    began: float = field(default_factory=time.monotonic)
    """On the monotonic clock, in seconds."""
    key: Key | None = None
    """The key that it came with, once it is known to be one of ours."""
    entry: "Entry | None" = None
    """In the ledger."""
    permit: Permit | None = None
    """What lets it in, where its key has limits."""
    route: str = ""
    """The route that it reached, as in `POST /v1/responses/{id}`."""
    model: str = ""
    """What the metrics call its model."""
    trace: "RequestTrace | None" = None
    """Its span, where traces are made."""
    answer: Answer | None = None
    first_byte_seconds: float | None = None
    """How long the answer's first byte took, from when it was asked for."""
    first_token: float | None = None
    """When a stream's first token was passed on, on the monotonic clock."""
    tokens: tuple[int, int] = (0, 0)
    """How many went in and came out by the usage that was told, where that is asked for."""
    least_tokens: int = 0
    """How many came out at least, as far as it was passed on."""
    status: int = 0
    """Of the answer's head, once it has been sent, be it by the server that refuses the rest."""
    outcome: str = ""
    """How the answer ended where its status does not say so: an error's code, or `client_left`."""

    def account_for(self, services: Services, model: Model, on_spent: OnSpent) -> OnSpent:
        """What keeps account of its work: in the ledger as well, where there is one."""
        if services.ledger is None:
            return on_spent
        self.entry = services.ledger.entry(model.label or model.name, on_spent)
        return self.entry.note

    def note_tokens(self, tokens_in: int, tokens_out: int, least: int) -> None:
        """The answer has told so many, and has passed on at least so many."""
        self.tokens, self.least_tokens = (tokens_in, tokens_out), least

    def note_error(self, error: ProxyError) -> None:
        """The answer is this error, or ends in it."""
        self.outcome = error.code or error.type

    def finish(self, services: Services) -> None:
        """The request is over: its line in the log, and what it adds to the numbers.

        A step of it that fails is in the way of no other: what was taken of limits is given back,
        and whoever else is told of the request is told.
        """
        self._try(self._leave_limits)
        if self.answer is not None:
            self._try(partial(services.metrics.live.end, self.answer))
        if (ended := self._try(self._ended)) is not None:
            for tell in self._listeners(services):
                self._try(partial(tell, ended))

    def _try(self, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except Exception:
            log.exception("a part of the end of %s failed", self.id)
            return None

    def _listeners(self, services: Services) -> Iterator[Callable[[EndedRequest], None]]:
        """Who is told of a request that has ended."""
        yield services.metrics.note_ended
        yield services.history.note
        if self.entry is not None:
            yield self.entry.end
        yield log_request
        if self.trace is not None:
            yield self.trace.end

    def _leave_limits(self) -> None:
        if self.permit is not None:
            outcome = self.outcome or _outcome(self.status)
            self.permit.end(used=sum(self.tokens), is_known=self._knows_tokens(outcome))

    def _ended(self) -> EndedRequest:
        answer = self.answer
        head = None if answer is None else answer.head
        outcome = self.outcome or _outcome(self.status)
        are_told = outcome == "completed" and any(self.tokens)
        tokens_in, tokens_out = self.tokens
        return EndedRequest(
            self.id,
            self.method,
            self.path,
            self.status,
            outcome,
            time.monotonic() - self.began,
            route=self.route,
            key=self.key.name if self.key else "",
            model=self.model,
            job_id=(answer and answer.job_id) or "",
            road=answer.road if answer else "",
            first_byte_seconds=self.first_byte_seconds,
            first_token_seconds=self.first_token and self.first_token - self.began,
            is_stream=head is not None and head.is_event_stream,
            tokens=(tokens_in, tokens_out if are_told else max(tokens_out, self.least_tokens)),
            are_tokens_told=are_told,
            course=answer.course if answer else NO_COURSE,
            trace=self.trace.id if self.trace else "",
            remark=self.remark,
        )

    def _knows_tokens(self, outcome: str) -> bool:
        """Whether `tokens` is all that it used: one that failed before its first byte used none."""
        if outcome == "client_left":  # also before the head, which then has a status for the log
            return False
        return self.status >= 400 or (outcome == "completed" and any(self.tokens))


def context_of(connection: HTTPConnection) -> RequestContext:
    """The record of this request."""
    found = connection.scope["state"]["context"]
    assert isinstance(found, RequestContext)
    return found


def live_requests(connection: HTTPConnection) -> list[RequestContext]:
    """The records of all requests that are under way."""
    live: dict[int, RequestContext] = connection.app.state.live
    return list(live.values())


def headers_of(connection: HTTPConnection) -> dict[str, str]:
    """The headers by their names in lower case, and the first one of each name.

    Starlette's mapping decodes all of them again for each name that is looked up.
    """
    raw = reversed(connection.scope["headers"])
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}


def services_of(connection: HTTPConnection) -> Services:
    """The services of the application that serves this request."""
    found = connection.app.state.services
    assert isinstance(found, Services)
    return found


def _outcome(status: int) -> str:
    if status == 0:
        return "client_left"
    return "completed" if status < 300 else "failed"
