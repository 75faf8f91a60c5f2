"""The configuration: which endpoints there are, which models they serve, and who may use them.

`PROXY_CONFIG` names a TOML file; without it, the environment describes one endpoint in the same
terms. What a table leaves out is taken from the settings.
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    model_validator,
)

from proxy.api.keep_alive import Mode
from proxy.config.file import Misplaced
from proxy.config.mistakes import did_you_mean
from proxy.config.settings import (
    MAX_COUNT,
    MAX_DOLLARS,
    Count,
    Dollars,
    Hold,
    KeepAlive,
    Port,
    RateLimit,
    Seconds,
    Settings,
)
from proxy.config.values import (
    BLANKS,
    check_base_url,
    check_id,
    check_name,
    check_variable,
    trimmed,
)

LOAD_BALANCING_URL = "https://{id}.api.runpod.ai"
NOT_SEALABLE = (
    "only jobs of a queue with this project's worker can be sealed; load balancing sends requests "
    "to its workers as they are"
)
MAX_TOKENS = 1_000_000_000
MAX_GPU_SECONDS = 1_000_000_000
MAX_PRIORITY = 1_000

Priority = Annotated[int, Field(ge=1, le=MAX_PRIORITY)]
Name = Annotated[str, AfterValidator(check_name)]
Variable = Annotated[str, BeforeValidator(trimmed), AfterValidator(check_variable)]
GPUSeconds = Annotated[float, Field(gt=0, le=MAX_GPU_SECONDS)]
BaseURL = Annotated[str, BeforeValidator(trimmed), AfterValidator(check_base_url)]


def _sha256(value: str) -> str:
    if value and re.fullmatch(r"[0-9a-fA-F]{64}", value) is None:
        raise ValueError("64 hexadecimal digits are needed, as `sha256sum` prints them")
    return value.lower()


def _cron(value: str) -> str:
    try:
        CronSim(value, datetime(2000, 1, 1))
    except CronSimError as exc:
        raise ValueError(
            f"not a cron expression of five fields, as in */10 8-18 * * 1-5: {exc}"
        ) from None
    return value


def _tokenizer(path: Path) -> Path:
    if importlib.util.find_spec("tokenizers") is None:
        raise ValueError("needs a package: pip install 'runpod-openai-proxy[tokenizer]'")
    if not path.is_file():
        raise ValueError("there is no such file; a model's repository has it as tokenizer.json")
    return path


def _url_or_none(value: str) -> str:
    return check_base_url(value) if value else value


class Table(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class EndpointConfig(Table):
    """A RunPod endpoint."""

    kind: Literal["queue", "load-balancing"] = "queue"
    """`queue`: jobs through /run and /stream. `load-balancing`: plain HTTP to a worker."""
    id: Annotated[str, BeforeValidator(trimmed), AfterValidator(check_id)] = ""
    """RunPod's id of the endpoint; the table's name unless said otherwise."""
    url: Annotated[str, BeforeValidator(trimmed), AfterValidator(_url_or_none)] = ""
    """Where it is, without a route; made of the id unless said otherwise."""
    api_key_env: Variable = "RUNPOD_API_KEY"
    """The environment variable that holds the key for it."""
    rest_api_key_env: Variable = ""
    """The one that holds a key which may read its workers' logs; the settings' if empty."""
    max_requests: Count | None = None
    max_waiting: Count | None = None
    worker_concurrency: Count | None = None
    run_limit: RateLimit | None = None
    stream_limit: RateLimit | None = None
    status_limit: RateLimit | None = None
    cancel_limit: RateLimit | None = None
    failed_start_pause_seconds: Hold | None = None
    """How long no other start is tried after one has failed."""
    direct: bool | None = None
    """Whether workers may send tokens by a channel of their own, past the queue."""
    direct_port: Port | None = None
    """The workers' port for it, which RunPod exposes."""
    seal_secret_env: Variable = ""
    """The environment variable that holds the secret shared with its workers, by which its jobs are
    sealed; the settings' if empty."""
    price_per_second: float = Field(default=0, ge=0, le=MAX_DOLLARS)
    """What a second of one worker costs, in dollars; for the metrics, and for budgets."""
    daily_budget: Dollars | None = None
    """What its workers may cost in a day of UTC, in dollars: then it is paused."""
    worker_idle_seconds: Hold | None = None
    """Its idle timeout at RunPod, for which an idle worker is paid for."""
    active_workers: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """How many workers RunPod keeps up all the time."""

    @model_validator(mode="after")
    def _has_a_queue(self) -> Self:
        if self.kind != "queue" and (self.direct is not None or self.direct_port is not None):
            raise ValueError(
                "direct and direct_port are for queues: load balancing has nothing to go past"
            )
        if self.kind != "queue" and self.seal_secret_env:
            raise ValueError(f"seal_secret_env: {NOT_SEALABLE}")
        return self

    def runpod_url(self, name: str, base_url: str) -> str:
        """Where RunPod's own operations are, such as /run and /health."""
        own = self.url if self.kind == "queue" else ""
        return own or f"{base_url}/{self.id or name}"

    def port_for_channels(self, settings: Settings) -> int | None:
        """The workers' port for direct channels; None where there are to be none."""
        is_direct = settings.direct if self.direct is None else self.direct
        has_channels = is_direct and self.kind == "queue"
        return (self.direct_port or settings.direct_port) if has_channels else None

    def seal_secret(self, settings: Settings) -> SecretStr | None:
        """The secret by which its jobs are sealed; None where they are not."""
        return secret(self.seal_secret_env) if self.seal_secret_env else settings.seal_secret

    def worker_url(self, name: str) -> str:
        """Where a load-balancing endpoint's workers answer."""
        return self.url or LOAD_BALANCING_URL.format(id=self.id or name)


class FallbackURL(Table):
    """Any OpenAI-compatible server, to be asked in a model's place."""

    url: BaseURL
    """Its base URL, up to and with `/v1`."""
    model: Name
    """The name it knows the model by."""
    api_key_env: Variable = ""
    """The environment variable that holds the key for it; empty for none."""


def _kind_of_fallback(value: object) -> str | None:
    match value:
        case str():
            return "model"
        case dict() | FallbackURL():
            return "server"
    return None


Fallback = Annotated[
    Annotated[Name, Tag("model")] | Annotated[FallbackURL, Tag("server")],
    Discriminator(
        _kind_of_fallback,
        custom_error_type="fallback",
        custom_error_message="a model of this file is needed, or { url = ..., model = ... }",
    ),
]


class Overrides(Table):
    """Settings that the table of a model, and that of a key, may have for themselves."""

    first_byte_hold_seconds: Hold | None = None
    keep_alive_mode: Mode | None = None
    keep_alive_seconds: KeepAlive | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Those that are given, by the names of the settings."""
        return self.model_dump(include=set(Overrides.model_fields), exclude_none=True)


class ModelConfig(Overrides):
    """A model that clients may name."""

    endpoint: str
    """The table of its endpoint."""
    aliases: tuple[Name, ...] = ()
    """Other names for it, which are not listed."""
    served_as: Name | None = None
    """The name the worker knows it by, if it is another one."""
    loras: tuple[Name, ...] = ()
    """LoRA adapters that the worker serves beside it, by the names it knows them by."""
    max_model_len: int | None = Field(default=None, gt=0, le=MAX_TOKENS)
    """For the list of models; without it, what the worker has told."""
    owned_by: str | None = None
    connect_timeout_seconds: Seconds | None = None
    queue_timeout_seconds: Seconds | None = None
    first_token_timeout_seconds: Seconds | None = None
    idle_timeout_seconds: Seconds | None = None
    total_timeout_seconds: Seconds | None = None
    low_priority: bool = False
    """RunPod starts no further worker for jobs of low priority."""
    fallback: Fallback | None = None
    """Another model of this file, or any OpenAI-compatible server, for when this one fails."""
    fallback_after_seconds: Seconds | None = None
    """How long this one may take to its first byte before the fallback is asked."""
    warm_schedule: Annotated[str, AfterValidator(_cron)] | None = None
    """When to wake a worker without being asked: a cron expression, in local time."""
    tokenizer: Annotated[Path, AfterValidator(_tokenizer)] | None = None
    """Its tokenizer.json, to count tokens behind the wake-up shield while no worker is up."""


class Limits(Table):
    """How much the holder of a key may use; what is left out has no bound."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Annotated[int, Field(gt=0, le=MAX_TOKENS)] | None = None
    """Of prompts and answers together."""
    max_requests: Count | None = None
    """How many may be under way at a time."""
    daily_budget: Dollars | None = None
    monthly_budget: Dollars | None = None
    daily_gpu_seconds: GPUSeconds | None = None
    """Seconds for which workers may have its jobs; those that run side by side add up."""
    monthly_gpu_seconds: GPUSeconds | None = None
    priority: Priority | None = None
    """How many turns it gets for each one of a key of priority 1, which is the least."""

    @property
    def limits(self) -> dict[str, Any]:
        """Those that are given."""
        return self.model_dump(include=set(Limits.model_fields), exclude_none=True)


class KeyConfig(Overrides, Limits):
    """A key that clients may use."""

    env: Variable = ""
    """The environment variable that holds it."""
    sha256: Annotated[str, AfterValidator(_sha256)] = ""
    """Or its SHA-256, in hexadecimal."""
    models: tuple[Name, ...] | None = None
    """The models it may use; all if left out."""
    may_warm: bool = False
    """Whether it may wake a worker without a request (POST /v1/models/{id}/warm)."""
    may_name_tenants: bool = False
    """Whether its requests may say for whom they are, as a gateway's do: each gets turns."""
    may_administer: bool = False
    """Whether it may make and revoke keys, and see what all of them do."""

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key, wherever that comes from."""
        return bytes.fromhex(self.sha256) if self.sha256 else digest(secret(self.env))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.env) == bool(self.sha256):
            raise ValueError("give either env or sha256")
        return self


class Config(Table):
    """The whole of it."""

    endpoints: dict[Name, EndpointConfig] = Field(min_length=1)
    models: dict[Name, ModelConfig] = {}
    keys: dict[Name, KeyConfig] = {}
    open_endpoint: str | None = None
    """The endpoint that names no model is handed to; set by the environment only."""

    def urls(self, settings: Settings) -> set[str]:
        """What the proxy calls."""
        found = set()
        for name, endpoint in self.endpoints.items():
            found.add(endpoint.runpod_url(name, settings.runpod_endpoint_base_url))
            if endpoint.kind == "load-balancing":
                found.add(endpoint.worker_url(name))
        fallbacks = (model.fallback for model in self.models.values())
        return found | {f.url for f in fallbacks if isinstance(f, FallbackURL)}

    def unknown(self, models: Iterable[str] | None) -> list[str]:
        """Of these models those that are none, in words."""
        if models is None or self.open_endpoint is not None:
            return []
        return [_no("model", name, self.models) for name in models if name not in self.models]

    def unpriced(self, models: Iterable[str] | None) -> list[str]:
        """The endpoints of these models, or of all, of whose cost nothing is known."""
        named = self.models if models is None else [m for m in models if m in self.models]
        endpoints = {self.models[model].endpoint for model in named}
        if self.open_endpoint is not None:
            endpoints.add(self.open_endpoint)
        return [n for n, e in self.endpoints.items() if n in endpoints and not e.price_per_second]

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        names: set[str] = set()
        for name, endpoint in self.endpoints.items():
            if not endpoint.id and not (endpoint.url and endpoint.kind == "queue"):
                _check_table_is_id(name)
        for name, model in self.models.items():
            if model.endpoint not in self.endpoints:
                raise Misplaced(
                    _no("endpoint", model.endpoint, self.endpoints), "models", name, "endpoint"
                )
            if isinstance(model.fallback, str) and model.fallback not in self.models:
                raise Misplaced(
                    _no("model", model.fallback, self.models), "models", name, "fallback"
                )
            if model.fallback == name:
                raise Misplaced("a model cannot be its own fallback", "models", name, "fallback")
            if model.fallback is None and model.fallback_after_seconds is not None:
                raise Misplaced("there is no fallback", "models", name, "fallback_after_seconds")
            for told in (name, *model.aliases, *model.loras):
                if told in names:
                    raise Misplaced(f"the name '{told}' stands twice", "models", name)
                names.add(told)
        for name, key in self.keys.items():
            for allowed in key.models or ():
                if allowed not in self.models:
                    raise Misplaced(_no("model", allowed, self.models), "keys", name, "models")
        return self


def secret(name: str) -> SecretStr:
    """The key that an environment variable holds, without the line's end that files have."""
    return SecretStr(os.environ.get(name, "").strip(BLANKS))


def digest(key: SecretStr) -> bytes:
    """The SHA-256 by which a key is known."""
    return hashlib.sha256(key.get_secret_value().encode()).digest()


def _no(kind: str, name: str, known: Iterable[str]) -> str:
    return f"there is no {kind} '{name}'{did_you_mean(name, known)}"


def _check_table_is_id(name: str) -> None:
    try:
        check_id(name)
    except ValueError as exc:
        raise Misplaced(
            f"without `id`, the table's name is the id: {exc}", "endpoints", name
        ) from None
