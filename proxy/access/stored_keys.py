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
from dataclasses import asdict, replace
from typing import Any, Final, TypeVar

from pydantic import SecretStr
from sqlalchemy import Connection, RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from proxy.access.keys import Key, KeyLimits, KeyMistake, NoSuchKey, StoredKey
from proxy.config.tables import digest
from proxy.errors import InvalidAPIKey, KeysUnavailable
from proxy.storage.database import Database, DatabaseAway
from proxy.storage.patience import is_done_within, within
from proxy.storage.schema import KEYS, REVISIONS

T = TypeVar("T")

log = logging.getLogger(__name__)

SUBJECT: Final = "keys"
"""The row of the table `revisions` that counts changes of keys."""
REFRESH_SECONDS: Final = 0.4
"""How old what we know may be before it is asked for again, while requests go on."""
MAX_AGE_SECONDS: Final = 0.8
"""How old it may be at most: a key that was revoked is refused within a second."""
PATIENCE_SECONDS: Final = 1.0
"""How long a request waits for a database that does not answer."""
BEGIN_SECONDS: Final = 5.0
"""How long a proxy that starts waits for it: it is opened then, and its schema looked at."""
CHANGE_PATIENCE_SECONDS: Final = 10.0
"""How long one waits that changes a key, or lists them."""
KEY_BYTES: Final = 32
_NAME: Final = re.compile(r"(?!\.+$)[A-Za-z0-9._@-]{1,100}")
"""It stands in the log, in metrics and in URLs. `key-1` and `admin-1` are the environment's."""


class StoredKeys:
    """Looks keys up in memory, as the database had them less than a second ago.

    When the database does not answer, no key of it is taken: it may have been revoked.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
        *,
        doubt: Callable[[StoredKey], str] = lambda key: "",
    ) -> None:
        self._database = database
        self._clock = clock
        self._doubt = doubt
        """What the log is told of a key, once; nothing if it is empty."""
        self._told: set[str] = set()
        self._keys: dict[bytes, StoredKey] = {}
        self._revision: int | None = None
        self._as_of = float("-inf")
        """When what we know was so."""
        self._asking: asyncio.Task[None] | None = None
        self._is_away = False

    async def begin(self) -> None:
        """Read them before the first request comes, unless the database takes its time."""
        await is_done_within(self._begin_asking(), BEGIN_SECONDS)

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

    async def listed(self) -> Sequence[StoredKey]:
        """All keys there are and were, by name; raises KeysUnavailable."""
        return await self._do(listed)

    async def named(self, name: str) -> StoredKey:
        """One of them; raises NoSuchKey, KeysUnavailable."""
        return await self._do(lambda connection: find(connection, name))

    async def create(self, key: StoredKey) -> str:
        """As the function below; raises KeysUnavailable as well."""
        return await self._change(lambda connection: create(connection, key))

    async def change(
        self, name: str, changed: Callable[[StoredKey], StoredKey], *, keeps_admin: bool
    ) -> StoredKey:
        """As the function below; raises KeysUnavailable as well."""
        return await self._change(lambda one: change(one, name, changed), keeps_admin)

    async def rotate(self, name: str) -> str:
        """As the function below; raises KeysUnavailable as well."""
        return await self._change(lambda connection: rotate(connection, name))

    async def revoke(self, name: str, *, keeps_admin: bool) -> StoredKey:
        """As the function below; raises KeysUnavailable as well."""
        return await self._change(lambda connection: revoke(connection, name), keeps_admin)

    async def _change(self, work: Callable[[Connection], T], keeps_admin: bool = False) -> T:
        """Do it, and know of it here from now on."""
        done = await self._do(keeping_admin(work) if keeps_admin else work)
        if self._asking is not None:  # what it brings may be from before
            await asyncio.wait({self._asking})
        self._as_of = float("-inf")
        return done

    async def _do(self, work: Callable[[Connection], T]) -> T:
        try:
            return await within(CHANGE_PATIENCE_SECONDS, self._database.run(work))
        except DatabaseAway:
            raise KeysUnavailable(
                "Nothing was done: the database of keys is away.", retry_after_seconds=1
            ) from None
        except TimeoutError:
            raise KeysUnavailable(
                "The database of keys does not answer. It may still do what was asked for: look "
                "at the keys when it is back.",
                retry_after_seconds=1,
            ) from None

    async def _refresh(self) -> None:
        now = self._clock()
        if now - self._as_of > REFRESH_SECONDS and self._asking is None:
            self._begin_asking()
        if now - self._as_of > MAX_AGE_SECONDS and self._asking is not None:
            await is_done_within(self._asking, PATIENCE_SECONDS)
            if now - self._as_of > MAX_AGE_SECONDS:  # nothing newer has come
                raise KeysUnavailable(
                    "API keys cannot be checked now: their database is away.",
                    retry_after_seconds=1,
                )

    def _begin_asking(self) -> asyncio.Task[None]:
        self._asking = asking = asyncio.create_task(self._ask())
        asking.add_done_callback(self._asked)
        return asking

    async def _ask(self) -> None:
        try:
            # The database may have had to be opened first: what it tells is not as old as that.
            as_of, revision = await self._database.look(lambda one: (self._clock(), _looked(one)))
            if revision != self._revision:
                self._revision, self._keys = await self._database.read(_all)
                self._tell_doubts()
        except DatabaseAway as exc:
            if not self._is_away:
                log.error("keys of the database are refused, as it is away: %s", exc)
            self._is_away = True
            return
        if self._is_away:
            log.info("the database of keys is back")
        self._is_away = False
        self._as_of = as_of

    def _tell_doubts(self) -> None:
        said = {self._doubt(key) for key in self._keys.values()} - self._told - {""}
        for sentence in sorted(said):
            log.warning("%s", sentence)
        self._told |= said

    def _asked(self, asking: asyncio.Task[None]) -> None:
        self._asking = None
        if not asking.cancelled() and (failure := asking.exception()) is not None:
            log.error("keys cannot be read from the database", exc_info=failure)


_LAST_ADMIN: Final = (
    "then no key could administer this proxy: let another one do so first, or use "
    "`python -m proxy keys` with --force where it runs"
)
_STATES: Final = {"expired": "expired", "revoked": "been revoked"}


def keeping_admin(work: Callable[[Connection], T]) -> Callable[[Connection], T]:
    """The same work, but a KeyMistake if with it the last key goes that may administer."""

    def keep(connection: Connection) -> T:
        _begin_change(connection)
        had_admin = _has_admin(connection)
        done = work(connection)
        if had_admin and not _has_admin(connection):
            raise KeyMistake(_LAST_ADMIN)  # and nothing is done
        return done

    return keep


def create(connection: Connection, key: StoredKey) -> str:
    """Keep a new key; returns the key itself, which is not kept.

    Raises:
        KeyMistake: the name cannot be used, or has been.
    """
    if not _NAME.fullmatch(key.name):
        raise KeyMistake(
            "a key's name has 1 to 100 letters, digits and . _ @ -, and more than dots"
        )
    _begin_change(connection)
    made = _new_key()
    row = {"name": key.name, "digest": digest(SecretStr(made)), "created": key.created}
    if connection.scalar(select(KEYS.c.name).where(KEYS.c.name == key.name)) is not None:
        raise KeyMistake(f"there is a key of the name {key.name} already, or was one")
    try:
        connection.execute(insert(KEYS).values(row | _terms(key)))
    except IntegrityError:  # made by another copy just now
        raise KeyMistake(f"there is a key of the name {key.name} already") from None
    return made


def change(
    connection: Connection, name: str, changed: Callable[[StoredKey], StoredKey]
) -> StoredKey:
    """Let a key's holder do from now on what `changed` says of it."""
    _begin_change(connection)
    key = changed(_unrevoked(connection, name))
    connection.execute(update(KEYS).where(KEYS.c.name == name).values(_terms(key)))
    return key


def rotate(connection: Connection, name: str) -> str:
    """Give a key another secret, and return it; the former is refused from now on."""
    _begin_change(connection)
    _unrevoked(connection, name)
    made = _new_key()
    changed = update(KEYS).where(KEYS.c.name == name).values(digest=digest(SecretStr(made)))
    connection.execute(changed)
    return made


def revoke(connection: Connection, name: str) -> StoredKey:
    """Let a key never be used again; revoking it twice does nothing."""
    _begin_change(connection)
    stored = find(connection, name)
    if stored.revoked is not None:
        return stored
    now = int(time.time())
    connection.execute(update(KEYS).where(KEYS.c.name == name).values(revoked=now))
    return replace(stored, revoked=now)


def find(connection: Connection, name: str) -> StoredKey:
    """The key of this name; raises NoSuchKey if there is none."""
    found = select(KEYS).where(KEYS.c.name == name)
    row = connection.execute(found).mappings().first() if _NAME.fullmatch(name) else None
    if row is None:
        raise NoSuchKey(f"there is no key of the name {name}")
    return _stored(row)


def _unrevoked(connection: Connection, name: str) -> StoredKey:
    stored = find(connection, name)
    if stored.revoked is not None:
        raise KeyMistake(f"the key {name} has been revoked")
    return stored


def listed(connection: Connection) -> Sequence[StoredKey]:
    """All keys there are and were, by name."""
    return [_stored(row) for row in connection.execute(select(KEYS).order_by("name")).mappings()]


def _has_admin(connection: Connection) -> bool:
    return any(key.is_admins for key in listed(connection))


def _all(connection: Connection) -> tuple[int, dict[bytes, StoredKey]]:
    """The number first: what changes in between is then read once more, and not missed."""
    revision = _revision(connection)
    rows = connection.execute(select(KEYS)).mappings()
    return revision, {bytes(row["digest"]): _stored(row) for row in rows}


def _looked(cursor: Any) -> int:
    """As `_revision`, by the driver's own means."""
    cursor.execute("SELECT number FROM revisions WHERE subject = 'keys'")
    row = cursor.fetchone()
    return row[0] if row else 0


def _revision(connection: Connection) -> int:
    chosen = select(REVISIONS.c.number).where(REVISIONS.c.subject == SUBJECT)
    return connection.scalar(chosen) or 0


def _begin_change(connection: Connection) -> None:
    """Running proxies will know of it; under the lock of the row, changes come one by one."""
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


def _terms(key: StoredKey) -> dict[str, Any]:
    """What may be changed of it, as the table has it."""
    return {
        "expires": key.expires,
        "models": None if key.models is None else list(key.models),
        "may_warm": key.may_warm,
        "may_name_tenants": key.may_name_tenants,
        "may_administer": key.may_administer,
        "limits": _given(key.limits),
    }


def _given(limits: KeyLimits) -> dict[str, Any]:
    return {name: value for name, value in asdict(limits).items() if value is not None}


def _new_key() -> str:
    return f"sk-{secrets.token_urlsafe(KEY_BYTES)}"
