"""Answers of this copy of the proxy that others may want.

Each has a claim in Redis, a lease that is renewed while the answer can be joined: when this copy
has died it lapses. As soon as the answer is wanted elsewhere, all of it goes there.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Coroutine
from typing import Any, Final

from proxy.api.retries import Sender
from proxy.errors import ProxyError
from proxy.serving.handed_on import END, Gone, Names, failing, following, lease, opening
from proxy.serving.several_readers import SharedAnswer
from proxy.storage.shared_state import PATIENCE_SECONDS, RedisAway, Script, SharedState

KEPT_SECONDS: Final = 120
"""How long what was put into Redis stays there: longer than an answer that has ended is kept."""
MAX_BYTES: Final = 16 * 2**20
"""What is put there of one answer."""

_LEAVE: Final = Script("""
local claim, wanted, left = KEYS[1], KEYS[2], KEYS[3]
local id, lease = ARGV[1], ARGV[3]
if redis.call('HSETNX', claim, 'owner', id) == 1 then
    redis.call('RPUSH', left, id)
end
redis.call('PEXPIRE', claim, lease)
redis.call('PEXPIRE', left, lease)
return 1
""")
"""Claim an answer that was left, and let the first copy have it that asks for one; only once."""

_RENEW: Final = Script("""
local claim, wanted, left = KEYS[1], KEYS[2], KEYS[3]
local id, fingerprint, lease = ARGV[1], ARGV[2], ARGV[3]
local owner = redis.call('HGET', claim, 'owner')
if owner and owner ~= id then
    return -1
end
redis.call('HSET', claim, 'owner', id, 'fingerprint', fingerprint)
redis.call('PEXPIRE', claim, lease)
redis.call('PEXPIRE', left, lease)
return redis.call('EXISTS', wanted)
""")
"""Keep a claim; returns whether its answer is wanted elsewhere, -1 if it is another's by now."""

_RELEASE: Final = Script("""
local claim, wanted, left = KEYS[1], KEYS[2], KEYS[3]
local id = ARGV[1]
redis.call('LREM', left, 1, id)
if redis.call('HGET', claim, 'owner') == id then
    redis.call('DEL', claim, wanted)
end
""")

_PUT: Final = Script("""
redis.call('RPUSH', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
""")


class Tasks:
    """What is done in Redis beside everything else."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do this."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def finish(self) -> None:
        """Wait for it; not for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._running:  # what ends may start the next
                    await asyncio.wait(set(self._running))


class Held:
    """The claims that this copy renews, each after so many seconds."""

    def __init__(self, state: SharedState, tasks: Tasks, seconds: float) -> None:
        self.state = state
        self.tasks = tasks
        self._seconds = seconds
        self._claims: set[Claim] = set()
        self._renewing: asyncio.Task[None] | None = None

    def __contains__(self, claim: "Claim") -> bool:
        return claim in self._claims

    def add(self, claim: "Claim") -> None:
        """Keep this one until it is released."""
        self._claims.add(claim)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())

    def discard(self, claim: "Claim") -> None:
        """Let it lapse."""
        self._claims.discard(claim)

    def close(self) -> None:
        """Let all go; their answers have been closed."""
        if self._renewing is not None:
            self._renewing.cancel()
        for claim in list(self._claims):
            claim.release()

    async def _renew(self) -> None:
        while self._claims:
            await asyncio.sleep(self._seconds)
            await asyncio.gather(*(claim.renew() for claim in list(self._claims)))


class Claim:
    """This copy's to one answer, from `hold` until `release`."""

    def __init__(self, held: Held, shared: SharedAnswer, *, is_left: bool) -> None:
        self.id = uuid.uuid4().hex
        self.fingerprint = "" if is_left else shared.fingerprint.hex()
        self.names = Names.of(shared.place, self.id, is_left=is_left)
        self._held = held
        self._shared = shared
        self._is_to_be_told = self._is_left = is_left
        self._handing_on: asyncio.Task[None] | None = None
        self._is_in_redis = False
        """All of the answer is there."""
        self._is_released = False

    def hold(self) -> None:
        """Keep it from now on, unless it has been released."""
        if self._is_released:
            return
        self._held.add(self)
        if self._is_left:
            self._held.tasks.start(self.renew())

    def release(self) -> None:
        """No request can join the answer any more; what is handed on already goes on."""
        self._is_released = True
        if self in self._held and (self._handing_on is None or self._handing_on.done()):
            self._held.discard(self)
            self._held.tasks.start(self._let_go())

    async def renew(self) -> None:
        """Keep the claim, and hand the answer on if it is wanted."""
        if self not in self._held:
            return
        if self._is_to_be_told:
            self._is_to_be_told = await self.run(_LEAVE) is None
            return
        wanted = await self.run(_RENEW)
        if wanted == -1:
            self._held.discard(self)
        elif wanted == 0 and self._handing_on is not None:
            self._handing_on.cancel()
        elif wanted == 1 and not (self._handing_on or self._is_in_redis or self._is_released):
            self._handing_on = self._held.tasks.start(self._hand_on())

    async def run(self, script: Script) -> Any:
        """What a script returns; None while Redis is away, and then each copy is alone."""
        keys = (self.names.claim, self.names.wanted, self.names.left)
        try:
            return await self._held.state.run(script, keys, (self.id, self.fingerprint, lease()))
        except RedisAway:
            return None

    async def _hand_on(self) -> None:
        """Put all of the answer into Redis, as its reader."""
        reader = self._shared.reader(Sender.of({}, time.monotonic()))
        try:
            await self._put(opening(reader, await reader.open()))
            size = 0
            async for piece in reader.pieces():
                if not piece:
                    continue
                await self._put(following(piece))
                if (size := size + len(piece)) > MAX_BYTES:
                    raise Gone
            await self._put(END)
            self._is_in_redis = True
        except ProxyError as exc:
            await self._fail(exc)
        except Gone:
            await self._fail(None)
        except RedisAway:
            pass
        except asyncio.CancelledError:
            self._held.tasks.start(self._fail(None))
            raise
        finally:
            reader.close()
            self._handing_on = None
            if self._is_released or not self._is_in_redis:
                self.release()

    async def _fail(self, error: ProxyError | None) -> None:
        with contextlib.suppress(RedisAway):
            await self._put(failing(error))

    async def _put(self, piece: str) -> None:
        await self._held.state.run(_PUT, [self.names.pieces], [KEPT_SECONDS, piece])

    async def _let_go(self) -> None:
        if isinstance(self._shared.error, ProxyError):
            await self._fail(self._shared.error)  # for a copy that has just begun to wait for it
        await self.run(_RELEASE)
