"""Fair turns over several copies of the proxy, by places of the window that Redis lends them.

While there is room a copy is lent half of what is free beside what it uses, so that its calls pass
without a question, and a copy that begins finds room as well. It asks anew every second, and when
it has used that up or needs far less.

When an endpoint is full, a call that ends gives its place back, and copies take turns for it: by
start-time fair queueing (Goyal, Vin and Cheng, 1996), each by the weights of the flows that wait
there. A flow that waits in several copies counts for a part in each. Nothing is told to a copy: one
whose turn it is finds the place when it asks, and until then the others leave it.
"""

import asyncio
import math
import uuid
from typing import Any, Final

import msgspec

from proxy.backends.auto_reset_event import AutoResetEvent
from proxy.backends.fair_turns import FairTurns
from proxy.storage.shared_state import PREFIX, RedisAway, Script, SharedState

RENEW_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.05
"""Between two questions of a copy where calls wait, if nothing ends there meanwhile."""
LEASE_SECONDS: Final = 5.0
"""How long places are kept for a copy that says nothing."""
SETTLE_SECONDS: Final = 3.0
"""When Redis is back a copy keeps to its share for so long: by then it has heard of all others."""
MAX_FLOWS: Final = 100
"""Of so many waiting flows the weights count; one copy of a gateway may have thousands."""

_LEND: Final = Script("""
local me, lease, window, taken, unused, waits, most = ARGV[1], tonumber(ARGV[2]),
    tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local turn = tonumber(redis.call('GET', KEYS[2]) or 0)

local mine = {held = taken + unused, waits = waits, start = turn, flows = cjson.decode(ARGV[8])}
local copies, free = {mine}, window - mine.held
local found = redis.call('HGETALL', KEYS[1])
for n = 1, #found, 2 do
    local copy = cjson.decode(found[n + 1])
    copy.start = math.max(turn, copy.start)
    if found[n] == me then
        mine.start = copy.start
    elseif copy.till <= now then
        redis.call('HDEL', KEYS[1], found[n])
    else
        copies[#copies + 1], free = copy, free - copy.held
    end
end
if mine.held + waits == 0 then
    redis.call('HDEL', KEYS[1], me)
    return {0, 0, {}}
end

local lines_of = {}
for _, copy in ipairs(copies) do
    for name in pairs(copy.flows) do
        lines_of[name] = (lines_of[name] or 0) + 1
    end
end
for _, copy in ipairs(copies) do
    copy.weight = 0
    for name, weight in pairs(copy.flows) do
        copy.weight = copy.weight + weight / lines_of[name]
    end
end
local function next_turn()
    local first
    for _, copy in ipairs(copies) do
        if copy.waits > 0 and (not first or copy.start < first.start) then
            first = copy
        end
    end
    return first
end
local lent, first = 0, next_turn()
while free > 0 and first do
    if first == mine then
        lent, turn = lent + 1, mine.start
    end
    first.waits, first.start = first.waits - 1, first.start + 1 / first.weight
    free, first = free - 1, next_turn()
end
local spare = 0
if not first then
    spare = math.min(math.floor(math.max(0, free + unused) / 2), unused + most - lent)
    lent = lent + math.max(0, spare - unused)
end

local elsewhere = {}
for name in pairs(mine.flows) do
    if lines_of[name] > 1 then
        elsewhere[#elsewhere + 1], elsewhere[#elsewhere + 2] = name, lines_of[name]
    end
end
mine.held, mine.till, mine.weight = mine.held + lent, now + lease, nil
if mine.waits == 0 then
    mine.flows = {}
end
redis.call('HSET', KEYS[1], me, cjson.encode(mine))
redis.call('PEXPIRE', KEYS[1], lease)
redis.call('SET', KEYS[2], turn, 'PX', lease)
return {lent, spare, elsewhere}
""")
"""Lend a copy places for those that wait there, and some to spare if nobody has to wait.

`held` are its places: those taken, and those lent that are not. `start` is its next turn on the
scale of all turns, on which KEYS[2] has the last one that was given. `most` bounds what it is lent.
It is answered what it is lent beyond what it has, how many it is to keep unused, and in how many
copies its flows wait that do so in others as well. Of equal turns the one who asks has the first,
or each would leave the place to the other.
"""


class SharedTurns:
    """Lends the places of windows to this copy of the proxy."""

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self._renewals: set[asyncio.Task[None]] = set()

    def hold(self, turns: FairTurns, name: str) -> None:
        """Have these turns keep to what they are lent of the window of this name.

        While Redis is away they keep to this copy's share.
        """
        lease = _Lease(self, turns, f"{PREFIX}:turns:{{{name}}}")
        turns.lent, turns.on_change = 0, lease.note_change

    def renew(self, lease: "_Lease") -> asyncio.Task[None]:
        """Keep a lease for as long as it is used."""
        renewal = asyncio.create_task(lease.keep())
        self._renewals.add(renewal)
        renewal.add_done_callback(self._renewals.discard)
        return renewal

    async def ask(self, name: str, *arguments: Any) -> tuple[int, int, list[Any]]:
        """What the script answers; raises RedisAway."""
        lent, spare, elsewhere = await self._state.run(_LEND, [name, f"{name}:turn"], arguments)
        return lent, spare, elsewhere

    async def close(self) -> None:
        """Renew nothing any more."""
        for renewal in self._renewals:
            renewal.cancel()
        await asyncio.gather(*self._renewals, return_exceptions=True)


class _Lease:
    """This copy's places of one window."""

    def __init__(self, shared: SharedTurns, turns: FairTurns, name: str) -> None:
        self._id = uuid.uuid4().hex
        self._shared = shared
        self._turns = turns
        self._name = name
        self._spare = 0
        """How many places it is to keep unused."""
        self._settled = -math.inf
        """When the others that came back with Redis are known, on the loop's clock."""
        self._changed = AutoResetEvent()
        self._renewal: asyncio.Task[None] | None = None

    def note_change(self) -> None:
        """Ask now if calls wait, or if many places are not used."""
        if self._turns.waiting or (self._turns.lent or 0) > 2 * self._spare:
            self._changed.set()
            if self._renewal is None:
                self._renewal = self._shared.renew(self)

    async def keep(self) -> None:
        """Ask again and again, until no call waits or is under way."""
        turns = self._turns
        try:
            while True:
                is_idle = not (turns.taken or turns.waiting)
                if is_idle:
                    turns.keep(0)
                await self._ask()
                if is_idle and not (turns.taken or turns.waiting):
                    break
                await self._changed.wait(LOOK_SECONDS if turns.waiting else RENEW_SECONDS)
        finally:
            turns.lent, self._renewal = 0, None

    async def _ask(self) -> None:
        turns = self._turns
        self._changed.clear()
        if math.isinf(turns.window):
            return
        most = self._most()
        try:
            lent, self._spare, elsewhere = await self._shared.ask(
                self._name,
                *(self._id, round(LEASE_SECONDS * 1000), int(turns.window)),
                *(turns.taken, turns.lent or 0, min(turns.waiting, most), most),
                msgspec.json.encode(turns.flows(MAX_FLOWS)),
            )
        except RedisAway:
            turns.keep_to_share()
            return
        if turns.lent is None:
            turns.lent, self._settled = 0, asyncio.get_running_loop().time() + SETTLE_SECONDS
        turns.lend(lent, dict(zip(elsewhere[::2], elsewhere[1::2], strict=True)))
        if turns.keep(self._spare):
            self._changed.set()

    def _most(self) -> int:
        """How many more places it may be lent: none before Redis, when it is back, knows of it."""
        turns = self._turns
        if turns.lent is None:
            return 0
        if asyncio.get_running_loop().time() < self._settled:
            return max(0, int(turns.share) - turns.taken - turns.lent)
        return int(turns.window)
