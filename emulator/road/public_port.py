"""PublicPort: a port of this machine that leads to a port of one worker."""

import asyncio
import socket
from typing import Any, Final

from emulator.road.conditions import Conditions
from emulator.road.connection import Connection

PUBLIC_IP: Final = "127.0.0.1"
BACKLOG: Final = 1024


class PublicPort:
    """What callers dial, and the connections that came of it."""

    def __init__(
        self, host: str, port: int, conditions: Conditions, connections: set[Connection]
    ) -> None:
        """Listen; the worker will at `host` and `port`. `connections` are the whole endpoint's."""
        self._address = (host, port)
        self._conditions = conditions
        self._connections = connections
        self._open_connections = 0
        self._dials = 0
        self._listeners: list[socket.socket] = []
        self._dials_meet = "refuse"
        self._reservation = _bound(0)
        """Keeps the number while nothing listens; a caller is refused then."""
        self.heed()

    @property
    def number(self) -> int:
        """The port that callers dial."""
        return int(self._reservation.getsockname()[1])

    def heed(self) -> None:
        """Take new connections, or not, as the conditions say."""
        if self._conditions.now.dials != self._dials_meet:
            self._dials_meet = self._conditions.now.dials
            self._stop_listening()
            if self._dials_meet == "accept":
                self._listen()
            elif self._dials_meet == "ignore":
                self._be_silent()

    def move(self) -> None:
        """Have another number; nothing listens at the old one."""
        self.close()
        self._dials_meet = "refuse"
        self._reservation = _bound(0)
        self.heed()

    def close(self) -> None:
        """Listen no more. Connections end with the worker's sockets."""
        self._stop_listening()
        self._reservation.close()

    def view(self) -> dict[str, Any]:
        """What the control API shows."""
        return {
            "public_port": self.number,
            "connections": self._open_connections,
            "dials": self._dials,
        }

    def _listen(self) -> None:
        listener = _bound(self.number)
        listener.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)
        self._listeners = [listener]

    def _be_silent(self) -> None:
        """Leave dials without an answer: Linux drops those for which a backlog has no place."""
        full, first = _bound(self.number), socket.socket()
        full.listen(0)
        first.connect((PUBLIC_IP, self.number))
        self._listeners = [full, first]

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners = []

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            caller.setblocking(False)
            self._dials += 1
            self._open_connections += 1
            connection = Connection(self._conditions, self._forget)
            self._connections.add(connection)
            connection.open(caller, *self._address)

    def _forget(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._open_connections -= 1


def _bound(port: int) -> socket.socket:
    """A socket bound to this port, or to one that is free if it is 0."""
    bound = socket.socket()
    bound.setblocking(False)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((PUBLIC_IP, port))
    return bound
