"""Limits that all copies of the proxy keep together, in Redis.

A request is let in by one script, which Redis runs as one step: all of a key's limits have room
and something is taken of each, or nothing is. What this copy lets in is counted in its memory as
well, so that it knows, when Redis is away, what it has used of its own share of the limits. A place
among those at once is held by a lease: those of a copy that was killed are free soon after.
"""

import asyncio
import itertools
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from proxy.access.keys import Key, KeyLimits
from proxy.access.limits import (
    Limiter,
    Permit,
    check_budget,
    headers_of,
    to_reserve,
    too_many_at_once,
    too_many_requests,
    too_many_tokens,
)
from proxy.access.spending import Periods, Spending, Spent
from proxy.api.call import OnSpent, Work
from proxy.api.token_estimate import Tokens
from proxy.storage.shared_state import PATIENCE_SECONDS, PREFIX, RedisAway, Script, SharedState

LEASE_SECONDS: Final = 15.0
"""How long a place among those at once is kept for a copy that says nothing."""
SPENT_KEPT_SECONDS: Final = 32 * 24 * 3600

_ADMIT: Final = Script("""
local arrivals, slots, tokens = KEYS[1], KEYS[2], KEYS[3]
local id, lease, per_minute, at_once, tokens_per_minute, reserved =
    ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]),
    tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local spent = {}
for place = 4, 5 do
    local found = redis.call('HMGET', KEYS[place], 'dollars', 'seconds')
    spent[#spent + 1], spent[#spent + 2] = found[1] or '0', found[2] or '0'
end
for place = 1, 4 do
    local budget = tonumber(ARGV[6 + place])
    if budget > 0 and tonumber(spent[place]) >= budget then
        return {'budget', spent[1], spent[2], spent[3], spent[4]}
    end
end

if at_once > 0 then
    redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
    if redis.call('ZCARD', slots) >= at_once then
        return {'at_once'}
    end
end
local came = 0
if per_minute > 0 then
    redis.call('ZREMRANGEBYSCORE', arrivals, '-inf', now - 60000)
    came = redis.call('ZCARD', arrivals)
    if came >= per_minute then
        local in_the_way = redis.call('ZRANGE', arrivals, -per_minute, -per_minute, 'WITHSCORES')
        local newest = redis.call('ZRANGE', arrivals, -1, -1, 'WITHSCORES')
        return {'requests', in_the_way[2] + 60000 - now, newest[2] + 60000 - now}
    end
end
local taken = 0
if tokens_per_minute > 0 then
    local found = redis.call('HMGET', tokens, 'taken', 'at')
    local filled = (now - (found[2] or now)) * tokens_per_minute / 60000
    taken = math.max(0, (found[1] or 0) - filled)
    if reserved > tokens_per_minute - taken then
        return {'tokens', tostring(taken)}
    end
end

if at_once > 0 then
    redis.call('ZADD', slots, now + lease, id)
    redis.call('PEXPIRE', slots, lease)
end
if per_minute > 0 then
    redis.call('ZADD', arrivals, now, id)
    redis.call('PEXPIRE', arrivals, 60000)
end
if tokens_per_minute > 0 then
    taken = taken + reserved
    redis.call('HSET', tokens, 'taken', tostring(taken), 'at', now)
    redis.call('PEXPIRE', tokens, math.ceil(taken / tokens_per_minute * 60000) + 60000)
end
return {'ok', came + 1, tostring(taken)}
""")
"""Let a request in, or say which limit is in its way.

All times are in milliseconds, by the clock of Redis; a limit of 0 is none.
"""

_END: Final = Script("""
redis.call('ZREM', KEYS[1], ARGV[1])
local taken = redis.call('HGET', KEYS[2], 'taken')
if taken and ARGV[2] ~= '0' then
    redis.call('HSET', KEYS[2], 'taken', tostring(math.max(0, taken + ARGV[2])))
end
""")
"""A request is over: its place is free, and its tokens are corrected by so many."""

_HOLD: Final = Script("""
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
for place = 2, #ARGV do
    redis.call('ZADD', KEYS[1], till, ARGV[place])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
""")
"""The places of these requests are held for another lease."""

_SPEND: Final = Script("""
for place = 1, 2 do
    redis.call('HINCRBYFLOAT', KEYS[place], 'dollars', ARGV[1])
    redis.call('HINCRBYFLOAT', KEYS[place], 'seconds', ARGV[2])
    redis.call('EXPIRE', KEYS[place], ARGV[3])
end
return 'ok'
""")
"""So much more was spent, in the day and in the month."""


class SharedLimiter(Limiter):
    """Lets requests in as far as their keys' limits allow, over all copies."""

    def __init__(self, spending: Spending, state: SharedState, *, copies: int) -> None:
        super().__init__(spending, copies=copies)
        self._state = state
        self._copy = uuid.uuid4().hex
        self._serial = itertools.count()
        self._held: dict[str, set[str]] = {}
        """The requests under way, by the names of their keys."""
        self._unsent: dict[tuple[str, Periods], Spent] = {}
        """What was spent and Redis has not been told yet."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._holding: asyncio.Task[None] | None = None

    async def admit(self, key: Key, tokens: Tokens) -> Permit | None:
        """As Limiter has it; while Redis is away, within this copy's share.

        Raises:
            RateLimitExceeded: it is too much.
            InsufficientQuota: the key has spent its budget.
        """
        limits = key.limits
        if not limits.are_any:
            return None
        permit_id = f"{self._copy}-{next(self._serial)}"
        reserved = to_reserve(limits, tokens)
        said = await self._asked(key, limits, permit_id, reserved)
        if said is None:
            permit = await super().admit(key, tokens)
            assert permit is not None
        else:
            permit = Permit(self._judged(limits, said, reserved), reserved)
            permit.on_end(self._take(key, reserved))
        self._keep(key.name, permit_id, permit, is_shared=said is not None)
        return permit

    def on_spent(self, key: Key) -> OnSpent:
        """What counts a job's cost here, and in Redis."""
        note_here = super().on_spent(key)
        if not key.limits.have_budget:
            return note_here

        def note(work: Work) -> None:
            note_here(work)
            place = (key.name, Periods.of(self._spending.now()))
            self._unsent[place] = self._unsent.get(place, Spent()) + Spent(
                work.dollars, work.seconds
            )
            self._start(self._send_spent())

        return note

    async def close(self) -> None:
        """Tell Redis what is still to be told."""
        if self._holding is not None:
            self._holding.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE_SECONDS)

    async def _asked(
        self, key: Key, limits: KeyLimits, permit_id: str, reserved: int
    ) -> list[Any] | None:
        """What Redis says to a request; None while it is away."""
        periods = Periods.of(self._spending.now())
        names = ("arrivals", "slots", "tokens", f"spent:{periods.day}", f"spent:{periods.month}")
        bounds = (
            *(limits.requests_per_minute, limits.max_requests, limits.tokens_per_minute, reserved),
            *(limits.daily_budget, limits.daily_gpu_seconds),
            *(limits.monthly_budget, limits.monthly_gpu_seconds),
        )
        arguments = (permit_id, round(LEASE_SECONDS * 1000), *(bound or 0 for bound in bounds))
        said: list[Any] | None = await self._call(_ADMIT, key.name, names, arguments)
        return said

    def _judged(self, limits: KeyLimits, said: list[Any], reserved: int) -> dict[str, str]:
        """The headers for a request that was let in; raises the error for one that was not."""
        match said:
            case ["ok", came, taken]:
                return headers_of(limits, came, float(taken))
            case ["at_once"]:
                raise too_many_at_once(limits.max_requests or 0)
            case ["requests", retry_ms, reset_ms]:
                raise too_many_requests(
                    limits.requests_per_minute or 0,
                    retry_seconds=retry_ms / 1000,
                    reset_seconds=reset_ms / 1000,
                )
            case ["tokens", taken]:
                raise too_many_tokens(limits.tokens_per_minute or 0, float(taken), reserved)
        today, month = Spent(*map(float, said[1:3])), Spent(*map(float, said[3:5]))
        check_budget(limits, today, month, self._spending.now())
        raise AssertionError("Redis has found a budget spent")

    def _keep(self, name: str, permit_id: str, permit: Permit, *, is_shared: bool) -> None:
        """Hold the place of a request until it ends."""
        self._held.setdefault(name, set()).add(permit_id)
        if self._holding is None:
            self._holding = asyncio.create_task(self._hold_places())

        def end(correction: int) -> None:
            self._held[name].discard(permit_id)
            # Of what was let in here alone, Redis has reserved nothing.
            arguments = (permit_id, correction if is_shared else 0)
            self._start(self._call(_END, name, ("slots", "tokens"), arguments))

        permit.on_end(end)

    async def _hold_places(self) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            for name, held in list(self._held.items()):
                if held:
                    await self._call(_HOLD, name, ("slots",), (round(LEASE_SECONDS * 1000), *held))
                else:
                    del self._held[name]
            await self._send_spent()

    async def _send_spent(self) -> None:
        while self._unsent:
            place, spent = self._unsent.popitem()
            name, periods = place
            names = (f"spent:{periods.day}", f"spent:{periods.month}")
            arguments = (spent.dollars, spent.seconds, SPENT_KEPT_SECONDS)
            if await self._call(_SPEND, name, names, arguments) is None:
                self._unsent[place] = self._unsent.get(place, Spent()) + spent
                return

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(
        self, script: Script, key: str, names: Sequence[str], arguments: Sequence[Any]
    ) -> Any:
        """What a script returns; None while Redis is away."""
        keys = [f"{PREFIX}:{{{key}}}:{name}" for name in names]
        try:
            return await self._state.run(script, keys, arguments)
        except RedisAway:
            return None
