"""Dropped: the answer that never comes, because the connection is cut."""

from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send


class Dropped(Response):
    """No answer at all: the connection is cut.

    An answer that is given is made and thrown away first, since some do their work only then.
    """

    def __init__(self, answer: Response | None = None) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the answer if there is one, then cut the connection."""
        if self._answer is not None:
            await self._answer(scope, receive, _throw_away)
        await cut(receive)


async def cut(receive: Receive) -> None:
    """Reset the caller's connection, and return when it is gone.

    ASGI has no word for that, so this reaches for the connection that uvicorn keeps behind
    `receive`, and fails under any other server.
    """
    connection: Any = receive
    connection.__self__.transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _throw_away(message: Message) -> None:
    pass
