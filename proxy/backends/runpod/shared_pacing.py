"""RunPod's call budgets over several copies of the proxy, by leases that are kept in Redis.

A copy that makes calls asks once a second for its part of the budget, by how many of its calls are
under way or wait, and keeps to it until the next time: no call waits for Redis but the first after
a quiet time. All parts together are never more than the whole. Some of it is given to nobody that
has a part already, so that a copy which begins has something at once.
"""

import asyncio
import uuid
from typing import Final

from proxy.backends.runpod.pacing import CallLimiter, Shares
from proxy.config.limits import WINDOW_SECONDS
from proxy.storage.shared_state import PREFIX, RedisAway, Script, SharedState

RENEW_SECONDS: Final = 1.0
KEPT_FREE: Final = 0.1
"""The share of a budget that is left for copies that begin."""
LEASE_SECONDS: Final = WINDOW_SECONDS
"""How long a part is kept for a copy that says nothing: so long its calls may still count."""
LEAST_DEMAND: Final = 0.1
"""What a copy that makes no calls just now counts for."""

_LEASE: Final = Script("""
local me, demand, in_flight, at_once, kept_free, lease =
    ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all, given, places, others, had = demand, 0, 0, 0, 0
local found = redis.call('HGETALL', KEYS[1])
for n = 1, #found, 2 do
    local till, share, taken, wants = string.match(found[n + 1], '(%S+) (%S+) (%S+) (%S+)')
    if tonumber(till) <= now then
        redis.call('HDEL', KEYS[1], found[n])
    elseif found[n] == me then
        had = tonumber(share)
    else
        all, given = all + wants, given + share
        places, others = places + taken, others + 1
    end
end
local target = demand / all
local share = math.min(target, had)
share = math.max(share, math.min(target, 1 - given - (had > 0 and kept_free or 0)), 0)
if others == 0 then
    share = math.min(target, 1 - kept_free)
end
local mine = math.min(math.max(1, math.floor(at_once * share + 0.001)), at_once - places)
mine = math.max(in_flight, mine, 0)
local kept = string.format('%d %.6f %d %.3f', now + lease, share, mine, demand)
redis.call('HSET', KEYS[1], me, kept)
redis.call('PEXPIRE', KEYS[1], lease)
return {string.format('%.6f', share), mine, others}
""")
"""Give a copy its part: of the calls a share, and so many at once.

`in_flight` counts beside that: what is under way cannot be taken back.
"""


class SharedShares(Shares):
    """Gives limiters their parts of budgets that all copies share."""

    def __init__(self, state: SharedState, copies: int) -> None:
        super().__init__(copies)
        self._state = state
        self._renewals: set[asyncio.Task[None]] = set()

    def hold(self, limiter: CallLimiter, name: str) -> None:
        """As Shares has it, by leases; while Redis is away by the number of copies."""
        lease = _Lease(self, limiter, f"{PREFIX}:calls:{{{name}}}")
        limiter.hold_to(0.0, 0)
        limiter.on_use = lease.note_use

    def renew(self, lease: "_Lease") -> asyncio.Task[None]:
        """Keep a lease for as long as it is used."""
        renewal = asyncio.create_task(lease.keep())
        self._renewals.add(renewal)
        renewal.add_done_callback(self._renewals.discard)
        return renewal

    async def ask(self, lease: "_Lease", limiter: CallLimiter) -> tuple[float, int, bool]:
        """The part of this limiter from now on; whether no other copy has one."""
        demand, limiter.most_wanted = limiter.most_wanted + LEAST_DEMAND, limiter.wanted
        arguments = (
            *(lease.id, demand, limiter.in_flight, limiter.limit.at_once),
            *(KEPT_FREE, round(LEASE_SECONDS * 1000)),
        )
        try:
            share, at_once, others = await self._state.run(_LEASE, [lease.name], arguments)
        except RedisAway:
            return *self.fixed(limiter), False
        return float(share), at_once, not others

    async def close(self) -> None:
        """Renew nothing any more."""
        for renewal in self._renewals:
            renewal.cancel()
        await asyncio.gather(*self._renewals, return_exceptions=True)


class _Lease:
    """One limiter's part of one budget."""

    def __init__(self, shares: SharedShares, limiter: CallLimiter, name: str) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self._shares = shares
        self._limiter = limiter
        self._share = 0.0
        self._used = 0.0
        self._renewal: asyncio.Task[None] | None = None

    def note_use(self) -> None:
        """A call is to be made."""
        self._used = asyncio.get_running_loop().time()
        if self._renewal is None:
            self._renewal = self._shares.renew(self)

    async def keep(self) -> None:
        """Ask for it again and again, until nothing was called for so long that no call counts."""
        loop = asyncio.get_running_loop()
        try:
            while self._limiter.wanted or loop.time() - self._used < WINDOW_SECONDS:
                share, at_once, is_alone = await self._shares.ask(self, self._limiter)
                rested = is_alone or share <= self._share
                self._limiter.hold_to(share, at_once, rested=rested)
                self._share = share
                await asyncio.sleep(RENEW_SECONDS)
        finally:
            self._limiter.hold_to(0.0, 0)
            self._share, self._renewal = 0.0, None
