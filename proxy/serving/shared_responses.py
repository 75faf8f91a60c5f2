"""Whose each stored response is, known to all copies of the proxy by Redis."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from proxy.access.keys import Key
from proxy.errors import SharedStateAway
from proxy.serving.models import Model
from proxy.serving.stored_responses import Owner, StoredResponses
from proxy.storage.shared_state import PREFIX, RedisAway, Script, SharedState

KEPT_SECONDS: Final = 24 * 3600
"""How long Redis knows it after it was asked for last; a worker seldom lives as long."""

_NOTE: Final = Script("""
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2])
return redis.call('GET', KEYS[1])
""")
"""Whose a response is, unless that is known; returns whose it is now."""

_FIND: Final = Script("return redis.call('GETEX', KEYS[1], 'EX', ARGV[1])")


class SharedStoredResponses(StoredResponses):
    """The table of owners, in Redis; what this copy has seen is in its memory as well."""

    def __init__(self, state: SharedState) -> None:
        super().__init__()
        self._state = state

    async def note(self, response_id: str, key: Key, model: Model) -> None:
        """As StoredResponses has it; while Redis is away only this copy knows."""
        owner = Owner(key.name, model.name)
        try:
            kept = msgspec.json.encode(owner).decode()
            found = await self._run(_NOTE, response_id, [kept, KEPT_SECONDS])
            owner = msgspec.json.decode(found, type=Owner)
        except RedisAway:
            pass
        self._keep(response_id, owner)

    async def owner_of(self, response_id: str) -> Owner | None:
        """Whose a response is, if any copy knows; raises SharedStateAway."""
        if (known := await super().owner_of(response_id)) is not None:
            return known
        try:
            found = await self._run(_FIND, response_id, [KEPT_SECONDS])
        except RedisAway:
            raise SharedStateAway(
                "It cannot be told now whose this response is. Try again in a moment.",
                retry_after_seconds=1,
            ) from None
        return None if found is None else msgspec.json.decode(found, type=Owner)

    async def _run(self, script: Script, response_id: str, arguments: Sequence[Any]) -> Any:
        name = hashlib.sha256(response_id.encode()).hexdigest()  # a client may choose the id
        return await self._state.run(script, [f"{PREFIX}:response:{name}"], arguments)
