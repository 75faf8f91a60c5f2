"""The configuration: which endpoints there are, which models they serve, and who may use them.

`PROXY_CONFIG` names a TOML file; without it, the environment describes one endpoint in the same
terms. What a table leaves out is taken from the settings.
"""

import hashlib
import operator
import os
import tomllib
from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from proxy.keep_alive import Mode
from proxy.settings import LONGEST_POLL_SECONDS, NO_KEYS, RateLimit, Settings

Seconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class ConfigError(Exception):
    """The configuration cannot be used; the message names the file, the line and the reason."""


def _cron(value: str) -> str:
    try:
        CronSim(value, datetime(2000, 1, 1))
    except CronSimError as exc:
        raise ValueError(f"not a cron expression: {exc}") from None
    return value


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EndpointConfig(_Table):
    """A RunPod endpoint."""

    kind: Literal["queue", "load-balancing"] = "queue"
    """`queue`: jobs through /run and /stream. `load-balancing`: plain HTTP to a worker."""
    id: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")
    """RunPod's id of the endpoint; the table's name unless said otherwise."""
    url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Where it is, without a route; made of the id unless said otherwise."""
    api_key_env: str = "RUNPOD_API_KEY"
    """The environment variable that holds the key for it."""
    max_requests: int | None = Field(default=None, gt=0)
    max_waiting: int | None = Field(default=None, gt=0)
    run_limit: RateLimit | None = None
    stream_limit: RateLimit | None = None
    status_limit: RateLimit | None = None
    cancel_limit: RateLimit | None = None
    price_per_second: float = Field(default=0, ge=0)
    """What a second of one worker costs, in dollars; for the metrics only."""


class FallbackURL(_Table):
    """Any OpenAI-compatible server, to be asked in a model's place."""

    url: str = Field(pattern=r"^https?://\S+$")
    """Its base URL, up to and with `/v1`."""
    model: Name
    """The name it knows the model by."""
    api_key_env: str = ""
    """The environment variable that holds the key for it; empty for none."""


class ModelConfig(_Table):
    """A model that clients may name."""

    endpoint: str
    """The table of its endpoint."""
    aliases: tuple[Name, ...] = ()
    """Other names for it, which are not listed."""
    served_as: Name | None = None
    """The name the worker knows it by, if it is another one."""
    loras: tuple[Name, ...] = ()
    """LoRA adapters that the worker serves beside it, by the names it knows them by."""
    max_model_len: int | None = Field(default=None, gt=0)
    """For the list of models; without it, what the worker has told."""
    owned_by: str | None = None
    connect_timeout_seconds: Seconds | None = None
    queue_timeout_seconds: Seconds | None = None
    first_token_timeout_seconds: Seconds | None = None
    idle_timeout_seconds: Seconds | None = None
    total_timeout_seconds: Seconds | None = None
    first_byte_hold_seconds: float | None = Field(default=None, ge=0)
    keep_alive_mode: Mode | None = None
    keep_alive_seconds: float | None = Field(default=None, ge=1, le=LONGEST_POLL_SECONDS)
    low_priority: bool = False
    """RunPod starts no further worker for jobs of low priority."""
    fallback: str | FallbackURL | None = None
    """Another model of this file, or any OpenAI-compatible server, for when this one fails."""
    fallback_after_seconds: Seconds | None = None
    """How long this one may take to its first byte before the fallback is asked."""
    warm_schedule: Annotated[str, AfterValidator(_cron)] | None = None
    """When to wake a worker without being asked: a cron expression, in local time."""


class KeyConfig(_Table):
    """A key that clients may use."""

    env: str = ""
    """The environment variable that holds it."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Or its SHA-256, in hexadecimal."""
    models: tuple[Name, ...] | None = None
    """The models it may use; all if left out."""
    may_warm: bool = False
    """May it wake a worker without a request (POST /v1/models/{id}/warm)?"""
    first_byte_hold_seconds: float | None = Field(default=None, ge=0)
    keep_alive_mode: Mode | None = None
    keep_alive_seconds: float | None = Field(default=None, ge=1, le=LONGEST_POLL_SECONDS)

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key, wherever that comes from."""
        return bytes.fromhex(self.sha256) if self.sha256 else digest(secret(self.env))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.env) == bool(self.sha256):
            raise ValueError("give either env or sha256")
        return self


class Config(_Table):
    """The whole of it."""

    endpoints: dict[str, EndpointConfig] = Field(min_length=1)
    models: dict[Name, ModelConfig] = {}
    keys: dict[str, KeyConfig] = {}
    open_endpoint: str | None = None
    """The endpoint that names no model is handed to; set by the environment only."""

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        names: set[str] = set()
        for name, model in self.models.items():
            if model.endpoint not in self.endpoints:
                reason = f"there is no endpoint '{model.endpoint}'"
                raise _At(reason, "models", name, "endpoint")
            if isinstance(model.fallback, str) and model.fallback not in self.models:
                raise _At(f"there is no model '{model.fallback}'", "models", name, "fallback")
            if model.fallback == name:
                raise _At("a model cannot be its own fallback", "models", name, "fallback")
            if model.fallback is None and model.fallback_after_seconds is not None:
                raise _At("there is no fallback", "models", name, "fallback_after_seconds")
            for told in (name, *model.aliases, *model.loras):
                if told in names:
                    raise _At(f"the name '{told}' stands twice", "models", name)
                names.add(told)
        for name, key in self.keys.items():
            for allowed in key.models or ():
                if allowed not in self.models:
                    raise _At(f"there is no model '{allowed}'", "keys", name, "models")
        return self


class _At(ValueError):
    """A reason, and the place in the file that it is about."""

    def __init__(self, reason: str, *place: str) -> None:
        super().__init__(reason)
        self.place = place


def load(settings: Settings) -> Config:
    """The configuration that the settings name, or that they are.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong.
    """
    if settings.config is None:
        return _of_environment(settings)
    path = settings.config
    try:
        text = path.read_text()
        config = Config.model_validate(tomllib.loads(text))
        if config.open_endpoint is not None:
            raise _At("Extra inputs are not permitted", "open_endpoint")
        _check_environment(config, settings)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from None
    except ValidationError as exc:
        raise ConfigError("\n".join(_explained(path, text, exc))) from None
    except _At as exc:
        raise ConfigError(_sentence(path, text, exc.place, str(exc))) from None
    return config


def secret(name: str) -> SecretStr:
    """The key that an environment variable holds, without the line's end that files have."""
    return SecretStr(os.environ.get(name, "").strip())


def digest(key: SecretStr) -> bytes:
    """The SHA-256 by which a key is known."""
    return hashlib.sha256(key.get_secret_value().encode()).digest()


def _of_environment(settings: Settings) -> Config:
    endpoint = settings.runpod_endpoint_id
    assert endpoint is not None, "checked by Settings"
    return Config(
        endpoints={endpoint: EndpointConfig()},
        models={name: ModelConfig(endpoint=endpoint) for name in settings.models},
        open_endpoint=None if settings.models else endpoint,
    )


def _check_environment(config: Config, settings: Settings) -> None:
    """Are the keys there that the file only names, and is each of them one holder's alone?"""
    if not settings.api_keys and not config.keys and not settings.allow_anonymous:
        raise _At(NO_KEYS, "keys")
    for number in range(1, len(settings.api_keys) + 1):
        if (name := f"key-{number}") in config.keys:  # two holders must not be taken for one
            raise _At("a key of PROXY_API_KEYS has this name", "keys", name)
    named = {
        ("endpoints", name, "api_key_env"): e.api_key_env for name, e in config.endpoints.items()
    }
    named |= {("keys", name, "env"): key.env for name, key in config.keys.items() if key.env}
    for name, model in config.models.items():
        if isinstance(model.fallback, FallbackURL) and model.fallback.api_key_env:
            named["models", name, "fallback"] = model.fallback.api_key_env
    for place, variable in named.items():
        is_set = variable == "RUNPOD_API_KEY" and settings.runpod_api_key is not None
        if not is_set and not secret(variable).get_secret_value():
            raise _At(f"the environment variable {variable} is not set", *place)
    _check_holders(config, settings)


def _check_holders(config: Config, settings: Settings) -> None:
    """The first of two would take the other's place, and what it may do with it."""
    holders = {digest(key): "one of PROXY_API_KEYS" for key in settings.api_keys}
    for name, key in config.keys.items():
        if (holder := holders.setdefault(key.digest, f"that of {name}")) != f"that of {name}":
            raise _At(f"the key is the same as {holder}", "keys", name)


def _explained(path: Path, text: str, exc: ValidationError) -> list[str]:
    sentences = []
    for error in exc.errors(include_url=False, include_input=False):
        place = tuple(str(part) for part in error["loc"])
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, _At):
            place = cause.place
        sentences.append(_sentence(path, text, place, error["msg"].removeprefix("Value error, ")))
    return sentences


def _sentence(path: Path, text: str, place: Sequence[str], reason: str) -> str:
    return f"{path}, line {_line(text, place)}: {'.'.join(place)}: {reason}"


def _line(text: str, place: Sequence[str]) -> int:
    """The first of the lines that come closest to a place; 1 if none does."""
    found, closest, table = 1, 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("["):
            here = table = _keys(line)
        else:
            here = table + _keys(line.partition("=")[0] + "= 0")
        close = sum(takewhile(bool, map(operator.eq, here, place)))
        if close > closest:
            found, closest = number, close
    return found


def _keys(line: str) -> list[str]:
    """The dotted name in a line of TOML; none if there is no name in it."""
    try:
        inner: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return []
    keys = []
    while isinstance(inner, dict) and inner:
        ((key, inner),) = inner.items()
        keys.append(key)
    return keys
