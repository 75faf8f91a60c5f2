"""Keys that are kept in the database: made, changed and revoked while proxies run.

Of a key only its SHA-256 is kept; the key itself is seen once, when it is made. Every change adds
one to a number, which is all that a running proxy asks for as long as nothing changes.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pydantic import SecretStr
from sqlalchemy import Connection, RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from proxy.access.keys import UNLIMITED, Key, KeyLimits
from proxy.config.tables import digest
from proxy.errors import InvalidAPIKey, KeysUnavailable
from proxy.storage.database import Database, DatabaseAway
from proxy.storage.patience import is_done_within
from proxy.storage.schema import KEYS, REVISIONS

log = logging.getLogger(__name__)

SUBJECT: Final = "keys"
"""The row of the table `revisions` that counts changes of keys."""
REFRESH_SECONDS: Final = 0.4
"""How old what we know may be before it is asked for again, while requests go on."""
MAX_AGE_SECONDS: Final = 0.8
"""How old it may be at most: a key that was revoked is refused within a second."""
PATIENCE_SECONDS: Final = 1.0
"""How long a request waits for a database that does not answer."""
KEY_BYTES: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,100}")
"""It stands in the log, in metrics and in URLs. `key-1` and `admin-1` are the environment's."""


class KeyMistake(ValueError):
    """What was asked for a key cannot be done; the message says why."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it is kept. Times are Unix times in seconds."""

    name: str
    created: int
    models: tuple[str, ...] | None = None
    """The models it may use; None for all."""
    may_warm: bool = False
    may_name_tenants: bool = False
    may_administer: bool = False
    limits: KeyLimits = UNLIMITED
    expires: int | None = None
    revoked: int | None = None

    @property
    def state(self) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        is_expired = self.expires is not None and self.expires <= time.time()
        return "expired" if is_expired else "active"

    @property
    def key(self) -> Key:
        """What its holder may do."""
        models = None if self.models is None else frozenset(self.models)
        return Key(
            self.name,
            models,
            self.may_warm,
            self.limits,
            may_name_tenants=self.may_name_tenants,
            may_administer=self.may_administer,
        )


class StoredKeys:
    """Looks keys up in memory, as the database had them less than a second ago.

    When the database does not answer, no key of it is taken: it may have been revoked.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._keys: dict[bytes, StoredKey] = {}
        self._revision: int | None = None
        self._as_of = float("-inf")
        """When what we know was asked for."""
        self._asking: asyncio.Task[None] | None = None
        self._is_away = False

    async def find(self, digest: bytes) -> Key | None:
        """The key with this SHA-256; None if there is none.

        Raises:
            InvalidAPIKey: there is one, and it has expired or been revoked.
            KeysUnavailable: the database does not answer.
        """
        await self._refresh()
        if (found := self._keys.get(digest)) is None:
            return None
        if found.state != "active":
            raise InvalidAPIKey(f"This API key has {_STATES[found.state]}.")
        return found.key

    async def _refresh(self) -> None:
        now = self._clock()
        if now - self._as_of > REFRESH_SECONDS and self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        if now - self._as_of > MAX_AGE_SECONDS and self._asking is not None:
            await is_done_within(self._asking, PATIENCE_SECONDS)
            if now - self._as_of > MAX_AGE_SECONDS:  # nothing newer has come
                raise KeysUnavailable(
                    "API keys cannot be checked now: their database is away.",
                    retry_after_seconds=1,
                )

    async def _ask(self) -> None:
        as_of = self._clock()
        try:
            revision = await self._database.run(_revision)
            if revision != self._revision:
                self._revision, self._keys = await self._database.run(_all)
        except DatabaseAway as exc:
            if not self._is_away:
                log.error("keys of the database are refused, as it is away: %s", exc)
            self._is_away = True
            return
        if self._is_away:
            log.info("the database of keys is back")
        self._is_away = False
        self._as_of = as_of

    def _asked(self, asking: asyncio.Task[None]) -> None:
        self._asking = None
        if not asking.cancelled() and (failure := asking.exception()) is not None:
            log.error("keys cannot be read from the database", exc_info=failure)


_STATES: Final = {"expired": "expired", "revoked": "been revoked"}


def create(connection: Connection, key: StoredKey) -> str:
    """Keep a new key; returns the key itself, which is not kept.

    Raises:
        KeyMistake: the name cannot be used, or has been.
    """
    if not _NAME.fullmatch(key.name):
        raise KeyMistake("a key's name has 1 to 100 letters, digits and . _ @ -")
    made = _new_key()
    row = {
        "name": key.name,
        "digest": digest(SecretStr(made)),
        "created": key.created,
        "expires": key.expires,
        "models": None if key.models is None else list(key.models),
        "may_warm": key.may_warm,
        "may_name_tenants": key.may_name_tenants,
        "may_administer": key.may_administer,
        "limits": _given(key.limits),
    }
    if connection.scalar(select(KEYS.c.name).where(KEYS.c.name == key.name)) is not None:
        raise KeyMistake(f"there is a key of the name {key.name} already, or was one")
    try:
        connection.execute(insert(KEYS).values(row))
    except IntegrityError:  # made by another copy just now
        raise KeyMistake(f"there is a key of the name {key.name} already") from None
    _note_change(connection)
    return made


def rotate(connection: Connection, name: str) -> str:
    """Give a key another secret, and return it; the former is refused from now on."""
    stored = find(connection, name)
    if stored.revoked is not None:
        raise KeyMistake(f"the key {name} has been revoked")
    made = _new_key()
    changed = update(KEYS).where(KEYS.c.name == name).values(digest=digest(SecretStr(made)))
    connection.execute(changed)
    _note_change(connection)
    return made


def revoke(connection: Connection, name: str) -> StoredKey:
    """Let a key never be used again; revoking it twice does nothing."""
    stored = find(connection, name)
    if stored.revoked is not None:
        return stored
    now = int(time.time())
    connection.execute(update(KEYS).where(KEYS.c.name == name).values(revoked=now))
    _note_change(connection)
    return replace(stored, revoked=now)


def find(connection: Connection, name: str) -> StoredKey:
    """The key of this name; raises KeyMistake if there is none."""
    row = connection.execute(select(KEYS).where(KEYS.c.name == name)).mappings().first()
    if row is None:
        raise KeyMistake(f"there is no key of the name {name}")
    return _stored(row)


def listed(connection: Connection) -> Sequence[StoredKey]:
    """All keys there are and were, by name."""
    return [_stored(row) for row in connection.execute(select(KEYS).order_by("name")).mappings()]


def _all(connection: Connection) -> tuple[int, dict[bytes, StoredKey]]:
    """The number first: what changes in between is then read once more, and not missed."""
    revision = _revision(connection)
    rows = connection.execute(select(KEYS)).mappings()
    return revision, {bytes(row["digest"]): _stored(row) for row in rows}


def _revision(connection: Connection) -> int:
    chosen = select(REVISIONS.c.number).where(REVISIONS.c.subject == SUBJECT)
    return connection.scalar(chosen) or 0


def _note_change(connection: Connection) -> None:
    """Under the lock of the row: two changes at once are two steps."""
    one_more = update(REVISIONS).where(REVISIONS.c.subject == SUBJECT)
    connection.execute(one_more.values(number=REVISIONS.c.number + 1))


def _stored(row: RowMapping) -> StoredKey:
    return StoredKey(
        name=row["name"],
        created=row["created"],
        models=None if row["models"] is None else tuple(row["models"]),
        may_warm=row["may_warm"],
        may_name_tenants=row["may_name_tenants"],
        may_administer=row["may_administer"],
        limits=KeyLimits(**row["limits"]),
        expires=row["expires"],
        revoked=row["revoked"],
    )


def _given(limits: KeyLimits) -> dict[str, Any]:
    return {name: value for name, value in asdict(limits).items() if value is not None}


def _new_key() -> str:
    return f"sk-{secrets.token_urlsafe(KEY_BYTES)}"
