"""Dialling workers: one connection to each, and a memory of what could not be reached."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final

from proxy.backends.runpod.direct.channel import Connection
from proxy.backends.runpod.direct.offer import Offer

FIRST_PAUSE_SECONDS: Final = 30.0
"""How long what could not be reached is not dialled again; each time twice as long."""
LOST_PAUSE_SECONDS: Final = 1.0
"""The same for a connection that did not last."""
MAX_PAUSE_SECONDS: Final = 600.0
LASTING_SECONDS: Final = 10.0
"""A connection that has lasted so long has shown that the address is good."""
FIREWALL_ADDRESSES: Final = 3
"""So many addresses of an endpoint must time out in a row before none is dialled for a pause."""
MAX_REMEMBERED: Final = 1_000
MAX_CHANNELS: Final = 1_000
"""To so many workers there are connections at a time."""

log = logging.getLogger(__name__)


class DialFailed(Exception):
    """There is no connection; the message is the reason, in a word."""


@dataclass(slots=True)
class _Failure:
    reason: str
    pause_seconds: float
    until: float


class Failures:
    """What is not dialled for a while, and why."""

    def __init__(self) -> None:
        self._failures: dict[Hashable, _Failure] = {}

    def note(self, what: Hashable, reason: str, first_pause_seconds: float) -> None:
        """It failed: leave it alone for a pause, twice as long as the last."""
        last = self._failures.pop(what, None)
        pause = min(last.pause_seconds * 2, MAX_PAUSE_SECONDS) if last else first_pause_seconds
        until = asyncio.get_running_loop().time() + pause
        self._failures[what] = _Failure(reason, pause, until)
        if len(self._failures) > MAX_REMEMBERED:
            self._failures.pop(next(iter(self._failures)))

    def forget(self, what: Hashable) -> None:
        """It has worked."""
        self._failures.pop(what, None)

    def reason(self, what: Hashable) -> str:
        """Why it is left alone now; empty if it may be tried."""
        failure = self._failures.get(what)
        if failure is None or asyncio.get_running_loop().time() >= failure.until:
            return ""
        return failure.reason


class Dialer:
    """Dials the doors that workers offer, in the background.

    `connect` reaches a door within its own time, or raises DialFailed; `serve` serves a connection
    until it ends.
    """

    def __init__(
        self,
        connect: Callable[[Offer], Awaitable[Connection]],
        serve: Callable[[Connection, str], Awaitable[None]],
        *,
        may_be_private: bool,
    ) -> None:
        self._connect = connect
        self._serve = serve
        self._may_be_private = may_be_private
        self._connections: dict[Offer, asyncio.Task[None]] = {}
        """What dials a worker, or serves the connection to it.

        By address and certificate: who names another worker's certificate at an address of its own
        must not keep us from the right one.
        """
        self._failures = Failures()
        self._timed_out = defaultdict[str, set[str]](set)
        """The addresses of each endpoint that did not answer since one last did."""

    def dial(self, endpoint: str, offer: Offer) -> str:
        """Dial, unless that is done or was in vain a while ago; what is in the way, in a word."""
        if not (self._may_be_private or offer.is_public):
            return "private_address"
        if offer in self._connections:
            return "connecting"
        for what in (("endpoint", endpoint), offer.place, offer):
            if reason := self._failures.reason(what):
                return reason
        if len(self._connections) >= MAX_CHANNELS:
            return "too_many"
        task = asyncio.create_task(self._connection(endpoint, offer))
        self._connections[offer] = task
        task.add_done_callback(lambda _: self._connections.pop(offer))
        return "connecting"

    async def close(self) -> None:
        """Close all connections, and dial no more."""
        connections = list(self._connections.values())
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)

    async def _connection(self, endpoint: str, offer: Offer) -> None:
        try:
            connection = await self._connect(offer)
        except DialFailed as exc:
            self._note_failure(endpoint, offer, str(exc))
            return
        self._timed_out.pop(endpoint, None)
        self._failures.forget(("endpoint", endpoint))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._serve(connection, endpoint)
        if loop.time() - began >= LASTING_SECONDS:
            self._failures.forget(offer.place)
        else:
            self._failures.note(offer.place, "lost", LOST_PAUSE_SECONDS)

    def _note_failure(self, endpoint: str, offer: Offer, reason: str) -> None:
        log.warning(
            "no channel to a worker of endpoint %s at %s: %s", endpoint, offer.place, reason
        )
        if reason == "certificate":  # another worker may have the address by now
            self._failures.note(offer, reason, FIRST_PAUSE_SECONDS)
            return
        self._failures.note(offer.place, reason, FIRST_PAUSE_SECONDS)
        if reason == "timeout":
            silent = self._timed_out[endpoint]
            silent.add(offer.place)
            if len(silent) >= FIREWALL_ADDRESSES:
                self._failures.note(("endpoint", endpoint), reason, FIRST_PAUSE_SECONDS)
                silent.clear()
