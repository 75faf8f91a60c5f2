"""A plain answer, no stream of events: whole while it is small, as it comes when it is large.

A small answer is joined before its status is sent, so one that breaks is an honest error. A large
one would be held several times over; its beginning goes out with the worker's status and the rest
follows piece by piece. If that breaks there is no status left to say so: the connection is cut
without the end mark of HTTP's chunks, which every client reads as an incomplete answer.
"""

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.api.answer import JSON, Answer, Head, meant_status
from proxy.api.call import Call
from proxy.api.rewriting import Rewriter
from proxy.errors import ProxyError, RouteNotServed, VLLMError
from proxy.http.context import context_of, services_of
from proxy.http.disconnect import ClientLeft, while_client_stays
from proxy.memory import Reservation

log = logging.getLogger(__name__)

_ABOUT_RETRIES = {"retry-after", "retry-after-ms", "x-should-retry"}

MAX_WHOLE_BYTES: Final = 2**20
MAX_REWRITTEN_BYTES: Final = 16 * 2**20
"""The same for an answer that is to be rewritten, which takes all of it; a larger one is not."""


async def plain_response(
    request: Request,
    call: Call,
    answer: Answer,
    first: bytes,
    model: str,
    headers: Mapping[str, str],
    rewriter: Rewriter | None,
) -> Response:
    """An opened answer with the worker's own status.

    Raises:
        ClientLeft: the client has gone.
        ProxyError: the answer broke while it was small, or there was no room for it.
    """
    held, rest = services_of(request).memory.reserve_for_answer(), answer.pieces()
    max_bytes = MAX_REWRITTEN_BYTES if rewriter else MAX_WHOLE_BYTES
    with while_client_stays(request.scope, request.receive):
        beginning = await _beginning(first, rest, max_bytes, held)
    head = answer.head
    assert head is not None
    headers = {**headers, **head.headers}
    if head.content_type:
        headers["content-type"] = head.content_type
    if not beginning.is_whole:
        return _PiecewiseResponse(request, answer, beginning.body, rest, held, head.status, headers)
    answer.close()
    body = beginning.body
    if rewriter is not None:
        body = rewriter.body(body)
        rewriter.end()
    head = replace(head, status=meant_status(head, body))
    if head.status >= 400:
        context_of(request).outcome = VLLMError.code
        return _error_response(call, model, head, body, headers)
    return _WholeResponse(body, head.status, headers, held)


def _error_response(
    call: Call, model: str, head: Head, body: bytes, headers: Mapping[str, str]
) -> Response:
    """An error that the model's server answered; raises RouteNotServed if it has no such route."""
    error = answered_error(head.status, body, str(call.route), model)
    if isinstance(error, RouteNotServed):
        raise error
    told = call.route.dialect.body(error, call.request_id)
    headers = {**headers, "content-type": headers.get("content-type", JSON)}
    if told != body:
        headers["content-type"] = JSON
    if _ABOUT_RETRIES.isdisjoint(headers):
        headers |= error.headers
    return Response(told, head.status, headers)


def answered_error(status: int, body: bytes, route: str, model: str) -> VLLMError | RouteNotServed:
    """What to tell of an error that the model's server answered on a route."""
    error = VLLMError(status, body)
    if status in (404, 405) and not error.is_told:
        return RouteNotServed(f"The model '{model}' does not serve {route}.")
    return error


@dataclass(frozen=True, slots=True)
class _Beginning:
    body: bytes
    is_whole: bool


async def _beginning(
    first: bytes, rest: AsyncIterator[bytes], max_bytes: int, held: Reservation
) -> _Beginning:
    held.grow(len(first))
    pieces = [first]
    while held.size <= max_bytes:
        if (piece := await anext(rest, None)) is None:
            return _Beginning(b"".join(pieces), is_whole=True)
        held.grow(len(piece))
        pieces.append(piece)
    return _Beginning(b"".join(pieces), is_whole=False)


class _WholeResponse(Response):
    """Sends an answer in one, and gives its memory back."""

    def __init__(
        self, body: bytes, status: int, headers: Mapping[str, str], held: Reservation
    ) -> None:
        super().__init__(body, status, headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await super().__call__(scope, receive, send)
        self._held.release()


class _PiecewiseResponse(Response):
    """Sends an answer as it comes, and gives it up when the client leaves."""

    def __init__(
        self,
        request: Request,
        answer: Answer,
        beginning: bytes,
        rest: AsyncIterator[bytes],
        held: Reservation,
        status: int,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(None, status, headers)
        del self.headers["content-length"]
        self._request = request
        self._answer = answer
        self._beginning = beginning
        self._rest = rest
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; if it breaks, without its end."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        context = context_of(self._request)
        piece: bytes | None = self._beginning
        self._beginning = b""
        try:
            with while_client_stays(scope, receive):
                while piece is not None:
                    if piece:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                        self._held.release()
                    piece = await anext(self._rest, None)
        except ClientLeft:
            context.outcome = "client_left"
            return
        except ProxyError as exc:
            context.note_error(exc)
            log.warning("%s is cut off: %s", context.id, exc)
            return
        finally:
            self._answer.close()
        await send({"type": "http.response.body", "body": b""})
