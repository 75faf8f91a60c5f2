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
        self._listener = _bound(0)
        self.number: int = self._listener.getsockname()[1]
        self._listener.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Listen no more. Connections end with the worker's sockets."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()

    def view(self) -> dict[str, Any]:
        """What the control API shows."""
        return {
            "public_port": self.number,
            "connections": self._open_connections,
            "dials": self._dials,
        }

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
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
    bound.bind((PUBLIC_IP, port))
    return bound
