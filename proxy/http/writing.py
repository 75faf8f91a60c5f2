"""Sending a stream piece by piece.

Each of ASGI's messages passes all middlewares. They look at the head alone, so with our own server
the pieces behind it go straight to the connection.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import Scope, Send

Write = Callable[[bytes], Awaitable[None]]

WRITE: Final = "write"
"""Where in a request's state a server puts what sends a piece, once the head has been sent."""


def writer(scope: Scope, send: Send) -> Write:
    """What sends a piece of a stream, and waits while the client is behind."""

    async def write(piece: bytes) -> None:
        await send({"type": "http.response.body", "body": piece, "more_body": True})

    given: Write | None = scope["state"].get(WRITE)
    return given or write
