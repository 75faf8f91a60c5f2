"""Reads the configuration, and checks what its tables alone cannot tell."""

from collections.abc import Callable, Sequence

from pydantic import ValidationError

from proxy.config.file import ConfigError, ConfigFile, Misplaced
from proxy.config.settings import NO_KEYS, Settings
from proxy.config.tables import (
    NOT_SEALABLE,
    Config,
    EndpointConfig,
    FallbackURL,
    KeyConfig,
    ModelConfig,
    Table,
    digest,
    secret,
)
from proxy.config.values import check_admin_key, check_key, check_seal_secret, shown_variable


def load(settings: Settings) -> Config:
    """The configuration that the settings name, or that they are.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong.
    """
    if settings.config is None:
        return _of_environment(settings)
    file = ConfigFile(settings.config)
    try:
        config = Config.model_validate(file.parsed())
        if config.open_endpoint is not None:
            raise Misplaced("there is no such field", "open_endpoint")
        _check_environment(config, settings)
        config = _priced(config, settings)
        _check_prices(config)
    except ValidationError as exc:
        raise ConfigError(*file.explained(exc, _fields)) from None
    except Misplaced as exc:
        raise ConfigError(file.sentence(exc.place, str(exc))) from None
    return config


def _of_environment(settings: Settings) -> Config:
    endpoint = settings.runpod_endpoint_id
    assert endpoint is not None, "checked by Settings"
    config = Config(
        endpoints={endpoint: EndpointConfig()},
        models={name: ModelConfig(endpoint=endpoint) for name in settings.models},
        open_endpoint=None if settings.models else endpoint,
    )
    if settings.daily_budget and not settings.price_per_second:
        raise ConfigError("PROXY_DAILY_BUDGET: needs PROXY_PRICE_PER_SECOND, in dollars")
    return _priced(config, settings)


def _priced(config: Config, settings: Settings) -> Config:
    """With the settings' price and budget, and what they take, where an endpoint's has none."""
    endpoints = {
        name: endpoint.model_copy(
            update={
                "price_per_second": endpoint.price_per_second or settings.price_per_second or 0,
                "daily_budget": endpoint.daily_budget or settings.daily_budget,
                **{
                    field: getattr(settings, field)
                    for field in ("worker_idle_seconds", "active_workers")
                    if getattr(endpoint, field) is None
                },
            }
        )
        for name, endpoint in config.endpoints.items()
    }
    return config.model_copy(update={"endpoints": endpoints})


def _check_prices(config: Config) -> None:
    """A budget in dollars needs to know what the workers cost that spend it."""
    for name, endpoint in config.endpoints.items():
        if endpoint.daily_budget and not endpoint.price_per_second:
            raise Misplaced(
                f"${endpoint.daily_budget:g} a day needs a price_per_second of the endpoint, or "
                "PROXY_PRICE_PER_SECOND",
                *("endpoints", name, "daily_budget"),
            )
    for name, key in config.keys.items():
        budgets = [field for field in ("daily_budget", "monthly_budget") if getattr(key, field)]
        if budgets and (unpriced := config.unpriced(key.models)):
            raise Misplaced(
                f"the endpoint '{unpriced[0]}' needs a price_per_second for that",
                *("keys", name, budgets[0]),
            )


def _check_environment(config: Config, settings: Settings) -> None:
    """Check that the keys which the file only names are there, and are each one holder's alone."""
    has_keys = settings.api_keys or settings.admin_keys or config.keys or settings.database
    if not has_keys and not settings.allow_anonymous:
        raise Misplaced(f"{NO_KEYS}. PROXY_API_KEYS may name them as well", "keys")
    for prefix, variable, keys in (
        ("key", "PROXY_API_KEYS", settings.api_keys),
        ("admin", "PROXY_ADMIN_KEYS", settings.admin_keys),
    ):
        for number in range(1, len(keys) + 1):
            if (name := f"{prefix}-{number}") in config.keys:  # two holders taken for one
                raise Misplaced(f"a key of {variable} has this name", "keys", name)
    named = {
        ("endpoints", name, "api_key_env"): e.api_key_env for name, e in config.endpoints.items()
    }
    named |= {
        ("endpoints", name, "rest_api_key_env"): e.rest_api_key_env
        for name, e in config.endpoints.items()
        if e.rest_api_key_env
    }
    named |= {
        ("endpoints", name, "seal_secret_env"): e.seal_secret_env
        for name, e in config.endpoints.items()
        if e.seal_secret_env
    }
    named |= {("keys", name, "env"): key.env for name, key in config.keys.items() if key.env}
    for name, model in config.models.items():
        if isinstance(model.fallback, FallbackURL) and model.fallback.api_key_env:
            named["models", name, "fallback"] = model.fallback.api_key_env
    for place, variable in named.items():
        if variable == "RUNPOD_API_KEY" and settings.runpod_api_key is not None:
            continue
        key = secret(variable).get_secret_value()
        if not key:
            shown = shown_variable(variable)
            raise Misplaced(f"the environment variable {shown} is not set", *place)
        try:
            _check_of(place, config)(key)
        except ValueError as exc:
            raise Misplaced(f"the environment variable {variable}: {exc}", *place) from None
    _check_holders(config, settings)
    for name, e in config.endpoints.items():
        if settings.seal_secret is not None and e.kind != "queue":
            raise Misplaced(f"PROXY_SEAL_SECRET is set, but {NOT_SEALABLE}", "endpoints", name)


def _check_of(place: tuple[str, ...], config: Config) -> Callable[[str], str]:
    """What the value of the variable that is named here has to be."""
    if place[-1] == "seal_secret_env":
        return check_seal_secret
    is_admins = place[0] == "keys" and config.keys[place[1]].may_administer
    return check_admin_key if is_admins else check_key


def _check_holders(config: Config, settings: Settings) -> None:
    """The first of two would take the other's place, and what it may do with it."""
    holders = {digest(key): "one of PROXY_API_KEYS" for key in settings.api_keys}
    holders |= {digest(key): "one of PROXY_ADMIN_KEYS" for key in settings.admin_keys}
    for name, key in config.keys.items():
        if (holder := holders.setdefault(key.digest, f"that of {name}")) != f"that of {name}":
            raise Misplaced(f"the key is the same as {holder}", "keys", name)


def _fields(place: Sequence[str]) -> list[str]:
    """The names that may stand where this one does."""
    if len(place) == 1:
        return ["endpoints", "models", "keys"]
    tables: dict[str, type[Table]] = {
        "endpoints": EndpointConfig,
        "models": ModelConfig,
        "keys": KeyConfig,
    }
    table = FallbackURL if len(place) == 4 else tables[place[0]]
    return list(table.model_fields)
