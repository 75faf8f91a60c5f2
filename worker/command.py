"""From the environment to vLLM's command line and environment.

Any flag of vLLM can be set by its name in upper case (`--max-model-len` by `MAX_MODEL_LEN`). On
top come the names that RunPod's official image has always had, and `VLLM_EXTRA_ARGS`, which is
appended as it is and therefore wins.
"""

import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from worker.errors import FolderMissing, SettingsError
from worker.flags import Flag, VLLMFlags
from worker.settings import WorkerSettings
from worker.translation import translate

Environment = Mapping[str, str]

ALIASES: Final = {
    "MODEL_NAME": "--model",
    "MODEL_REVISION": "--revision",
    "TOKENIZER_NAME": "--tokenizer",
    "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "--served-model-name",
    "OPENAI_RESPONSE_ROLE": "--response-role",
    "CUSTOM_CHAT_TEMPLATE": "--chat-template",
    "VLLM_CONFIG_FILE": "--config",
}
"""Names of the official image that are not a flag's; they win over the flag's own name."""

RESERVED: Final = frozenset(
    {
        "API_KEY",
        "CONFIG",
        "ENABLE_SSL_REFRESH",
        "GRPC",
        "GRPC_PORT",
        "HEADLESS",
        "HF_TOKEN",
        "HOST",
        "MODEL",
        "PORT",
        "ROOT_PATH",
        "SSL_CA_CERTS",
        "SSL_CERTFILE",
        "SSL_CERT_REQS",
        "SSL_CIPHERS",
        "SSL_KEYFILE",
        "UDS",
    }
)
"""Variables that never become the flag of the same name.

The worker owns how it reaches vLLM, tokens belong in the environment and not on a command line,
and `HOST`, `PORT` or `MODEL` mean something else in many containers.
"""

ZERO_MEANS_UNSET: Final = frozenset({"--max-num-batched-tokens"})
"""RunPod's console fills in 0 here, which vLLM refuses."""

SMALL_BATCH_TOKENS: Final = 2048
"""vLLM's default for GPUs of less than 70 GiB; larger ones have 8192 or 16384."""

NOT_FOR_VLLM: Final = frozenset(
    (
        "VLLM_API_KEY",  # vLLM would ask us for a key; RunPod has checked the caller already
        "VLLM_STARTUP_TIMEOUT",
        "VLLM_EXTRA_ARGS",
        "VLLM_CONFIG_FILE",
        "WORKER_SEAL_SECRET",
        "WORKER_SEAL_SECRET_OLD",
    )
)
"""Variables that vLLM must not see, besides all of `RUNPOD_*`, among them its API key."""

ENGINE_TIMEOUT: Final = "VLLM_ENGINE_READY_TIMEOUT_S"

HF_CACHE: Final = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})
_SECRETS: Final = frozenset({"--api-key", "--hf-token"})


def vllm_arguments(
    environment: Environment, settings: WorkerSettings, flags: VLLMFlags, port: int
) -> list[str]:
    """All of vLLM's command line but the program.

    Raises:
        SettingsError: a value that cannot be right, or no model.
    """
    environment = translate(environment)
    arguments: dict[str, list[str]] = {}
    for flag in flags.flags.values():
        if flag.variable not in RESERVED:
            arguments[flag.name] = _argument(flag, flag.variable, environment)
    for variable, name in ALIASES.items():
        if argument := _argument(flags.flags.get(name), variable, environment):
            arguments[name] = argument
    extra = shlex.split(settings.extra_args)
    _check_model(environment, extra)
    own = ["--host", "127.0.0.1", "--port", str(port)]
    return [word for words in arguments.values() for word in words] + extra + own


def vllm_environment(environment: Environment, settings: WorkerSettings) -> dict[str, str]:
    """The environment vLLM runs in: ours without RunPod's, with a place to keep models.

    A network volume, and RunPod's own model cache, are mounted at `BASE_PATH`; where that is
    missing, Hugging Face's default inside the container stays.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith("RUNPOD_") and name not in NOT_FOR_VLLM
    }
    if settings.base_path.is_dir() and not any(kept.get(name) for name in HF_CACHE):
        kept["HF_HOME"] = str(settings.base_path / "huggingface-cache")
    # vLLM's HTTP server gives its engine ten minutes otherwise, and we may give it longer.
    kept.setdefault(ENGINE_TIMEOUT, str(math.ceil(settings.start_timeout_seconds)))
    return kept


def flag_variables(flags: VLLMFlags) -> set[str]:
    """The variables that become flags."""
    return {flag.variable for flag in flags.flags.values()} - RESERVED | set(ALIASES)


def chosen_settings(environment: Environment, flags: VLLMFlags) -> dict[str, str]:
    """The variables that the user set for vLLM, without blanks around their values."""
    names = flag_variables(flags) | {"VLLM_EXTRA_ARGS"}
    given = ((name, environment.get(name, "").strip()) for name in names)
    return {name: value for name, value in sorted(given) if value}


def smaller_footprint(
    command: list[str], environment: Environment, settings: WorkerSettings
) -> list[str]:
    """Flags with which vLLM needs less GPU memory, of those that the user has not set.

    Without CUDA graphs and with fewer tokens at a time, as RunPod's official image does. vLLM
    refuses fewer tokens than `MAX_NUM_SEQS`, and where prefills are not chunked.
    """
    smaller = []
    if not environment.get("ENFORCE_EAGER") and "--enforce-eager" not in command:
        smaller.append("--enforce-eager")
    taken = (
        "--max-num-batched-tokens",
        "--no-enable-chunked-prefill",
        "--disable-chunked-prefill",  # as vLLM 0.33 has it
    )
    is_free = not any(word.startswith(taken) for word in command)
    if is_free and settings.max_num_seqs <= SMALL_BATCH_TOKENS:
        smaller += ["--max-num-batched-tokens", str(SMALL_BATCH_TOKENS)]
    return smaller


def printable(arguments: list[str]) -> str:
    """A command line for the log, without secrets."""
    words = []
    for word, before in zip(arguments, ["", *arguments], strict=False):
        name, equals, _ = word.partition("=")
        if before in _SECRETS:
            word = "***"
        elif name in _SECRETS and equals:
            word = f"{name}=***"
        words.append(word)
    return shlex.join(words)


def _argument(flag: Flag | None, variable: str, environment: Environment) -> list[str]:
    value = environment.get(variable, "").strip()
    if flag is None or not value or (value == "0" and flag.name in ZERO_MEANS_UNSET):
        return []
    if flag.kind == "bool":
        return _switch(flag, variable, value)
    if flag.kind == "list":
        return [flag.name, *_items(value)]
    return [f"{flag.name}={value}"] if value.startswith("-") else [flag.name, value]


def _switch(flag: Flag, variable: str, value: str) -> list[str]:
    if value.lower() in _TRUE:
        return [flag.name]
    if value.lower() in _FALSE:
        return [flag.off] if flag.off else []
    raise SettingsError(f"{variable} must be true or false, not {value!r}")


def _items(value: str) -> list[str]:
    """The items of a list: a JSON array's, else what commas or spaces set apart."""
    try:
        parsed = json.loads(value)
    except ValueError:
        return [item for item in re.split(r"[,\s]+", value) if item]
    if not isinstance(parsed, list):
        return [value]
    return [item if isinstance(item, str) else json.dumps(item) for item in parsed]


def _check_model(environment: Environment, extra: list[str]) -> None:
    model = environment.get("MODEL_NAME", "").strip()
    if not model and not environment.get("VLLM_CONFIG_FILE") and "--model" not in extra:
        raise SettingsError("MODEL_NAME is not set: a model's name on Hugging Face, or its folder")
    if model.startswith(("/", "./", "../")) and not Path(model).is_dir():
        raise FolderMissing(f"MODEL_NAME is {model}, but there is no such folder")
