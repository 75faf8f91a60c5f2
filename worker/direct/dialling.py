"""The way to the proxy's door: only to hosts that the worker's settings allow.

One connection serves all jobs of a copy of the proxy. It is opened with the token of one of them,
which is good once, and opened again with another's when it is lost. A host that cannot be reached
is left alone for a while, longer each time.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import aiohttp
from yarl import URL

from worker.direct.door import CLOSE_SECONDS, MAX_MESSAGE_BYTES, Serve
from worker.direct.invitation import Invitation

log = logging.getLogger(__name__)

DIAL_SECONDS: Final = 5.0
FIRST_PAUSE_SECONDS: Final = 30.0
LONGEST_PAUSE_SECONDS: Final = 600.0
TOKEN_REFUSED: Final = 401
"""Its job has ended meanwhile, most likely: nothing is wrong with the host."""


class Redirected(aiohttp.ClientError):
    """The proxy's door points elsewhere, where this worker may not go."""


class Dialler:
    """Dials the proxies' doors, each with one connection at a time."""

    def __init__(
        self, allowed: frozenset[str], serve: Serve, is_connected: Callable[[str], bool]
    ) -> None:
        self._allowed = allowed
        self._serve = serve
        self._is_connected = is_connected
        self._offers: dict[str, dict[str, Invitation]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, _Pause] = {}

    def may_dial(self, url: URL | None) -> bool:
        """Whether the settings allow this host, and it has not just failed."""
        if url is None or not self.allows(url):
            return False
        pause = self._pauses.get(str(url.host))
        return pause is None or pause.is_over

    def allows(self, url: URL) -> bool:
        """Whether the settings allow this host."""
        return url.host in self._allowed

    def offer(self, invitation: Invitation) -> None:
        """This job's token may open its proxy's door, while it runs."""
        self._offers.setdefault(invitation.identity, {})[invitation.nonce] = invitation
        self._begin(invitation.identity)

    def withdraw(self, invitation: Invitation) -> None:
        """This job has ended, and so has its token."""
        offers = self._offers.get(invitation.identity, {})
        offers.pop(invitation.nonce, None)
        if not offers:
            self._offers.pop(invitation.identity, None)

    def resume(self) -> None:
        """Dial again after `close`, where there are jobs that want it."""
        for identity in self._offers:
            self._begin(identity)

    async def close(self) -> None:
        """Close all connections."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, identity: str) -> None:
        if identity not in self._tasks:
            task = self._tasks[identity] = asyncio.create_task(self._keep_connected(identity))
            task.add_done_callback(lambda _: self._tasks.pop(identity, None))

    async def _keep_connected(self, identity: str) -> None:
        while (offers := self._offers.get(identity)) and not self._is_connected(identity):
            invitation = next(iter(offers.values()))
            assert invitation.url is not None
            pause = self._pauses.setdefault(str(invitation.url.host), _Pause())
            await pause.wait()
            if invitation.nonce not in self._offers.get(identity, {}):
                continue
            try:
                await self._dial(invitation, pause)
            except aiohttp.WSServerHandshakeError as refusal:
                self.withdraw(invitation)
                log.warning("a proxy has refused a direct channel with %d", refusal.status)
                if refusal.status != TOKEN_REFUSED:
                    pause.lengthen()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                log.warning("a proxy cannot be dialled: %s", error or type(error).__name__)
                pause.lengthen()

    async def _dial(self, invitation: Invitation, pause: "_Pause") -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            trace_configs=[_no_redirects()],
        ) as session:
            async with asyncio.timeout(DIAL_SECONDS):
                socket = await session.ws_connect(
                    invitation.url or "",
                    headers={"Authorization": f"Bearer {invitation.token}"},
                    max_msg_size=MAX_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
                )
            self.withdraw(invitation)
            pause.reset()
            try:
                await self._serve(socket, invitation.identity)
            finally:
                await socket.close()


def _no_redirects() -> aiohttp.TraceConfig:
    """aiohttp's `ws_connect` follows redirects to wherever they point."""

    async def refuse(*_: Any) -> None:
        raise Redirected("its door points elsewhere")

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config


class _Pause:
    """How long a host is left alone after it has failed."""

    def __init__(self) -> None:
        self._until = 0.0
        self._seconds = FIRST_PAUSE_SECONDS

    @property
    def is_over(self) -> bool:
        return asyncio.get_running_loop().time() >= self._until

    def lengthen(self) -> None:
        self._until = asyncio.get_running_loop().time() + self._seconds
        self._seconds = min(self._seconds * 2, LONGEST_PAUSE_SECONDS)

    def reset(self) -> None:
        self._until, self._seconds = 0.0, FIRST_PAUSE_SECONDS

    async def wait(self) -> None:
        await asyncio.sleep(max(0.0, self._until - asyncio.get_running_loop().time()))
