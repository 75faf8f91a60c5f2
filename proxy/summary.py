"""What the proxy serves, in a few lines for its log. They hold names, and no key."""

from proxy.config.settings import Settings
from proxy.config.tables import Config, FallbackURL

MAX_NAMES = 20


def summary(config: Config, settings: Settings) -> list[str]:
    """One line for each endpoint, one for the keys, and what may not be as it seems."""
    lines = []
    for name, endpoint in list(config.endpoints.items())[:MAX_NAMES]:
        models = [model for model, its in config.models.items() if its.endpoint == name]
        served = _names(models) if models or not config.open_endpoint else "any model"
        called = name if endpoint.id in ("", name) else f"{name} ({endpoint.id})"
        port = endpoint.port_for_channels(settings)
        channel = f", direct channels to the workers' port {port}" if port else ""
        sealed = ", jobs are sealed" if endpoint.seal_secret(settings) else ""
        budget = f", at most ${endpoint.daily_budget:g} a day" if endpoint.daily_budget else ""
        lines.append(
            f"{endpoint.kind} endpoint {called}, key from {endpoint.api_key_env}"
            f"{channel}{sealed}{budget}: {served}"
        )
    if (left_out := len(config.endpoints) - MAX_NAMES) > 0:
        lines.append(f"and {left_out} more endpoints")
    if leaky := [model for model in config.models if _leaves_the_seal(model, config, settings)]:
        lines.append(f"not sealed where the fallback answers: {_names(leaky)}")
    keys = len(settings.api_keys) + len(settings.admin_keys) + len(config.keys)
    if settings.database and not settings.allow_anonymous:
        named = f"{keys or 'no'} configured {'key' if keys == 1 else 'keys'}"
        lines.append(f"{named} and those of the database may call")
    elif keys:
        lines.append(f"{keys} {'key' if keys == 1 else 'keys'} may call")
    else:
        lines.append("everybody who reaches this proxy may call: PROXY_ALLOW_ANONYMOUS is true")
    return lines


def _leaves_the_seal(model: str, config: Config, settings: Settings) -> bool:
    """Whether its jobs are sealed, and what its fallback is sent is not."""
    table = config.models[model]
    if table.fallback is None or config.endpoints[table.endpoint].seal_secret(settings) is None:
        return False
    if isinstance(table.fallback, FallbackURL):
        return True
    fallback = config.models[table.fallback].endpoint
    return config.endpoints[fallback].seal_secret(settings) is None


def _names(models: list[str]) -> str:
    left_out = len(models) - MAX_NAMES
    more = f" and {left_out} more" if left_out > 0 else ""
    return (", ".join(models[:MAX_NAMES]) or "no model") + more
