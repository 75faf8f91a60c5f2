"""The direct road as the handler and the shutdown see it: nothing is open before a job asks for it.

What it is made of takes a tenth of a second to import, so a worker that RunPod has given a public
address imports it while vLLM is loading; others never do unless a job has a channel.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from worker.direct.address import PUBLIC_IP

if TYPE_CHECKING:
    from worker.direct.channels import Channels
    from worker.direct.relay import Relay


class DirectRoad:
    """Channels for the jobs that ask for one. `environment` is looked at when one does."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        listen_host: str | None = None,
        dial_hosts: frozenset[str] = frozenset(),
    ) -> None:
        self._environment = environment
        self._listen_host = listen_host
        self._dial_hosts = dial_hosts
        self._channels: Channels | None = None

    def prepare(self) -> None:
        """Import what it takes, where it is likely to be needed."""
        if PUBLIC_IP in self._environment or self._dial_hosts:
            import worker.direct.channels  # noqa: F401

    def relay(self, channel: Any, run: str) -> "tuple[Relay | None, dict[str, Any] | None]":
        """The relay of a job with this `channel` in its input, and what to tell its proxy.

        Neither if the channel is of a kind not understood; no relay where no door is open.
        """
        from worker.direct.invitation import read_invitation

        invitation = read_invitation(channel)
        if invitation is None:
            return None, None
        return self._open_channels().accept(invitation, run)

    def hurry(self) -> None:
        """The worker is about to end: no job waits for its client any more."""
        if self._channels is not None:
            self._channels.hurry()

    async def close(self) -> None:
        """Close all channels and doors."""
        if self._channels is not None:
            await self._channels.close()

    def _open_channels(self) -> "Channels":
        if self._channels is None:
            from worker.direct.channels import Channels

            self._channels = Channels(self._environment, self._listen_host, self._dial_hosts)
        return self._channels
