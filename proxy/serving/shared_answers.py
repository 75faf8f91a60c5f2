"""A request that comes again at another copy of the proxy gets the answer that is under way there.

RunPod hands each output out once, so a second copy cannot read the job beside the first. Whoever
asks first under an `Idempotency-Key` claims it in Redis. A copy that finds it claimed says that the
answer is wanted there; the owner then puts all of it, from its beginning, into a list in Redis, for
as long as it is wanted. A claim is a lease: when its owner has died the request starts anew.
"""

import asyncio
import base64
import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

import msgspec

from proxy.api.answer import NO_COURSE, Answer, Course, Head, WrappedAnswer
from proxy.api.retries import Sender
from proxy.errors import ProxyError, SharedStateAway, Stopping, VLLMError
from proxy.serving.several_readers import Place, SharedAnswer
from proxy.serving.sharing import reused
from proxy.storage.shared_state import (
    PATIENCE_SECONDS,
    PREFIX,
    RedisAway,
    Script,
    SharedState,
)

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 10.0
"""How long a claim, and a wish for an answer, are kept for a copy that says nothing."""
RENEW_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.2
"""How often one looks what has come of an answer that another copy has."""
KEPT_SECONDS: Final = 120
"""How long what was put into Redis stays there: longer than an answer that has ended is kept."""
MAX_BYTES: Final = 16 * 2**20
"""What is put there of one answer."""
PIECES_AT_ONCE: Final = 200

_CLAIM: Final = Script("""
local claim, wanted = KEYS[1], KEYS[2]
local id, fingerprint, lease = ARGV[1], ARGV[2], ARGV[3]
local found = redis.call('HMGET', claim, 'owner', 'fingerprint')
if not found[1] or found[1] == id then
    redis.call('HSET', claim, 'owner', id, 'fingerprint', fingerprint)
    redis.call('PEXPIRE', claim, lease)
    redis.call('DEL', wanted)
    return {'mine'}
end
if found[2] ~= fingerprint then
    return {'reused'}
end
redis.call('SET', wanted, '1', 'PX', lease)
return {'theirs', found[1]}
""")
"""Claim a request, or learn who has it, and say that its answer is wanted."""

_RENEW: Final = Script("""
local claim, wanted = KEYS[1], KEYS[2]
local owner = redis.call('HGET', claim, 'owner')
if owner and owner ~= ARGV[1] then
    return -1
end
redis.call('HSET', claim, 'owner', ARGV[1], 'fingerprint', ARGV[2])
redis.call('PEXPIRE', claim, ARGV[3])
return redis.call('EXISTS', wanted)
""")
"""Keep a claim; returns whether its answer is wanted elsewhere, -1 if it is another's by now."""

_RELEASE: Final = Script("""
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
    redis.call('DEL', KEYS[1], KEYS[2])
end
""")

_PUT: Final = Script("""
for n = 2, #ARGV do
    redis.call('RPUSH', KEYS[1], ARGV[n])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
""")

_LOOK: Final = Script("""
local claim, wanted, pieces = KEYS[1], KEYS[2], KEYS[3]
local owner, first, last, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
redis.call('SET', wanted, '1', 'PX', lease)
local is_owners = redis.call('HGET', claim, 'owner') == owner
return {is_owners and 1 or 0, redis.call('LRANGE', pieces, first, last)}
""")
"""What has come of an answer from a position on, and whether its owner still has it."""


class _Gone(Exception):
    """Whoever had the answer has it no more, or cannot hand it on."""


class _Opened(msgspec.Struct):
    """The first of the pieces in Redis: an answer's head, and what came with it."""

    head: Head
    first: bytes
    job_id: str | None
    endpoint: str = ""
    work_id: str = ""
    """The name of the endpoint that has the work, and its id there: the ledger knows it by both."""


class SharedClaims:
    """The claims of this copy."""

    def __init__(self, state: SharedState) -> None:
        self.state = state
        self.held: set[ClaimedAnswer] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    def claim(self, place: Place, fingerprint: bytes, answer: Answer) -> "ClaimedAnswer":
        """This answer, unless another copy has one to the same request when it is opened."""
        return ClaimedAnswer(self, place, fingerprint, answer)

    def hold(self, claim: "ClaimedAnswer") -> None:
        """Keep this claim until it is released."""
        self.held.add(claim)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do this beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Let all claims go; their answers have been closed."""
        if self._renewing is not None:
            self._renewing.cancel()
        for claim in list(self.held):
            claim.release()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._tasks:  # what ends may start the next
                    await asyncio.wait(set(self._tasks))

    async def _renew(self) -> None:
        while self.held:
            await asyncio.sleep(RENEW_SECONDS)
            await asyncio.gather(*(claim.renew() for claim in list(self.held)))


class ClaimedAnswer(WrappedAnswer):
    """An answer that is asked for only if no other copy has one; else it is that one."""

    def __init__(
        self, claims: SharedClaims, place: Place, fingerprint: bytes, answer: Answer
    ) -> None:
        self.inner = self._own = answer
        self.shared: SharedAnswer | None = None
        """What this is a part of: whoever wants it elsewhere reads it there."""
        self._claims = claims
        self._fingerprint = fingerprint.hex()
        self._id = uuid.uuid4().hex
        key, name = place
        digest = hashlib.sha256(f"{key}\0{name!r}".encode()).hexdigest()
        self._name = f"{PREFIX}:answer:{{{digest}}}"
        self._keys = (f"{self._name}:claim", f"{self._name}:wanted")
        self._lease = round(LEASE_SECONDS * 1000)
        self._handing_on: asyncio.Task[None] | None = None
        self._is_in_redis = False
        """All of the answer is there."""
        self._is_released = False

    async def open(self) -> bytes:
        """Open this answer, or another copy's.

        Raises:
            IdempotencyKeyReused: another copy has it with another request.
            SharedStateAway: Redis has gone while another copy's was waited for.
        """
        while True:
            match await self._run(_CLAIM, (self._id, self._fingerprint, self._lease)):
                case ["reused"]:
                    raise reused()
                case ["theirs", owner]:
                    self.inner = remote = _RemoteAnswer(self._claims.state, self._name, owner)
                    log.info("a request joins its answer at another copy")
                    try:
                        first = await remote.open()
                    except _Gone:
                        self.inner = self._own
                        continue
                    self._own.close()
                    return first
                case ["mine"]:
                    if not self._is_released:
                        self._claims.hold(self)
            return await self._own.open()

    def close(self) -> None:
        """Close both: the other copy's is then wanted no more."""
        self._own.close()
        if self.inner is not None:
            self.inner.close()

    def release(self) -> None:
        """No request can join the answer any more; what is handed on already goes on."""
        self._is_released = True
        if self in self._claims.held and (self._handing_on is None or self._handing_on.done()):
            self._claims.held.discard(self)
            self._claims.start(self._let_go())

    async def renew(self) -> None:
        """Keep the claim, and hand the answer on if it is wanted."""
        if self not in self._claims.held:
            return
        wanted = await self._run(_RENEW, (self._id, self._fingerprint, self._lease))
        if wanted == -1:
            self._claims.held.discard(self)
        elif wanted == 0 and self._handing_on is not None:
            self._handing_on.cancel()
        elif wanted == 1 and not (self._handing_on or self._is_in_redis or self._is_released):
            self._handing_on = self._claims.start(self._hand_on())

    async def _hand_on(self) -> None:
        """Put all of the answer into Redis, as its reader."""
        assert self.shared is not None
        reader = self.shared.reader(Sender.of({}, time.monotonic()))
        try:
            first = await reader.open()
            assert reader.head is not None
            opened = _Opened(
                reader.head, first, reader.job_id, reader.course.endpoint, reader.course.work_id
            )
            await self._put("o" + msgspec.json.encode(opened).decode())
            size = 0
            async for piece in reader.pieces():
                if not piece:
                    continue
                await self._put("p" + base64.b64encode(piece).decode())
                if (size := size + len(piece)) > MAX_BYTES:
                    raise _Gone
            await self._put("e")
            self._is_in_redis = True
        except ProxyError as exc:
            await self._end(exc)
        except _Gone:
            await self._end(None)
        except RedisAway:
            pass
        except asyncio.CancelledError:
            self._claims.start(self._end(None))
            raise
        finally:
            reader.close()
            self._handing_on = None
            if self._is_released or not self._is_in_redis:
                self.release()

    async def _end(self, error: ProxyError | None) -> None:
        """End what is in Redis by this error, unless it is one that is well asked for again."""
        said = "g"
        if error is not None and not error.retry:
            said = f"x{error.status} {base64.b64encode(error.body).decode()}"
        with contextlib.suppress(RedisAway):
            await self._put(said)

    async def _put(self, piece: str) -> None:
        await self._claims.state.run(_PUT, [f"{self._name}:{self._id}"], [KEPT_SECONDS, piece])

    async def _let_go(self) -> None:
        if self.shared is not None and isinstance(self.shared.error, ProxyError):
            await self._end(self.shared.error)  # for a copy that has just begun to wait for it
        await self._run(_RELEASE, (self._id,))

    async def _run(self, script: Script, arguments: tuple[Any, ...]) -> Any:
        """What a script returns; None while Redis is away, and then each copy is alone."""
        try:
            return await self._claims.state.run(script, self._keys, arguments)
        except RedisAway:
            return None


class _RemoteAnswer:
    """An answer that another copy has, read from Redis."""

    def __init__(self, state: SharedState, name: str, owner: str) -> None:
        self.head: Head | None = None
        self.job_id: str | None = None
        self.road = "copy"
        self.course: Course = NO_COURSE
        self.is_waiting = True
        self._state = state
        self._keys = (f"{name}:claim", f"{name}:wanted", f"{name}:{owner}")
        self._owner = owner
        self._position = 0
        self._pieces: list[str] = []
        self._is_closed = False

    async def open(self) -> bytes:
        """Wait for its beginning; raises _Gone if its owner has it no more."""
        while (said := await self._next()) is None:
            pass
        if said[0] != "o":
            raise self._error(said)
        opened = msgspec.json.decode(said[1:], type=_Opened)
        self.head, self.job_id, self.is_waiting = opened.head, opened.job_id, False
        self.course = Course(endpoint=opened.endpoint, work_id=opened.work_id)
        return opened.first

    async def pieces(self) -> AsyncIterator[bytes]:
        """What follows; nothing where nothing came for a while."""
        while (said := await self._next()) != "e":
            if said is None:
                yield b""
            elif said[0] == "p":
                yield base64.b64decode(said[1:])
            else:
                try:
                    raise self._error(said)
                except _Gone:
                    raise Stopping(
                        "The copy of the proxy that had this answer has ended. Please send the "
                        "request again."
                    ) from None

    def close(self) -> None:
        """Want it no more: the wish lapses."""
        self._is_closed = True

    async def _next(self) -> str | None:
        """What is next in the list; None if it has not come yet. Raises _Gone as `open`."""
        if self._pieces:
            return self._pieces.pop(0)
        last = self._position + PIECES_AT_ONCE - 1
        arguments = (self._owner, self._position, last, round(LEASE_SECONDS * 1000))
        try:
            is_owners, self._pieces = await self._state.run(_LOOK, self._keys, arguments)
        except RedisAway:
            raise SharedStateAway(
                "Another copy of the proxy has the answer to this request, and cannot be asked "
                "for it now. Try again in a moment.",
                retry_after_seconds=1,
            ) from None
        self._position += len(self._pieces)
        if self._pieces:
            return self._pieces.pop(0)
        if not is_owners:
            return "g"
        await asyncio.sleep(LOOK_SECONDS)
        return None

    def _error(self, said: str) -> Exception:
        if said[0] != "x":
            return _Gone()
        status, _, body = said[1:].partition(" ")
        return VLLMError(int(status), base64.b64decode(body))
