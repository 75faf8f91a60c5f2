"""Noticing that a client has left while its answer is awaited or sent.

`BoundedProtocol` tells it by a future, which costs nothing while nobody leaves. Other servers tell
it only to whoever asks for the next message, so there a task does.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio
from starlette.types import Receive, Scope

DEPARTURE: Final = "departure"
"""Where in a request's state a server puts the future that is done when the client has gone."""


class ClientLeft(Exception):
    """The client has closed its connection: there is none to answer to."""


@contextmanager
def while_client_stays(scope: Scope, receive: Receive) -> Iterator[None]:
    """Cancel what is done in this block if the client leaves, and whatever it then still awaits.

    The request's body must have been read.

    Raises:
        ClientLeft: the client has gone.
    """
    told: asyncio.Future[None] | None = scope["state"].get(DEPARTURE)
    departure = told or asyncio.ensure_future(_gone(receive))
    with anyio.CancelScope() as block:

        def leave(_: asyncio.Future[None]) -> None:
            block.cancel()

        departure.add_done_callback(leave)
        try:
            yield
        finally:
            departure.remove_done_callback(leave)
            if told is None:
                departure.cancel()
    if block.cancelled_caught:
        raise ClientLeft


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
