"""What the workers of endpoints cost, counted by all copies together in Redis.

Whichever copy looks, the time since the last look of any of them is counted, and counted once.
"""

from typing import Final

from proxy.access.spending import Periods, Spending, Spent
from proxy.access.worker_costs import MAX_GAP_SECONDS, WorkerCosts
from proxy.storage.shared_state import PREFIX, RedisAway, Script, SharedState

KEPT_SECONDS: Final = 2 * 24 * 3600

_LOOK: Final = Script("""
local last, today = KEYS[1], KEYS[2]
local workers, price, seconds, max_gap, kept =
    tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
if workers >= 0 then
    local found = redis.call('HMGET', last, 'at', 'workers')
    if found[1] then
        seconds = seconds + found[2] * math.max(0, math.min(max_gap, now - found[1]))
    end
    redis.call('HSET', last, 'at', string.format('%.3f', now), 'workers', workers)
    redis.call('EXPIRE', last, kept)
end
redis.call('HINCRBYFLOAT', today, 'dollars', string.format('%.9f', seconds * price))
redis.call('HINCRBYFLOAT', today, 'seconds', string.format('%.6f', seconds))
redis.call('EXPIRE', today, kept)
return redis.call('HMGET', today, 'dollars', 'seconds')
""")
"""A look: so many workers, -1 if that is not known; returns what they have cost today."""


class SharedWorkerCosts(WorkerCosts):
    """Counts in Redis, and beside it in this copy's file, for when Redis is away or forgets."""

    def __init__(self, spending: Spending, state: SharedState) -> None:
        super().__init__(spending)
        self._state = state

    async def look(
        self, endpoint: str, workers: int | None, *, price: float, job_seconds: float = 0.0
    ) -> Spent:
        """As WorkerCosts has it, for all copies: the larger of both counts, each a whole one."""
        here = await super().look(endpoint, workers, price=price, job_seconds=job_seconds)
        name = f"{PREFIX}:endpoint:{{{endpoint}}}"
        keys = (f"{name}:look", f"{name}:spent:{Periods.of(self.spending.now()).day}")
        seen = -1 if workers is None else workers
        arguments = (seen, price, job_seconds, MAX_GAP_SECONDS, KEPT_SECONDS)
        try:
            dollars, seconds = await self._state.run(_LOOK, keys, arguments)
        except RedisAway:
            return here
        return max(here, Spent(float(dollars), float(seconds)), key=lambda spent: spent.dollars)
