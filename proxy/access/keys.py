"""Who may call: the client's API key, compared in constant time."""

import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from pydantic import SecretStr

from proxy.config.tables import KeyConfig, digest
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
        return replace(self, priority=UNLIMITED.priority) != UNLIMITED

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
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are others for its calls, of those that `Overrides` names."""

    def may_use(self, model: str) -> bool:
        """Whether it may use this model."""
        return self.models is None or model in self.models


ANYBODY = Key("anybody")


class KeyStore(Protocol):
    """Where further keys are kept."""

    async def find(self, digest: bytes) -> Key | None:
        """The key with this SHA-256; raises InvalidAPIKey and KeysUnavailable."""


class Keys:
    """The API keys that clients may use; with none, and nowhere to keep any, everybody may call.

    Those of the environment may do everything, those of the configuration what it says, and those
    of the store what was said when they were made.
    """

    def __init__(
        self,
        keys: Iterable[SecretStr],
        configured: Mapping[str, KeyConfig],
        store: KeyStore | None = None,
    ) -> None:
        self._store = store
        self._keys = [
            (digest(key), Key(f"key-{number}")) for number, key in enumerate(keys, start=1)
        ]
        self._keys += [(c.digest, _key(name, c)) for name, c in configured.items()]

    def replaced(self, keys: Iterable[SecretStr], configured: Mapping[str, KeyConfig]) -> "Keys":
        """Others in the place of these, with the same store."""
        return Keys(keys, configured, self._store)

    @property
    def are_several(self) -> bool:
        """Whether requests can be of different holders."""
        return len(self._keys) > 1 or self._store is not None

    async def check(self, headers: Mapping[str, str]) -> Key:
        """The key in a request's headers; raises InvalidAPIKey unless it is one of ours.

        It is read from `Authorization: Bearer KEY`, as OpenAI's clients send it, or from
        `x-api-key`, as Anthropic's do.
        """
        if not self._keys and self._store is None:
            return ANYBODY
        key = _bearer(headers.get("authorization", "")) or headers.get("x-api-key", "")
        if not key:
            raise InvalidAPIKey(
                "You didn't provide an API key. Provide it in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        given = digest(SecretStr(key))
        # All digests are compared, so the time taken does not tell which one matched.
        found = [known for own, known in self._keys if hmac.compare_digest(given, own)]
        if found:
            return found[0]
        stored = await self._store.find(given) if self._store is not None else None
        if stored is None:
            raise InvalidAPIKey("Incorrect API key provided.")
        if any(stored.name == known.name for _, known in self._keys):
            log.error(
                "the key %s of the database has another key's name, and is refused", stored.name
            )
            raise InvalidAPIKey("Incorrect API key provided.")
        return stored


def _key(name: str, config: KeyConfig) -> Key:
    models = None if config.models is None else frozenset(config.models)
    limits = KeyLimits(**config.limits) if config.limits else UNLIMITED
    return Key(name, models, config.may_warm, limits, config.may_name_tenants, config.overrides)


def _bearer(header: str) -> str:
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
