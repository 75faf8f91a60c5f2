"""A request that comes again at another copy of the proxy gets the answer that is under way there.

Whoever asks first under an `Idempotency-Key` claims it in Redis; a copy that finds it claimed
reads what the owner hands on. A request without one asks Redis nothing. Only when its client has
timed out or left is its answer put into a list of those that were left, and a retry takes it out.
"""

import contextlib
import logging
from typing import Final

from proxy.api.answer import WrappedAnswer
from proxy.serving.claims import Claim, Held, Tasks
from proxy.serving.handed_on import Gone, Names, RemoteAnswer
from proxy.serving.several_readers import SharedAnswer
from proxy.serving.sharing import reused
from proxy.storage.shared_state import RedisAway, Script, SharedState

log = logging.getLogger(__name__)

RENEW_SECONDS: Final = 1.0
RENEW_LEFT_SECONDS: Final = 0.5
"""The same for an answer that was left: after a first attempt it is held for two seconds only."""

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

_TAKE: Final = Script("return redis.call('LPOP', KEYS[1])")
_DO_NOT_WANT: Final = Script("redis.call('DEL', KEYS[1])")


class SharedClaims:
    """The claims of this copy, and those of others as it finds them."""

    def __init__(self, state: SharedState) -> None:
        self.state = state
        self.tasks = Tasks()
        self.held = Held(state, self.tasks, RENEW_SECONDS)
        self._left = Held(state, self.tasks, RENEW_LEFT_SECONDS)

    def claim(self, shared: SharedAnswer) -> Claim:
        """Let this be its answer, unless another copy has one when it is opened."""
        claim = Claim(self.held, shared, is_left=False)
        shared.answer = _ClaimedAnswer(self, shared, claim)
        return claim

    def take(self, shared: SharedAnswer) -> None:
        """Let it be one that was left at another copy, if there is any when it is opened."""
        shared.answer = _TakenAnswer(self, shared)

    def leave(self, shared: SharedAnswer) -> Claim:
        """Let another copy take it, since it was left here."""
        claim = Claim(self._left, shared, is_left=True)
        claim.hold()
        return claim

    async def close(self) -> None:
        """Let all claims go; their answers have been closed."""
        self.held.close()
        self._left.close()
        await self.tasks.finish()


class _CopiedAnswer(WrappedAnswer):
    """An answer that is asked for only if no other copy has one; else it is that one."""

    def __init__(self, claims: SharedClaims, shared: SharedAnswer) -> None:
        self.inner = self._own = shared.answer
        self._claims = claims
        self._place = shared.place

    async def open(self) -> bytes:
        """Open another copy's answer, or this one.

        Raises:
            IdempotencyKeyReused: another copy has it with another request.
            SharedStateAway: Redis has gone while another copy's was waited for.
        """
        while (remote := await self._find()) is not None:
            self.inner = remote
            log.info("a request joins its answer at another copy")
            try:
                first = await remote.open()
            except Gone:
                self.inner = self._own
                continue
            self._own.close()
            return first
        return await self._own.open()

    async def _find(self) -> RemoteAnswer | None:
        """Another copy's answer to the same request, if there is one."""
        raise NotImplementedError

    def close(self) -> None:
        """Close both: the other copy's is then wanted no more."""
        self._own.close()
        if self.inner is not None:
            self.inner.close()


class _ClaimedAnswer(_CopiedAnswer):
    """One with an `Idempotency-Key`."""

    def __init__(self, claims: SharedClaims, shared: SharedAnswer, claim: Claim) -> None:
        super().__init__(claims, shared)
        self._claim = claim

    async def _find(self) -> RemoteAnswer | None:
        match await self._claim.run(_CLAIM):
            case ["reused"]:
                raise reused()
            case ["theirs", owner]:
                names = Names.of(self._place, owner, is_left=False)
                return RemoteAnswer(self._claims.state, names, owner)
            case ["mine"]:
                self._claim.hold()
        return None


class _TakenAnswer(_CopiedAnswer):
    """The one of a retry without an `Idempotency-Key`."""

    def __init__(self, claims: SharedClaims, shared: SharedAnswer) -> None:
        super().__init__(claims, shared)
        self._taken: Names | None = None

    async def _find(self) -> RemoteAnswer | None:
        self._taken = None
        left = Names.of(self._place, "", is_left=True).left
        try:
            owner = await self._claims.state.run(_TAKE, (left,), ())
        except RedisAway:
            return None
        if owner is None:
            return None
        self._taken = Names.of(self._place, owner, is_left=True)
        return RemoteAnswer(self._claims.state, self._taken, owner)

    def close(self) -> None:
        """Close it. No other copy wants what this one has taken, so its owner need not wait."""
        super().close()
        if self._taken is not None:
            self._claims.tasks.start(self._do_not_want(self._taken))
            self._taken = None

    async def _do_not_want(self, taken: Names) -> None:
        with contextlib.suppress(RedisAway):
            await self._claims.state.run(_DO_NOT_WANT, (taken.wanted,), ())
