"""Noticing that a client has left while its answer is still awaited.

Starlette cancels a streaming response when the client goes, but not a route that has yet to
answer; so whatever a route waits for is raced against the connection.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

T = TypeVar("T")


class ClientLeft(Exception):
    """The client has closed its connection: there is none to answer to."""


async def unless_client_leaves(request: Request, awaitable: Awaitable[T]) -> T:
    """Await something, and cancel it if the client leaves first.

    The request's body must have been read.

    Raises:
        ClientLeft: the client has gone.
    """
    work = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientLeft
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
        del work  # its exception, if it has one, refers to this frame and to all that it held


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
