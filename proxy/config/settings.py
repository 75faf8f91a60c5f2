"""Settings of the proxy: the environment, read once at start-up."""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from proxy.api.call import COPIES
from proxy.api.keep_alive import Mode
from proxy.api.rewriting import ReasoningFields
from proxy.api.route_table import ROUTES, check_route
from proxy.config.limits import CallLimit, call_limit
from proxy.config.mistakes import did_you_mean, reason
from proxy.config.values import (
    BLANKS,
    check_admin_key,
    check_base_url,
    check_id,
    check_key,
    check_listen_host,
    check_name,
    check_seal_secret,
    printable,
    trimmed,
)

_ORIGIN = re.compile(
    r"\*|null|(?!http://.*:80$|https://.*:443$)"
    r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?"
)
"""An `Origin` header as browsers send it: in lower case, and without the scheme's own port."""

NO_KEYS = (
    "required: the keys that clients may use; or set PROXY_ALLOW_ANONYMOUS=true if everybody who "
    "can reach this proxy may use the GPU"
)
MAX_POLL_SECONDS = 60
"""How long a poll may be held at most, whatever a model's or a key's keep-alives say."""
JOB_OVERHEAD_BYTES = 16_384
"""What a job's JSON holds besides the client's body, generously."""
MAX_SECONDS = 7 * 24 * 3600
"""The longest time that RunPod lets a job run or wait; no deadline needs to be longer."""
MAX_DAYS = 36_500
MAX_COUNT = 1_000_000
"""More connections, requests or descriptors than any system has."""
MAX_BYTES = 1_000_000_000
MAX_DOLLARS = 1_000_000
DATABASE_FILE = "proxy.sqlite3"
"""In the state folder, made by the first command that keeps something."""
MIN_HEADER_BYTES = 2048
"""An OpenAI SDK's own headers need more than half of it."""
MIN_BODY_BYTES = 256


_CONTRADICTIONS = (
    ("keep_alive_seconds", "idle_timeout_seconds", "a stream may end before its first keep-alive"),
    ("keep_alive_seconds", "send_timeout_seconds", "clients may be given up in a pause"),
    ("queue_timeout_seconds", "total_timeout_seconds", "the total ends a cold start before it"),
    ("first_token_timeout_seconds", "total_timeout_seconds", "the total always passes first"),
    ("idle_timeout_seconds", "total_timeout_seconds", "the total always passes first"),
    ("first_byte_hold_seconds", "total_timeout_seconds", "no stream shows a sign of life"),
    ("max_waiting", "max_requests", "it bounds nothing"),
)
"""Pairs of settings of which the first should not be above the second, and what it means."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _from_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("there is no home folder for this user; name a whole path") from None


def _public_url(value: str) -> str:
    url = check_base_url(value)
    if url.startswith("http://") and not re.match(r"http://(127\.|\[::1\])", url):
        raise ValueError("https:// is needed: anything else workers dial on their own machine only")
    return url


def _database(value: SecretStr) -> SecretStr:
    scheme = value.get_secret_value().partition(":")[0]
    if scheme not in ("sqlite", "postgresql", "postgres"):
        raise ValueError("give sqlite:////folder/file, or postgresql://user:password@host/database")
    if scheme != "sqlite" and importlib.util.find_spec("psycopg") is None:
        raise ValueError("needs a package: pip install 'runpod-openai-proxy[postgres]'")
    return value


def _database_of(url: SecretStr | None, state_dir: Path | None) -> str | None:
    if url is not None:
        return url.get_secret_value()
    if state_dir is None or not (path := state_dir / DATABASE_FILE).is_file():
        return None
    return f"sqlite:///{path}"


def _redis_url(value: SecretStr) -> SecretStr:
    if importlib.util.find_spec("redis") is None:
        raise ValueError("needs a package: pip install 'runpod-openai-proxy[redis]'")
    if not re.match(r"(rediss?|unix)://", value.get_secret_value()):
        raise ValueError(
            "a URL is needed, as in redis://:password@host:6379/0, or rediss:// for TLS"
        )
    return value


RateLimit = Annotated[CallLimit, BeforeValidator(call_limit), NoDecode]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Hold = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
KeepAlive = Annotated[float, Field(ge=1, le=MAX_POLL_SECONDS)]
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Dollars = Annotated[float, Field(gt=0, le=MAX_DOLLARS)]
Port = Annotated[int, Field(gt=0, le=65535)]


class DatabaseSettings(BaseSettings):
    """Where things are kept: all that commands which keep something have to know."""

    model_config = SettingsConfigDict(
        env_prefix="PROXY_",
        env_ignore_empty=True,
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    state_dir: Annotated[Path, AfterValidator(_from_home)] = Field(
        default=Path("~/.local/state/runpod-openai-proxy"), validate_default=True
    )
    """Where the journal of jobs in flight is kept, and a database unless another is named."""
    database_url: Annotated[SecretStr, AfterValidator(_database)] | None = None
    """Where keys are kept that are made while the proxy runs; `proxy.sqlite3` in the state folder
    if there is one."""

    ledger: bool | None = None
    """Keep what each request has used: unless said otherwise wherever there is a database; `true`
    makes one in the state folder."""
    ledger_days: Annotated[int, Field(ge=1, le=MAX_DAYS)] = 90
    """For how long."""

    @property
    def database(self) -> str | None:
        """The URL of the database, if one is named, or the file is there that a command made."""
        return _database_of(self.database_url, self.state_dir)

    @property
    def new_database(self) -> str:
        """The URL of the database that a command makes where there is none."""
        return f"sqlite:///{self.state_dir / DATABASE_FILE}"

    @field_validator("*", mode="before")
    @classmethod
    def _trimmed(cls, value: object) -> object:
        return trimmed(value)


class Settings(DatabaseSettings):
    """What the environment says. The names of RunPod's own variables have no prefix."""

    config: Path | None = None
    """A TOML file with endpoints, models and keys; without it there is the one endpoint."""
    runpod_api_key: SecretStr | None = Field(
        default=None, validation_alias="RUNPOD_API_KEY", validate_default=True
    )
    """The key of the RunPod account that owns the endpoint."""
    rest_api_key: SecretStr | None = Field(default=None, validation_alias="RUNPOD_REST_API_KEY")
    """A key that may read the endpoint's workers and their logs: what a start does is then told."""
    rest_base_url: Annotated[str, AfterValidator(check_base_url)] = Field(
        default="https://api.runpod.io", validation_alias="RUNPOD_REST_BASE_URL"
    )
    """RunPod's REST API, version 2, or an emulator of it."""
    runpod_endpoint_id: Annotated[str, AfterValidator(check_id)] | None = Field(
        default=None, validation_alias="RUNPOD_ENDPOINT_ID", validate_default=True
    )
    """The endpoint that jobs are sent to."""
    runpod_endpoint_base_url: Annotated[str, AfterValidator(check_base_url)] = Field(
        default="https://api.runpod.ai/v2", validation_alias="RUNPOD_ENDPOINT_BASE_URL"
    )
    """RunPod's API, or an emulator of it."""

    allow_anonymous: bool = False
    """Serve without keys: for a proxy that only trusted programs can reach."""
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that may administer as well, separated by commas; those of `api_keys` may not."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(default=(), validate_default=True)
    """The keys that clients may use, separated by commas."""
    models: Annotated[tuple[Annotated[str, AfterValidator(check_name)], ...], NoDecode] = ()
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
    metrics_key: SecretStr | None = None
    """A key that opens `/metrics` and nothing else; of the others then only administrators' do."""
    metrics_public: bool = False
    """Show `/metrics` to everybody who can reach the proxy."""
    wake_shield: bool = False
    """Keep requests that chat UIs send by themselves (titles, tags) from waking a GPU."""
    host: Annotated[str, AfterValidator(check_listen_host)] = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """The port to listen on."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = (
        "info"
    )
    """debug, info, warning or error."""
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = "text"
    """`json`: each line of the log is a JSON object."""
    max_body_bytes: int = Field(
        default=10_000_000 - JOB_OVERHEAD_BYTES, ge=MIN_BODY_BYTES, le=MAX_BYTES
    )
    """The largest request body. RunPod's /run takes 10 MB, our part of the job included."""
    max_buffered_bytes: int = Field(default=512 * 2**20, gt=0, le=1000 * MAX_BYTES)
    """How much memory the bodies of requests and the buffers of answers may hold, all together."""
    max_header_bytes: int = Field(default=65_536, ge=MIN_HEADER_BYTES, le=MAX_BYTES)
    """The largest request line and headers together."""
    max_connections: Count = 4096
    """How many clients may be connected at a time, idle connections included."""
    header_timeout_seconds: Seconds = 10
    """How long a client may take to send its headers."""
    body_timeout_seconds: Seconds = 60
    """How long it may take to send the body after them."""
    send_timeout_seconds: Seconds = 300
    """How long a client may take nothing of its answer before it counts as gone."""

    connect_timeout_seconds: Seconds = 10
    """How long a connection to RunPod may take, and how long RunPod may stay out of reach."""
    queue_timeout_seconds: Seconds = 600
    """How long a job may wait for a worker: the longest cold start."""
    first_token_timeout_seconds: Seconds = 300
    """How long a worker that has the job may take until its first output."""
    idle_timeout_seconds: Seconds = 120
    """How long a worker may be silent between two outputs."""
    total_timeout_seconds: Seconds = 1800
    """How long a request may take, waiting included."""
    failed_start_pause_seconds: Hold = 300
    """How long no other start is tried after one has failed; 0 to try each time."""
    first_byte_hold_seconds: Hold = 0.75
    """How long a stream's headers are held back, so that an early failure keeps its HTTP status."""
    keep_alive_mode: Mode = "comment"
    """What a stream that has nothing to say sends: `comment`, `chunk` (an empty delta) or `off`."""
    keep_alive_seconds: KeepAlive = 10
    """How often it does."""
    cold_start_notice: Literal["off", "reasoning"] = "off"
    """`reasoning`: the stream of a chat says in its reasoning that a worker is waited for."""
    max_requests: Count = 1000
    """How many requests may be under way at a time."""
    max_waiting: Count = 500
    """How many of them may be waiting for a worker."""
    worker_concurrency: Count | None = None
    """How many requests a worker runs at once: keys take turns for its places; unset, none wait."""
    price_per_second: Dollars | None = None
    """What a second of one worker costs, in dollars, where an endpoint's table does not say."""
    daily_budget: Dollars | None = None
    """What an endpoint's workers may cost in a day of UTC, in dollars: then it is paused."""
    worker_idle_seconds: Hold = 10
    """An endpoint's idle timeout at RunPod: so long an idle worker is paid for, for that budget."""
    active_workers: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """How many workers RunPod keeps up all the time, for that budget as well."""
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = None
    """A Redis in which all copies keep the limits of keys together, and share their turns."""
    copies: Count = 1
    """How many copies of the proxy there are: each lets in its share of a key's limits, and of an
    endpoint's window, where they cannot count together."""
    run_limit: RateLimit = CallLimit(1000, 200)
    """RunPod's limit for /run: calls in ten seconds, and at once."""
    stream_limit: RateLimit = CallLimit(2000, 400)
    """The same for /stream: what all live streams together may poll."""
    status_limit: RateLimit = CallLimit(2000, 400)
    """The same for /status."""
    cancel_limit: RateLimit = CallLimit(100, 20)
    """The same for /cancel."""
    direct: bool = False
    """Let workers send tokens by a channel of their own, past the queue. Experimental."""
    direct_port: Port = 8899
    """The workers' port for it, which RunPod exposes."""
    direct_private_addresses: bool = False
    """Dial workers in private networks too, as the emulator's are."""
    public_url: Annotated[str, AfterValidator(_public_url)] | None = None
    """Where workers reach this very copy of the proxy, to open the channel from their side."""
    seal_secret: SecretStr | None = None
    """A secret that the endpoint's workers know too: their jobs are sealed, so that RunPod keeps
    nothing of them that can be read."""
    shutdown_delay_seconds: Hold = 0
    """How long everything is still answered after SIGTERM, with /ready saying 503."""
    drain_seconds: Hold = 30
    """How long running requests may go on after SIGTERM."""

    @property
    def channel_url(self) -> str | None:
        """Where workers open a channel to this proxy, if they may: a WebSocket's URL."""
        return None if self.public_url is None else f"ws{self.public_url[4:]}/channel"

    @property
    def longest_drain_seconds(self) -> float:
        """When the last stream has said how it ended: a poll may be held beyond the grace time."""
        poll_seconds = self.keep_alive_seconds if self.config is None else MAX_POLL_SECONDS
        return self.drain_seconds + poll_seconds + 1

    @field_validator("api_keys", "admin_keys", "models", "routes", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        value = trimmed(value)
        if isinstance(value, str):
            if re.fullmatch(r"\s*\[.*\]\s*", value, re.DOTALL):
                raise ValueError("separate several by commas, without brackets and quotation marks")
            return tuple(part.strip(BLANKS) for part in value.split(",") if part.strip(BLANKS))
        return value

    @field_validator("routes")
    @classmethod
    def _are_routes(cls, routes: tuple[str, ...]) -> tuple[str, ...]:
        if not routes:
            raise ValueError("no route is named, so that nothing would be served")
        for route in routes:
            check_route(route)
        return routes

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            match = _ORIGIN.fullmatch(origin)
            if match is None or int(match[1] or 0) > 65535:
                raise ValueError(
                    f"'{origin}' is no origin as browsers send it: scheme, host and port alone, in "
                    "lower case, as in https://chat.example.com or http://127.0.0.1:3000"
                )
        return origins

    @field_validator("runpod_api_key", "rest_api_key", "metrics_key")
    @classmethod
    def _is_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_key(value.get_secret_value())
        return value

    @field_validator("seal_secret")
    @classmethod
    def _is_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_seal_secret(value.get_secret_value())
        return value

    @field_validator("runpod_api_key", "runpod_endpoint_id", mode="before")
    @classmethod
    def _is_given(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            value = value.strip(BLANKS) or None
        if value is None and info.data.get("config") is None:
            raise ValueError("required, unless PROXY_CONFIG names a file with endpoints")
        return value

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        check = check_key if info.field_name == "api_keys" else check_admin_key
        for number, key in enumerate(keys, start=1):
            try:
                check(key.get_secret_value())
            except ValueError as exc:
                raise ValueError(f"number {number}: {exc}" if len(keys) > 1 else str(exc)) from None
        return keys

    @field_validator("api_keys")
    @classmethod
    def _anybody_may_call(
        cls, keys: tuple[SecretStr, ...], info: ValidationInfo
    ) -> tuple[SecretStr, ...]:
        admins = info.data.get("admin_keys", ())
        if set(keys) & set(admins):
            raise ValueError("one of them is also in PROXY_ADMIN_KEYS, which may do all of it")
        database = _database_of(info.data.get("database_url"), info.data.get("state_dir"))
        # A file may name keys.
        has_others = admins or info.data.get("config") is not None or database is not None
        if not keys and not info.data.get("allow_anonymous", True) and not has_others:
            raise ValueError(NO_KEYS)
        return keys


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
    return [
        f"unknown setting {name}{did_you_mean(name, known)}"
        for name in sorted(environment)
        if name.startswith("PROXY_") and name not in known
    ]


def doubts(settings: Settings) -> list[str]:
    """One sentence for each setting that works, and probably not as it is meant."""
    found = []
    if settings.config is not None:
        for field in ("runpod_endpoint_id", "models"):
            if getattr(settings, field):
                found.append(f"{environment_name(field)} is not used: PROXY_CONFIG names a file")
    if settings.public_url is not None and settings.config is None and not settings.direct:
        found.append("PROXY_PUBLIC_URL has no effect: PROXY_DIRECT is false")
    if settings.allow_anonymous and settings.api_keys:
        found.append("PROXY_ALLOW_ANONYMOUS has no effect: PROXY_API_KEYS names keys")
    if settings.metrics_public and settings.metrics_key is not None:
        found.append("PROXY_METRICS_KEY has no effect: PROXY_METRICS_PUBLIC shows them to all")
    for shorter, longer, effect in _CONTRADICTIONS:
        less, more = getattr(settings, shorter), getattr(settings, longer)
        if less > more:
            names = f"{environment_name(shorter)} ({less:g}) is above {environment_name(longer)}"
            found.append(f"{names} ({more:g}): {effect}")
    if COPIES * settings.max_body_bytes > settings.max_buffered_bytes:
        found.append(
            f"PROXY_MAX_BUFFERED_BYTES ({settings.max_buffered_bytes:,}) is less than twice "
            f"PROXY_MAX_BODY_BYTES ({settings.max_body_bytes:,}): the largest bodies are always "
            "refused, as each counts twice"
        )
    return found


def explained(exc: ValidationError) -> list[str]:
    """What is wrong with the settings, each with the name of its variable."""
    sentences = []
    for error in exc.errors(include_url=False, include_input=False):
        name = environment_name(str(error["loc"][0])) + ": " if error["loc"] else ""
        sentences.append(printable(name + reason(error)))
    return sentences
