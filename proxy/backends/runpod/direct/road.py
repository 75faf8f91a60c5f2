"""The direct road of a proxy: its identity, its jobs' nonces, and its connections to workers."""

import logging
from collections.abc import Mapping
from typing import Any

from proxy.backends.runpod.direct.channel import Channel, Connection
from proxy.backends.runpod.direct.dialing import Dialer
from proxy.backends.runpod.direct.identity import Identity, new_identity
from proxy.backends.runpod.direct.inbox import Inbox
from proxy.backends.runpod.direct.inboxes import Inboxes
from proxy.backends.runpod.direct.offer import PROTOCOL, NoOffer, Offer, offered
from proxy.backends.runpod.direct.tokens import Tokens
from proxy.memory import Memory
from proxy.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class DirectRoad:
    """What all jobs of a proxy share that may come by a channel.

    `door` is the URL at which workers may open one to this very proxy, if they may.
    """

    def __init__(
        self, memory: Memory, metrics: Metrics, *, door: str | None, may_be_private: bool
    ) -> None:
        # Imported here: a proxy without direct endpoints has no use for aiohttp, and it is large.
        from proxy.backends.runpod.direct.doors import WorkerDoors

        self._metrics = metrics
        self._door = door
        self._tokens = Tokens()
        self._identity: Identity = new_identity()
        self._all_inboxes = Inboxes(memory)
        self._dialer = Dialer(
            WorkerDoors(self._identity.context).connect, self.serve, may_be_private=may_be_private
        )
        self._channels: set[Channel] = set()

    def invite(self, endpoint: str, port: int) -> "Invitation":
        """Prepare for the frames of a job that is about to be submitted."""
        inbox = self._all_inboxes.open()
        told: dict[str, Any] = {
            "protocol": PROTOCOL,
            "nonce": inbox.nonce,
            "certificate": self._identity.certificate,
            "port": port,
        }
        if self._door is not None:
            told |= {"url": self._door, "token": self._tokens.issue(endpoint)}
        return Invitation(self, endpoint, inbox, told)

    def redeem(self, token: str) -> str | None:
        """The endpoint whose worker may open a channel by this token, once."""
        return self._tokens.redeem(token)

    async def serve(self, connection: Connection, endpoint: str) -> None:
        """Serve a connection to a worker of an endpoint until it ends."""
        channel = Channel(connection, self._all_inboxes, endpoint)
        self._channels.add(channel)
        self._count(endpoint)
        log.info("a channel to a worker of endpoint %s is open", endpoint)
        why = "closed"
        try:
            why = await channel.run()
        finally:
            self._channels.discard(channel)
            self._count(endpoint)
            log.info("a channel to a worker of endpoint %s has ended: %s", endpoint, why)

    def dial(self, endpoint: str, offer: Offer) -> str:
        """Dial a worker in the background; what is in the way, in a word.

        Nothing comes from it: should there be a channel, it may have gone silent while idle.
        """
        for channel in self._channels:
            if channel.endpoint == endpoint:
                channel.doubt()
        return self._dialer.dial(endpoint, offer)

    def end(self, endpoint: str, inbox: Inbox, token: str | None, *, has_ended: bool) -> None:
        """The job is followed no more: its worker is told that its answer is whole, or to stop."""
        if token is not None:
            self._tokens.withdraw(token)
        carrier = inbox.carrier
        for channel in list(self._channels):
            if has_ended and channel is carrier:
                channel.settle(inbox)
            elif not has_ended and channel.endpoint == endpoint:
                channel.drop(inbox)
                channel.cancel(inbox.nonce)  # which worker has it may not be known yet
        self._all_inboxes.close(inbox, was_left=not has_ended)

    async def close(self) -> None:
        """Close all connections."""
        for channel in list(self._channels):
            channel.end("closed")
        await self._dialer.close()

    def _count(self, endpoint: str) -> None:
        number = sum(channel.endpoint == endpoint for channel in self._channels)
        self._metrics.note_channels(endpoint, number)


class Invitation:
    """One job that may come by a channel: what its input tells, and how it came in the end."""

    __slots__ = ("_endpoint", "_is_closed", "_offer", "_reason", "_road", "inbox", "told")

    def __init__(
        self, road: DirectRoad, endpoint: str, inbox: Inbox, told: Mapping[str, Any]
    ) -> None:
        self.inbox = inbox
        self.told = told
        """The `channel` of the job's input."""
        self._reason = "no_answer"
        self._road = road
        self._endpoint = endpoint
        self._offer: Offer | None = None
        self._is_closed = False

    def note_head(self, channel: Any) -> None:
        """The head of the answer says this of the worker's door."""
        try:
            self._offer = offered(channel)
        except NoOffer as exc:
            self._reason = str(exc)
        else:
            self.dial()

    def dial(self) -> None:
        """Dial the worker's door, if it is known and nothing comes from there."""
        if self._offer is not None and self.inbox.carrier is None:
            self._reason = self._road.dial(self._endpoint, self._offer)

    @property
    def road(self) -> str:
        """The road that the frames come by at last: `direct`, or `queue`."""
        carrier = self.inbox.carrier
        is_direct = carrier is not None and not carrier.is_silent and self.inbox.direct_frames > 0
        return "direct" if is_direct else "queue"

    @property
    def reason(self) -> str:
        """Why they do not come by a channel, in a word; empty if they do."""
        if self.road == "direct":
            return ""
        return "lost" if self.inbox.direct_frames else self._reason

    def close(self, *, has_ended: bool) -> None:
        """The job is followed no more."""
        if not self._is_closed:
            self._is_closed = True
            token = self.told.get("token")
            self._road.end(self._endpoint, self.inbox, token, has_ended=has_ended)
