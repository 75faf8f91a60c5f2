"""The part of `python -m proxy --check` that asks the database and the Redis, if there are any.

Nothing is written, and no table is made: a check is not the first use.
"""

import asyncio
from collections.abc import Awaitable

from proxy.check import Finding, Target
from proxy.config.settings import Settings


async def check(settings: Settings) -> list[Finding]:
    """Ask each of them once; what says why they cannot be used has no password in it."""
    asked = []
    if settings.database is not None:
        asked.append(_finding("database", "PROXY_DATABASE_URL", _ask_database(settings.database)))
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
        asked.append(_finding("Redis", "PROXY_REDIS_URL", _ask_redis(url)))
    return await asyncio.gather(*asked)


async def _finding(name: str, variable: str, asking: Awaitable[str | None]) -> Finding:
    target = Target(name, "storage", "", variable, "", variable, variable, is_runpod=False)
    if (fault := await asking) is not None:
        return Finding(target, False, f"fault: {variable}: {fault}")
    return Finding(target, True, "ok: it answers")


async def _ask_database(url: str) -> str | None:
    from proxy.storage.database import reach  # SQLAlchemy is imported where there is a database

    return await asyncio.to_thread(reach, url)


async def _ask_redis(url: str) -> str | None:
    from proxy.storage.shared_state import reach  # and redis-py where there is a Redis

    return await reach(url)
