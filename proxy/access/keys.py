"""Who may call: the client's API key, compared in constant time, and what its holder may do."""

import hmac
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Final, Protocol

from pydantic import SecretStr

from proxy.config.settings import Settings
from proxy.config.tables import Config, KeyConfig, digest
from proxy.errors import InvalidAPIKey

log = logging.getLogger(__name__)

_BUDGETS: Final = ("daily_budget", "monthly_budget", "daily_gpu_seconds", "monthly_gpu_seconds")


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much the holder of a key may use; None where there is no bound."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_requests: int | None = None
    """At once."""
    daily_budget: float | None = None
    """In dollars, as a worker's time is priced."""
    monthly_budget: float | None = None
    daily_gpu_seconds: float | None = None
    """Seconds for which workers have jobs of this key."""
    monthly_gpu_seconds: float | None = None
    priority: int = 1
    """How many turns it gets before a full endpoint for each one of a key of priority 1."""

    @property
    def are_any(self) -> bool:
        """Whether anything is bounded."""
        if self is UNLIMITED:  # as of most keys: it is asked for every request
            return False
        return any(getattr(self, name) is not None for name in _BOUNDS)

    @property
    def have_budget(self) -> bool:
        """Whether what it spends is bounded."""
        return any(getattr(self, name) is not None for name in _BUDGETS)

    def shared_by(self, copies: int) -> "KeyLimits":
        """What one of so many copies may let in by itself: at least one of what is counted."""
        if copies == 1:
            return self
        counts = {
            name: max(1, bound // copies)
            for name in ("requests_per_minute", "tokens_per_minute", "max_requests")
            if (bound := getattr(self, name)) is not None
        }
        budgets = {
            name: bound / copies for name in _BUDGETS if (bound := getattr(self, name)) is not None
        }
        return replace(self, **counts, **budgets)


UNLIMITED = KeyLimits()
_BOUNDS: Final = tuple(one.name for one in fields(KeyLimits) if one.name != "priority")


@dataclass(frozen=True, slots=True)
class Key:
    """What the holder of a key may do, and how its client is to be treated."""

    name: str
    """Of this key alone: to know a request of the same holder again."""
    models: frozenset[str] | None = None
    """The models it may use; None for all."""
    may_warm: bool = True
    limits: KeyLimits = UNLIMITED
    may_name_tenants: bool = False
    """Whether a header of its requests may say for whom they are."""
    may_administer: bool = False
    """Whether it may make and revoke keys, and see what all of them do."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are others for its calls, of those that `Overrides` names."""

    def may_use(self, model: str) -> bool:
        """Whether it may use this model."""
        return self.models is None or model in self.models


ANYBODY = Key("anybody")


class KeyMistake(ValueError):
    """What was asked for a key cannot be done; the message says why."""


class NoSuchKey(KeyMistake):
    """There is none of this name."""


@dataclass(frozen=True)
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

    def uncounted(self, config: Config) -> str:
        """What its budget in dollars leaves out, in words; empty if that is nothing."""
        has_budget = self.limits.daily_budget or self.limits.monthly_budget
        if not has_budget or self.state != "active" or not (names := config.unpriced(self.models)):
            return ""
        return (
            f"the budget in dollars of the key {self.name} counts nothing of the endpoint "
            f"{', '.join(names)}: price_per_second is missing"
        )

    @property
    def is_admins(self) -> bool:
        """Whether somebody administers with it now."""
        return self.may_administer and self.state == "active"

    @cached_property
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


class KeyStore(Protocol):
    """Where further keys are kept.

    All of it raises KeysUnavailable, and what names a key NoSuchKey. `keeps_admin`: a change after
    which no key may administer is a KeyMistake.
    """

    async def find(self, digest: bytes) -> Key | None:
        """The key with this SHA-256; raises InvalidAPIKey if it may be used no more."""

    async def listed(self) -> Sequence[StoredKey]:
        """All keys there are and were, by name."""

    async def named(self, name: str) -> StoredKey:
        """One of them."""

    async def create(self, key: StoredKey) -> str:
        """Keep a new one; returns its secret, which is not kept. Raises KeyMistake."""

    async def change(
        self, name: str, changed: Callable[[StoredKey], StoredKey], *, keeps_admin: bool
    ) -> StoredKey:
        """Let its holder do from now on what `changed` says; raises KeyMistake."""

    async def rotate(self, name: str) -> str:
        """Give it another secret, which is returned; raises KeyMistake."""

    async def revoke(self, name: str, *, keeps_admin: bool) -> StoredKey:
        """Let it never be used again; raises KeyMistake."""


class Keys:
    """The API keys that clients may use; with none, everybody may call where that is meant.

    Those of the environment may do everything but administer, for which it names others. Those of
    the configuration may do what it says, and those of the store what was said of them there.
    """

    def __init__(
        self,
        settings: Settings,
        configured: Mapping[str, KeyConfig],
        store: KeyStore | None = None,
    ) -> None:
        self._settings = settings
        self.store = store
        self._keys = [
            (digest(key), Key(f"key-{number}"))
            for number, key in enumerate(settings.api_keys, start=1)
        ]
        self._keys += [(c.digest, _key(name, c)) for name, c in configured.items()]
        self._is_open = settings.allow_anonymous and not self._keys
        """Everybody may call; admins' keys close nothing."""
        self._keys += [
            (digest(key), Key(f"admin-{number}", may_administer=True))
            for number, key in enumerate(settings.admin_keys, start=1)
        ]

    def replaced(self, configured: Mapping[str, KeyConfig]) -> "Keys":
        """Others of the configuration in the place of these, with the same store."""
        return Keys(self._settings, configured, self.store)

    @property
    def are_several(self) -> bool:
        """Whether requests can be of different holders."""
        return len(self._keys) > 1 or self.store is not None

    @property
    def may_have_admin(self) -> bool:
        """Whether any key may administer, or one of the store might."""
        return self.store is not None or any(key.may_administer for _, key in self._keys)

    @property
    def configured(self) -> list[Key]:
        """Those of the environment and of the file."""
        return [key for _, key in self._keys]

    async def check(self, headers: Mapping[str, str]) -> Key:
        """Who may call with a request's headers; raises InvalidAPIKey if nobody."""
        if self._is_open:
            given = _given(headers)
            return (given and self._configured(digest(SecretStr(given)))) or ANYBODY
        return await self.holder(headers)

    async def holder(self, headers: Mapping[str, str]) -> Key:
        """The key in a request's headers; raises InvalidAPIKey unless it is one of ours.

        It is read from `Authorization: Bearer KEY`, as OpenAI's clients send it, or from
        `x-api-key`, as Anthropic's do.
        """
        return await self.find(given_digest(headers))

    async def find(self, digest: bytes) -> Key:
        """The key with this SHA-256; raises InvalidAPIKey unless it is one of ours."""
        if (configured := self._configured(digest)) is not None:
            return configured
        stored = await self.store.find(digest) if self.store is not None else None
        if stored is None:
            raise InvalidAPIKey("Incorrect API key provided.")
        if any(stored.name == known.name for _, known in self._keys):
            log.error(
                "the key %s of the database has another key's name, and is refused", stored.name
            )
            raise InvalidAPIKey("Incorrect API key provided.")
        return stored

    def _configured(self, digest: bytes) -> Key | None:
        # All digests are compared, so the time taken does not tell which one matched.
        found = [known for own, known in self._keys if hmac.compare_digest(digest, own)]
        return found[0] if found else None


def given_digest(headers: Mapping[str, str]) -> bytes:
    """The SHA-256 of the key in a request's headers; raises InvalidAPIKey if there is none."""
    if not (key := _given(headers)):
        raise InvalidAPIKey(
            "You didn't provide an API key. Provide it in an Authorization header using "
            "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    return digest(SecretStr(key))


def has_key(headers: Mapping[str, str]) -> bool:
    """Whether a request has a key in its headers, be it one of ours or not."""
    return bool(_given(headers))


def _given(headers: Mapping[str, str]) -> str:
    return _bearer(headers.get("authorization", "")) or headers.get("x-api-key", "")


def _key(name: str, config: KeyConfig) -> Key:
    return Key(
        name,
        models=None if config.models is None else frozenset(config.models),
        may_warm=config.may_warm,
        limits=KeyLimits(**config.limits) if config.limits else UNLIMITED,
        may_name_tenants=config.may_name_tenants,
        may_administer=config.may_administer,
        overrides=config.overrides,
    )


def _bearer(header: str) -> str:
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
