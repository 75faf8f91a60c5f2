"""Sessions of admins in a browser: opaque tokens, each of which stands for the key that began it.

A session holds the key's SHA-256 and nothing of what the key may do, so it ends with the key: when
that is revoked, rotated, past its time or taken out of the file. Of its token, too, only the
SHA-256 is kept.
"""

import hashlib
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from proxy.access.keys import Key, Keys
from proxy.errors import InvalidAPIKey, KeysUnavailable, RateLimitExceeded

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 30 * 60
"""How long a session lasts in which nothing is asked for."""
MAX_SECONDS: Final = 12 * 60 * 60
"""How long it lasts in any case."""
NOTED_SECONDS: Final = 60
"""How much of its use may go unnoted: not every request writes."""
MAX_SESSIONS: Final = 100
"""One more ends the one that was not used for the longest time."""
TOKEN_BYTES: Final = 32
MAX_FAILURES: Final = 10
"""How often a login may fail in a minute, for each address that it comes from."""
MAX_FAILURES_OF_ALL: Final = 300
MINUTE_SECONDS: Final = 60.0
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Session:
    """A session as it is kept. Times are Unix times in seconds."""

    key: bytes
    """The SHA-256 of the key that began it."""
    began: int
    used: int

    def lasts(self, now: float) -> bool:
        """Whether it has not ended by itself."""
        return now < min(self.began + MAX_SECONDS, self.used + IDLE_SECONDS)


class SessionStore(Protocol):
    """Where sessions are kept, by the SHA-256 of their tokens."""

    async def add(self, token: bytes, session: Session) -> None:
        """Keep a new one, and at most MAX_SESSIONS of all."""

    async def use(self, token: bytes, now: int) -> Session | None:
        """The session that lasts and is now used; None if there is none."""

    async def remove(self, token: bytes) -> None:
        """Forget it, if there is one."""


class MemorySessions:
    """Those that this process alone knows."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}
        """The one that was not used for the longest time is the first."""

    async def add(self, token: bytes, session: Session) -> None:
        """Keep a new one."""
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[token] = session

    async def use(self, token: bytes, now: int) -> Session | None:
        """The session that lasts and is now used."""
        session = self._sessions.pop(token, None)
        if session is None or not session.lasts(now):
            return None
        self._sessions[token] = replace(session, used=now)
        return session

    async def remove(self, token: bytes) -> None:
        """Forget it, if there is one."""
        self._sessions.pop(token, None)


class Sessions:
    """Those that copies share, where they have somewhere to keep them, and those of this process.

    While what is shared is away, a login still works, for this process.
    """

    def __init__(
        self, shared: SessionStore | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.attempts = Attempts()
        """To log in."""
        self._own = MemorySessions()
        self._shared = shared
        self._clock = clock

    async def begin(self, key: bytes) -> str:
        """A new session's token, for the key with this SHA-256."""
        token, now = secrets.token_urlsafe(TOKEN_BYTES), int(self._clock())
        session = Session(key, began=now, used=now)
        if self._shared is not None:
            try:
                await self._shared.add(_digest(token), session)
            except KeysUnavailable:
                log.warning("a session is known to this copy alone: the database is away")
            else:
                return token
        await self._own.add(_digest(token), session)
        return token

    async def holder(self, token: str, keys: Keys) -> Key:
        """The key that began this session, as it is now.

        Raises:
            InvalidAPIKey: there is no such session, or no such key any more.
            KeysUnavailable: neither can be known now.
        """
        session = await self._used(token)
        if session is None:
            raise InvalidAPIKey("This session has ended. Log in again.")
        try:
            return await keys.find(session.key)
        except InvalidAPIKey:
            await self.end(token)
            raise

    async def end(self, token: str) -> None:
        """End this session, if there is one; raises KeysUnavailable if that cannot be done now."""
        await self._own.remove(_digest(token))
        if self._shared is not None and _TOKEN.fullmatch(token):
            await self._shared.remove(_digest(token))

    async def _used(self, token: str) -> Session | None:
        if not _TOKEN.fullmatch(token):
            return None
        now = int(self._clock())
        own = await self._own.use(_digest(token), now)
        if own is not None or self._shared is None:
            return own
        return await self._shared.use(_digest(token), now)


class Attempts:
    """Bounds how often logins may fail: one that is under way counts until it was right."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: deque[tuple[float, str]] = deque()
        """When, and from which address."""

    def begin(self, address: str) -> Callable[[], None]:
        """Count one more; what is returned takes it back, for one that was right.

        Raises:
            RateLimitExceeded: too many have failed.
        """
        now = self._clock()
        while self._failures and self._failures[0][0] <= now - MINUTE_SECONDS:
            self._failures.popleft()
        own = [at for at, whose in self._failures if whose == address]
        if len(own) >= MAX_FAILURES or len(self._failures) >= MAX_FAILURES_OF_ALL:
            first = own[0] if len(own) >= MAX_FAILURES else self._failures[0][0]
            raise RateLimitExceeded(
                "Too many logins have failed. Try again in a minute.",
                retry_after_seconds=first + MINUTE_SECONDS - now,
            )
        failure = (now, address)
        self._failures.append(failure)

        def take_back() -> None:
            if failure in self._failures:
                self._failures.remove(failure)

        return take_back


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
