"""One copy of the proxy: its jobs that run here, and the channel to it if one is open."""

import logging

from worker.direct.connection import Connection, WebSocket
from worker.direct.relay import Relay

log = logging.getLogger(__name__)


class Peer:
    """One copy of the proxy, which is among `peers` while it has jobs or a channel."""

    def __init__(self, identity: str, peers: "dict[str, Peer]") -> None:
        self.jobs: dict[str, Relay] = {}
        self._identity = identity
        self._peers = peers
        self._connection: Connection | None = None

    @property
    def is_connected(self) -> bool:
        """Whether a channel is open."""
        return self._connection is not None

    def enter(self, relay: Relay) -> None:
        """A job begins; over a channel that is open it is sent from the start."""
        self._peers[self._identity] = self
        self.jobs[relay.nonce] = relay
        if self._connection is not None:
            self._connection.begin(relay)

    def leave(self, relay: Relay) -> None:
        """A job has ended."""
        del self.jobs[relay.nonce]
        self._forget_if_idle()

    async def serve(self, socket: WebSocket) -> None:
        """Serve a channel until it ends. The proxy has one at a time: the newest."""
        self.close()
        self._peers[self._identity] = self
        connection = self._connection = Connection(socket, self.jobs)
        log.info("a direct channel is open; jobs of its proxy: %d", len(self.jobs))
        try:
            await connection.run()
        finally:
            if self._connection is connection:
                self._connection = None
                self._forget_if_idle()
                log.info("a direct channel has ended; jobs of its proxy: %d", len(self.jobs))

    def close(self) -> None:
        """Close the channel, if there is one."""
        if self._connection is not None:
            self._connection.close()

    def _forget_if_idle(self) -> None:
        if not self.jobs and self._connection is None:
            self._peers.pop(self._identity, None)
