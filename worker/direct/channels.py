"""All direct channels of this worker: the copies of the proxy, and the doors between."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from worker.direct.address import public_address
from worker.direct.connection import WebSocket
from worker.direct.dialling import Dialler
from worker.direct.door import Door
from worker.direct.freeze import watch_for_freezes
from worker.direct.identity import Identity
from worker.direct.invitation import PROTOCOL, Invitation
from worker.direct.peer import Peer
from worker.direct.relay import Relay

log = logging.getLogger(__name__)

Told = dict[str, Any]
"""What the head frame tells the proxy of the channel."""


class Channels:
    """Made with the first job that has a channel; `close` it in the end."""

    def __init__(
        self, environment: Mapping[str, str], listen_host: str | None, dial_hosts: frozenset[str]
    ) -> None:
        self._environment = environment
        self._listen_host = listen_host
        self._identity = Identity()
        self._peers: dict[str, Peer] = {}
        self._doors: dict[int, Door] = {}
        self._dialler = Dialler(dial_hosts, self._serve, self._is_connected)
        self._watch = asyncio.create_task(watch_for_freezes(self._renew))

    def accept(self, invitation: Invitation, run: str) -> tuple[Relay | None, Told]:
        """The relay of a job, and what to tell its proxy; None where the queue alone is left."""
        peer = self._peer(invitation.identity)
        if invitation.nonce in peer.jobs:
            return None, _told(closed="nonce_in_use")
        told = self._way_in(invitation)
        if "closed" in told and not peer.is_connected:
            return None, told

        def begin(relay: Relay) -> None:
            self._peer(invitation.identity).enter(relay)
            if "dials" in told:
                self._dialler.offer(invitation)

        def end(relay: Relay) -> None:
            self._dialler.withdraw(invitation)
            self._peer(invitation.identity).leave(relay)

        return Relay(invitation.nonce, run, begin, end), told

    def hurry(self) -> None:
        """The worker is about to end: no job waits for its client any more."""
        for peer in self._peers.values():
            for relay in peer.jobs.values():
                relay.hurry()

    async def close(self) -> None:
        """Close all channels and doors."""
        self._watch.cancel()
        await self._close_connections(self._doors.values())

    def _peer(self, identity: str) -> Peer:
        return self._peers.get(identity) or Peer(identity, self._peers)

    def _is_connected(self, identity: str) -> bool:
        return identity in self._peers and self._peers[identity].is_connected

    async def _serve(self, socket: WebSocket, identity: str) -> None:
        await self._peer(identity).serve(socket)

    # The doors

    def _way_in(self, invitation: Invitation) -> Told:
        """Dial the proxy where that is allowed, else open a door of ours; or say why not."""
        if self._dialler.may_dial(invitation.url):
            assert invitation.url is not None
            return _told(dials=invitation.url.host)
        if invitation.port is not None:
            return self._open_door(invitation, invitation.port)
        if invitation.url is None:
            return _told(closed="no_door")
        return _told(
            closed="failed" if self._dialler.allows(invitation.url) else "host_not_allowed"
        )

    def _open_door(self, invitation: Invitation, port: int) -> Told:
        address = public_address(self._environment, port)
        if address is None:
            return _told(closed="no_public_port")
        self._identity.trust(invitation.certificate)
        try:
            self._listen(port)
        except OSError as error:
            log.warning("no direct channel: port %d cannot be listened on: %s", port, error)
            return _told(closed="failed")
        host, public_port = address
        return _told(host=host, port=public_port, certificate=self._identity.fingerprint)

    def _listen(self, port: int) -> None:
        if port not in self._doors:
            door = Door(self._identity, self._serve)
            door.open(self._listen_host, port)
            self._doors[port] = door
            log.info("direct channels are let in at port %d", port)

    async def _renew(self) -> None:
        """After a freeze: what was open is dead, and whoever copied the container has our key."""
        log.warning("the container was frozen: direct channels are opened anew")
        doors, self._doors = self._doors, {}
        self._identity = self._identity.renewed()
        for port, door in doors.items():
            door.shut()
            try:
                self._listen(port)
            except OSError as error:
                log.warning("port %d cannot be listened on any more: %s", port, error)
        await self._close_connections(doors.values())
        self._dialler.resume()

    async def _close_connections(self, doors: Iterable[Door]) -> None:
        for peer in [*self._peers.values()]:
            peer.close()
        await self._dialler.close()
        await asyncio.gather(*(door.close() for door in doors))


def _told(**facts: Any) -> Told:
    return {"protocol": PROTOCOL, **facts}
