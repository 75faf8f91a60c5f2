"""The part of `python -m proxy --check` that asks the database and the Redis, if there are any.

Nothing is written, and no table is made: a check is not the first use.
"""

import asyncio
from collections.abc import Awaitable

from proxy.check import Finding, Target
from proxy.config.settings import Settings
from proxy.config.tables import Config


async def check(settings: Settings, config: Config) -> list[Finding]:
    """Ask each of them once; what says why they cannot be used has no password in it."""
    asked = []
    if settings.database is not None:
        asking = _ask_database(settings.database, config)
        asked.append(_finding("database", "PROXY_DATABASE_URL", asking))
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
        asked.append(_finding("Redis", "PROXY_REDIS_URL", _ask_redis(url)))
    return await asyncio.gather(*asked)


async def _finding(name: str, variable: str, asking: Awaitable[str]) -> Finding:
    target = Target(name, "storage", "", variable, "", variable, variable, is_runpod=False)
    if fault := await asking:
        return Finding(target, False, f"fault: {variable}: {fault}")
    return Finding(target, True, "ok: it answers")


async def _ask_database(url: str, config: Config) -> str:
    from proxy.access.stored_keys import listed  # SQLAlchemy is imported where there is a database
    from proxy.storage.database import reach

    fault, keys = await asyncio.to_thread(reach, url, listed)
    return fault or "; ".join(filter(None, (key.uncounted(config) for key in keys or ())))


async def _ask_redis(url: str) -> str:
    from proxy.storage.shared_state import reach  # and redis-py where there is a Redis

    return await reach(url) or ""
