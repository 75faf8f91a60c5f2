"""Settings of the proxy: the environment, read once at start-up."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from proxy.allowed import PATTERN, ROUTES
from proxy.keep_alive import Mode
from proxy.pacing import Limit
from proxy.rewriting import ReasoningFields

_LIMIT = re.compile(r"(\d+)/(\d+)")
_ORIGIN = re.compile(r"\*|null|(?!http://.*:80$|https://.*:443$)[a-z][a-z0-9+.-]*://[^\sA-Z/?#@]+")
"""An `Origin` header as browsers send it: in lower case, and without the scheme's own port."""

NO_KEYS = (
    "set PROXY_API_KEYS to the keys clients may use, or PROXY_ALLOW_ANONYMOUS=true "
    "if everybody who can reach this proxy may use the GPU"
)
LONGEST_POLL_SECONDS = 60
"""How long a poll may be held at most, whatever a model's or a key's keep-alives say."""
JOB_OVERHEAD_BYTES = 16_384
"""What a job's JSON holds besides the client's body, generously."""


def _without_trailing_slash(url: str) -> str:
    return url.rstrip("/")


def _limit(value: object) -> object:
    """`2000/400` as a Limit: calls in ten seconds, and at once."""
    if not isinstance(value, str):
        return value
    match = _LIMIT.fullmatch(value.strip())
    if match is None or "0" in match.groups():
        raise ValueError("give calls in ten seconds and calls at once, as in 2000/400")
    return Limit(int(match[1]), int(match[2]))


RateLimit = Annotated[Limit, BeforeValidator(_limit), NoDecode]


class Settings(BaseSettings):
    """What the environment says. The names of RunPod's own variables have no prefix."""

    model_config = SettingsConfigDict(
        env_prefix="PROXY_",
        env_ignore_empty=True,
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    config: Path | None = None
    """A TOML file with endpoints, models and keys; without it there is the one endpoint."""
    runpod_api_key: SecretStr | None = Field(
        default=None, validation_alias="RUNPOD_API_KEY", validate_default=True
    )
    """The key of the RunPod account that owns the endpoint."""
    runpod_endpoint_id: str | None = Field(
        default=None,
        validation_alias="RUNPOD_ENDPOINT_ID",
        pattern=r"^[A-Za-z0-9_-]+$",
        validate_default=True,
    )
    """The endpoint that jobs are sent to."""
    runpod_endpoint_base_url: Annotated[str, AfterValidator(_without_trailing_slash)] = Field(
        default="https://api.runpod.ai/v2",
        validation_alias="RUNPOD_ENDPOINT_BASE_URL",
        pattern=r"^https?://",
    )
    """RunPod's API, or an emulator of it."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """The keys that clients may use, separated by commas."""
    allow_anonymous: bool = False
    """Serve without keys: for a proxy that only trusted programs can reach."""
    models: Annotated[tuple[str, ...], NoDecode] = ()
    """The models the endpoint serves, separated by commas. Empty: any name is handed to vLLM, and
    the list shows the endpoint's id, or the name once an answer has told it."""
    routes: Annotated[tuple[str, ...], NoDecode] = ROUTES
    """The routes that reach a worker, each as in `POST /v1/embeddings`, separated by commas."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """The origins whose pages may call from a browser, separated by commas; `*` for all."""
    reasoning_fields: ReasoningFields = "as_is"
    """`both`: reasoning is sent as `reasoning` and as `reasoning_content`, whichever vLLM says."""
    count_tokens: bool = False
    """Count tokens for the metrics; vLLM is then asked for the usage of every stream."""
    wake_shield: bool = False
    """Keep requests that chat UIs send by themselves (titles, tags) from waking a GPU."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """The port to listen on."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """debug, info, warning or error."""
    max_body_bytes: int = Field(default=10_000_000 - JOB_OVERHEAD_BYTES, gt=0)
    """The largest request body. RunPod's /run takes 10 MB, our part of the job included."""
    max_buffered_bytes: int = Field(default=512 * 2**20, gt=0)
    """How much memory the bodies of requests and the buffers of answers may hold, all together."""
    max_header_bytes: int = Field(default=65_536, gt=0)
    """The largest request line and headers together."""
    max_connections: int = Field(default=4096, gt=0)
    """How many clients may be connected at a time, idle connections included."""
    header_timeout_seconds: float = Field(default=10, gt=0)
    """How long a client may take to send its headers."""
    body_timeout_seconds: float = Field(default=60, gt=0)
    """How long it may take to send the body after them."""
    send_timeout_seconds: float = Field(default=300, gt=0)
    """How long a client may take nothing of its answer before it counts as gone."""

    connect_timeout_seconds: float = Field(default=10, gt=0)
    """How long a connection to RunPod may take, and how long RunPod may stay out of reach."""
    queue_timeout_seconds: float = Field(default=600, gt=0)
    """How long a job may wait for a worker: the longest cold start."""
    first_token_timeout_seconds: float = Field(default=300, gt=0)
    """How long a worker that has the job may take until its first output."""
    idle_timeout_seconds: float = Field(default=120, gt=0)
    """How long a worker may be silent between two outputs."""
    total_timeout_seconds: float = Field(default=1800, gt=0)
    """How long a request may take, waiting included."""
    first_byte_hold_seconds: float = Field(default=0.75, ge=0)
    """How long a stream's headers are held back, so that an early failure keeps its HTTP status."""
    keep_alive_mode: Mode = "comment"
    """What a stream that has nothing to say sends: `comment`, `chunk` (an empty delta) or `off`."""
    keep_alive_seconds: float = Field(default=10, ge=1, le=LONGEST_POLL_SECONDS)
    """How often it does."""
    max_requests: int = Field(default=1000, gt=0)
    """How many requests may be under way at a time."""
    max_waiting: int = Field(default=500, gt=0)
    """How many of them may be waiting for a worker."""
    state_dir: Path = Field(default=Path("~/.local/state/runpod-openai-proxy"))
    """Where the journal of jobs in flight is kept."""
    run_limit: RateLimit = Limit(1000, 200)
    """RunPod's limit for /run: calls in ten seconds, and at once."""
    stream_limit: RateLimit = Limit(2000, 400)
    """The same for /stream: what all live streams together may poll."""
    status_limit: RateLimit = Limit(2000, 400)
    """The same for /status."""
    cancel_limit: RateLimit = Limit(100, 20)
    """The same for /cancel."""
    drain_seconds: float = Field(default=30, ge=0)
    """How long running requests may go on after SIGTERM."""

    @property
    def longest_drain_seconds(self) -> float:
        """When the last stream has said how it ended: a poll may be held beyond the grace time."""
        poll_seconds = self.keep_alive_seconds if self.config is None else LONGEST_POLL_SECONDS
        return self.drain_seconds + poll_seconds + 1

    @field_validator("api_keys", "models", "routes", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("routes")
    @classmethod
    def _are_routes(cls, routes: tuple[str, ...]) -> tuple[str, ...]:
        for route in routes:
            if PATTERN.fullmatch(route) is None:
                raise ValueError(f"'{route}' is not a method and a path, as in POST /v1/embeddings")
        return routes

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if _ORIGIN.fullmatch(origin) is None:
                raise ValueError(
                    f"'{origin}' is no origin as browsers send it: scheme, host and port alone, in "
                    "lower case, as in https://chat.example.com or http://127.0.0.1:3000"
                )
        return origins

    @field_validator("runpod_api_key", mode="before")
    @classmethod
    def _without_line_end(cls, value: object) -> object:
        return value.strip() or None if isinstance(value, str) else value

    @field_validator("runpod_api_key", "runpod_endpoint_id")
    @classmethod
    def _is_given(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.data.get("config") is None:
            raise ValueError("required, unless PROXY_CONFIG names a file with endpoints")
        return value

    @model_validator(mode="after")
    def _keys_or_a_decision(self) -> "Settings":
        if not self.api_keys and not self.allow_anonymous and self.config is None:
            raise ValueError(NO_KEYS)
        return self


def environment_name(field: str) -> str:
    """The variable that a field is read from; a name that is one already stays as it is."""
    if field not in Settings.model_fields:
        return field
    return str(Settings.model_fields[field].validation_alias or f"PROXY_{field.upper()}")


def environment_names() -> list[str]:
    """The names of all variables that Settings reads."""
    return [environment_name(field) for field in Settings.model_fields]


def misspelt(environment: Iterable[str]) -> list[str]:
    """One sentence for each variable that carries our prefix and means nothing to us."""
    known = environment_names()
    sentences = []
    for name in sorted(environment):
        if name.startswith("PROXY_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            sentences.append(f"unknown setting {name}{hint}")
    return sentences
