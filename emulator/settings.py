"""Settings: what the TOML file and the command line may say, checked, with defaults.

Times are in seconds here. RunPod's own API counts in milliseconds; that stays in `emulator/faces/`.
"""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

Seconds = Annotated[float, Field(gt=0)]

OperationName = Literal[
    "run",
    "runsync",
    "status",
    "stream",
    "cancel",
    "retry",
    "purge-queue",
    "health",
    "metrics",
    "batch",
    "openai",
    "relay",
    "job-take",
    "job-stop",
    "job-stream",
    "job-done",
    "ping",
]
"""The calls that faults and limits can be about; `job-take` is also the one for batches."""

MEGABYTE: Final = 1024 * 1024


QuotaWindow = Literal["minute", "hour", "day"]
"""The windows in which RunPod's REST API counts a caller's calls."""


class Limit(BaseModel):
    """How often an operation may be called; RunPod counts by endpoint and operation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calls_per_10_seconds: int = Field(gt=0)
    concurrent: int | None = Field(default=None, gt=0)


RUNPOD_LIMITS: Final[dict[OperationName, Limit]] = {
    "run": Limit(calls_per_10_seconds=1000, concurrent=200),
    "runsync": Limit(calls_per_10_seconds=2000, concurrent=400),
    "status": Limit(calls_per_10_seconds=2000, concurrent=400),
    "stream": Limit(calls_per_10_seconds=2000, concurrent=400),
    "openai": Limit(calls_per_10_seconds=2000, concurrent=400),
    "cancel": Limit(calls_per_10_seconds=100, concurrent=20),
    "purge-queue": Limit(calls_per_10_seconds=2),
}
"""docs.runpod.io, Send API requests, rate limits (2026-08)."""


class Fault(BaseModel):
    """One rule. A call meets every rule that matches; the first to refuse or drop it decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: OperationName
    endpoint: str = ""
    """Empty: every endpoint."""
    skip: int = Field(default=0, ge=0)
    """So many matching calls go well first."""
    times: int = Field(default=1, ge=0)
    """So many calls are hit; 0 means all of them."""
    chance: float = Field(default=1, gt=0, le=1)
    """How likely a call is hit; those that are spared count for neither `skip` nor `times`."""

    delay_seconds: float = Field(default=0, ge=0)
    """Before anything else happens."""
    status: int | None = Field(default=None, ge=200, le=599)
    """Answer this, and do nothing."""
    body: str = "{}"
    headers: dict[str, str] = {}
    drop: Literal["nothing", "call", "answer"] = "nothing"
    """Reset the connection, before the call has had any effect or after it."""


class LatencySettings(BaseModel):
    """How far away clients and workers are: round trips, each longer by up to the jitter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_seconds: float = Field(default=0, ge=0)
    client_jitter_seconds: float = Field(default=0, ge=0)
    worker_seconds: float = Field(default=0, ge=0)
    worker_jitter_seconds: float = Field(default=0, ge=0)

    def one_way(self, face: Literal["client", "worker"]) -> tuple[float, float]:
        """Half a round trip, and half of its jitter."""
        if face == "client":
            return self.client_seconds / 2, self.client_jitter_seconds / 2
        return self.worker_seconds / 2, self.worker_jitter_seconds / 2


class RoadSettings(BaseModel):
    """What bytes meet on their way to the TCP ports of workers and back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_seconds: float = Field(default=0, ge=0)
    """In each direction."""
    jitter_seconds: float = Field(default=0, ge=0)
    """Each piece is later by up to so much; pieces keep their order."""
    cut_after_bytes: int = Field(default=0, ge=0)
    """Reset a connection before it carries more, both directions together; 0: never."""
    cut_after_seconds: float = Field(default=0, ge=0)
    """Reset connections at random, each after so long on average; 0: never."""
    drop: Literal["nothing", "to_worker", "from_worker", "both"] = "nothing"
    """Lose what is sent, and leave connections open. One that has lost bytes never heals."""
    dials: Literal["accept", "refuse", "ignore"] = "accept"
    """What new connections meet; `ignore` is a firewall, which gives no answer at all."""


class BalancingSettings(BaseModel):
    """What only a load-balancing endpoint has: how its workers are looked at, and its limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ping_interval_seconds: Seconds = 1
    """Between two looks at a worker's health."""
    unhealthy_seconds: Seconds = 8 * 60
    """A worker that is unhealthy for so long, or never begins to answer, is replaced."""
    separate_health_port: bool = False
    """True: a worker gets a PORT_HEALTH of its own; else it is the same as PORT."""
    worker_concurrency: int = Field(default=0, ge=0)
    """Requests that one worker is given at once; 0 is any number."""
    worker_wait_seconds: Seconds = 2 * 60
    """A request that finds no worker for so long is refused with 400."""
    pinned_wait_seconds: Seconds = 5 * 60
    """The same for a request that insists on one worker."""
    processing_seconds: Seconds = 5.5 * 60
    """A request that a worker has not finished by then is cut off, with 524 if nothing came."""
    max_bytes: int = Field(default=30 * MEGABYTE, gt=0)
    """Of a request's body, and of an answer's."""


class EndpointSettings(BaseModel):
    """One serverless endpoint: its workers, how it scales, and how long things last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    kind: Literal["queue", "load-balancing"] = "queue"
    """Whether workers take jobs from a queue, or are HTTP servers that requests are relayed to."""
    worker: str = ""
    """The command of one worker, as in a shell. Empty: workers are started by hand."""
    env: dict[str, str] = {}

    min_workers: int = Field(default=0, ge=0)
    max_workers: int = Field(default=1, ge=0)
    scaler: Literal["request_count", "queue_delay"] = "request_count"
    scaler_value: float = Field(default=4, gt=0)
    """Jobs per worker for `request_count`, seconds in queue for `queue_delay`. RunPod's default."""
    idle_timeout_seconds: Seconds = 5
    cold_start_delay_seconds: float = Field(default=0, ge=0)
    stop_grace_seconds: Seconds = 10
    """From SIGTERM to SIGKILL."""
    price_per_second: float = Field(default=0.00031, ge=0)
    """What the bill says of each second of a worker, in dollars."""
    min_backoff_seconds: Seconds = 1
    """The pause before a worker that crashed is started again; doubled as long as it crashes."""
    max_backoff_seconds: Seconds = 30
    """The longest pause before a worker that keeps crashing is started again."""

    stream_hold_seconds: Seconds = 10
    take_hold_seconds: float = Field(default=20, gt=0, lt=90)
    stop_hold_seconds: float = Field(default=20, gt=0, lt=90)
    stop_delivery: Literal["repeat", "once"] = "repeat"
    """`once` reproduces the lost cancel: the SDK drops a stop that comes right after the take."""
    stop_repeat_seconds: Seconds = 0.5
    ping_interval_seconds: int = Field(default=1, ge=1)
    lease_seconds: Seconds = 40

    execution_timeout_seconds: Seconds = 600
    ttl_seconds: Seconds = 24 * 3600
    retention_seconds: Seconds = 30 * 60
    sync_retention_seconds: Seconds = 60
    max_run_bytes: int = Field(default=10 * MEGABYTE, gt=0)
    max_runsync_bytes: int = Field(default=20 * MEGABYTE, gt=0)
    max_chunk_bytes: int = Field(default=MEGABYTE, ge=4)
    """Text that is larger becomes several chunks."""
    edge_timeout_seconds: Seconds = 100
    """RunPod's edge gives a client's call up after so long, with 524."""
    openai_cut_seconds: Seconds = 5 * 60
    """A call below /openai that takes longer is cut off."""
    rate_limits: bool = False
    """True: RunPod's limits, and those of `limits`, are kept with 429."""
    limits: dict[OperationName, Limit] = {}
    send_retry_after: bool = False
    """Whether a 429 says when to come back; RunPod's own answer is not known."""
    stopping_workers_get_jobs: bool = False
    """True reproduces the lost job: a worker that was told to stop still gets a job on the poll it
    has open, and never runs it."""
    webhook_pauses_seconds: tuple[float, ...] = (5, 15)
    """Between one try to deliver a webhook and the next; as many tries follow the first."""
    late_progress_reopens: bool = False
    """True reproduces RunPod's bug of a late progress update that reopens a finished job."""

    ports: tuple[str, ...] = ()
    """What workers expose, as RunPod's REST API words it: `8899/tcp`."""
    road: RoadSettings = RoadSettings()

    latency: LatencySettings = LatencySettings()
    balancing: BalancingSettings = BalancingSettings()

    def limit(self, operation: OperationName) -> Limit | None:
        """How often the operation may be called; None for any number of times."""
        if not self.rate_limits:
            return None
        return self.limits.get(operation) or RUNPOD_LIMITS.get(operation)

    @property
    def command(self) -> list[str]:
        """The worker's command, split like a shell does."""
        return shlex.split(self.worker)

    @property
    def tcp_ports(self) -> list[int]:
        """The ports that workers expose."""
        return [int(port.removesuffix("/tcp")) for port in self.ports]

    @field_validator("ports")
    @classmethod
    def _ports_are_of_tcp(cls, ports: tuple[str, ...]) -> tuple[str, ...]:
        for port in ports:
            number = port.removesuffix("/tcp")
            if number == port or not re.fullmatch("[1-9][0-9]{,4}", number) or int(number) > 65535:
                raise ValueError(f'{port} is no port like "8899/tcp": others are not imitated')
        return ports

    @field_validator("worker")
    @classmethod
    def _a_shell_could_split_it(cls, worker: str) -> str:
        shlex.split(worker)
        return worker

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError("min_workers is above max_workers")
        return self

    @model_validator(mode="after")
    def _balancing_makes_sense(self) -> Self:
        if self.kind == "queue":
            return self
        if self.scaler == "queue_delay":
            raise ValueError("a load-balancing endpoint has no queue: its scaler is request_count")
        ports = [self.env[name] for name in ("PORT", "PORT_HEALTH") if name in self.env]
        if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
            raise ValueError("PORT and PORT_HEALTH in env are port numbers")
        if ports and self.max_workers > 1:
            raise ValueError("all workers are on one machine: with a port in env there is only one")
        return self


class EmulatorSettings(BaseModel):
    """The whole emulator: where it listens, its key, its endpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8400, gt=0, lt=65536)
    public_url: str = ""
    """The base URL workers are told; empty means host and port."""
    api_key: SecretStr = SecretStr("rpa_local")
    rest_api_key: SecretStr | None = None
    """The key that may ask for workers, logs and the bill; None if the other one may."""
    rest_quotas: dict[QuotaWindow, Annotated[int, Field(gt=0)]] = {}
    """Calls of RunPod's REST API in each window; empty: the caller is exempt."""
    log_dir: Path | None = None
    endpoints: tuple[EndpointSettings, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def base_url(self) -> str:
        """Where workers reach the emulator, without a trailing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    @model_validator(mode="after")
    def _endpoint_ids_differ(self) -> Self:
        ids = [endpoint.id for endpoint in self.endpoints]
        if not ids:
            raise ValueError("there is no endpoint")
        if len(set(ids)) != len(ids):
            raise ValueError("two endpoints have the same id")
        return self


class Scenario(BaseModel):
    """Faults in a file of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    faults: tuple[Fault, ...]


def read_toml(path: Path) -> dict[str, Any]:
    """The unchecked contents of a TOML file."""
    with path.open("rb") as file:
        return tomllib.load(file)
