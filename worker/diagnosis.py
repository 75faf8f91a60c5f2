"""Why vLLM did not start, from what it printed last, in words that its user can act on.

The texts are those of vLLM 0.32 and 0.33, of torch, transformers and huggingface_hub. Causes that
lie in the configuration would meet every worker; causes that lie in the host (a full disk, a
driver, memory that others hold) may be gone at the next start, on another machine.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from worker.errors import ModelNotStarted, StartCause
from worker.hub import BAD_CREDENTIALS, BAD_CREDENTIALS_MESSAGE
from worker.redaction import redact

Chosen = Mapping[str, str]
"""The settings that the user chose, by their variables."""


@dataclass(frozen=True)
class Known:
    """A failure that is known by its words; named groups of the pattern may stand in `message`."""

    cause: StartCause
    pattern: str
    message: str
    in_configuration: bool = True
    may_fit_smaller: bool = False


LARGER_GPU: Final = (
    "Take a larger GPU, or more of them with TENSOR_PARALLEL_SIZE, or a smaller or quantized "
    "model; a smaller MAX_MODEL_LEN, MAX_NUM_SEQS or MAX_NUM_BATCHED_TOKENS needs less memory too."
)
CHECK_SETTINGS: Final = "Correct the variable of that name, or VLLM_EXTRA_ARGS."

KNOWN: Final = (
    Known(
        "bad_flag",
        r"^\S*(?:\.py|vllm(?: serve)?): error: (?P<said>.+)",
        f"vLLM refused its command line: {{said}}. {CHECK_SETTINGS}",
    ),
    Known(
        "context_too_long",
        r"max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
        r"\(\w+=(?P<most>\d+)",
        "MAX_MODEL_LEN is {asked}, and the model {model} takes {most} tokens. Set MAX_MODEL_LEN to "
        "{most} or less, or leave it unset.",
    ),
    Known(
        "context_too_long",
        r"max seq len \((?P<asked>\d+)\).*?\((?P<needed>[\d.]+) GiB KV.*?"
        r"memory \((?P<free>[\d.]+) GiB\)(?:.*?maximum model length is (?P<most>\d+))?",
        "A context of {asked} tokens needs {needed} GiB of memory, and {free} GiB are left for it"
        "{at_most}. Set a smaller MAX_MODEL_LEN, or a higher GPU_MEMORY_UTILIZATION, or take a "
        "larger GPU.",
        may_fit_smaller=True,
    ),
    Known(
        "context_too_long",
        r"max seq len \((?P<asked>\d+)\) is larger than the maximum number of tokens that can be "
        r"stored in KV cache \((?P<most>\d+)\)",
        "A context of {asked} tokens does not fit into memory{at_most}. Set a smaller "
        "MAX_MODEL_LEN, or a higher GPU_MEMORY_UTILIZATION, or take a larger GPU.",
        may_fit_smaller=True,
    ),
    Known(
        "out_of_memory",
        r"(?:Free|Available) memory on \w+ \S+ \((?P<free>[\d.]+)/(?P<all>[\d.]+) GiB\)"
        r".*?less than",
        "Only {free} of {all} GiB of memory are free, which is less than GPU_MEMORY_UTILIZATION "
        "asks for. Set a lower GPU_MEMORY_UTILIZATION, or start on a machine whose memory is free.",
        in_configuration=False,
    ),
    Known(
        "out_of_memory",
        r"No available memory for the cache blocks|Cannot auto-fit max_model_len",
        "The model {model} leaves no memory for its context. Set a higher GPU_MEMORY_UTILIZATION. "
        f"{LARGER_GPU}",
        may_fit_smaller=True,
    ),
    Known(
        "out_of_memory",
        r"OutOfMemoryError|(?:CUDA|HIP) out of memory|CUDA error: out of memory"
        r"|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation",
        f"The model {{model}} does not fit into the GPU's memory{{capacity}}. {LARGER_GPU}",
        may_fit_smaller=True,
    ),
    Known(
        "disk_full",
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|\[Errno 122\]"
        r"|Not enough free disk space",
        "The disk is full. Give the endpoint a larger container disk, or a network volume with "
        "room for the model.",
        in_configuration=False,
    ),
    Known("model_gated", BAD_CREDENTIALS, BAD_CREDENTIALS_MESSAGE),
    Known(
        "revision_not_found",
        r"RevisionNotFoundError|Revision Not Found|is not a valid git identifier",
        "Hugging Face has no such revision of {model}. Correct MODEL_REVISION, or leave it unset.",
    ),
    Known(
        "model_gated",
        r"GatedRepoError|(?:Cannot access|trying to access a) gated repo|GatedRepo\b",
        "{model} is gated on Hugging Face. Accept its terms there, and set HF_TOKEN to a token of "
        "that account.",
    ),
    Known(
        "model_not_found",
        r"(?:RepositoryNotFoundError|Repository Not Found)"
        r"(?:(?s:.{0,200}?)https?://[^/\s]+/(?:api/models/)?(?P<repository>[\w.-]+/[\w.-]+))?",
        "Hugging Face has no model {named}, or it is private and HF_TOKEN may not read it. Correct "
        "{variable}, or set HF_TOKEN.",
    ),
    Known(
        "model_not_found",
        r"is not a local folder and is not a valid model identifier|Repo id must "
        r"|Invalid repository ID or local directory",
        "{model} is neither a model on Hugging Face nor a folder with a model's config.json. "
        "Correct MODEL_NAME.",
    ),
    Known(
        "architecture_unsupported",
        r"[Aa]rchitectures? (?P<named>\[[^\]]*\]|\w+) (?:are not supported|failed to be inspected"
        r"|was supported in vLLM until|is not supported)",
        "This release of vLLM does not know the architecture {named} of {model}. Take another "
        "model, or an image with another vLLM.",
    ),
    Known(
        "architecture_unsupported",
        r"model type [`'](?P<named>[\w.-]+)[`'] but Transformers does not recognize",
        "This release of vLLM does not know the architecture {named} of {model}. Take another "
        "model, or an image with another vLLM.",
    ),
    Known(
        "bad_flag",
        r"trust_remote_code=True|contains custom code which must be executed",
        "{model} brings code of its own. If you trust it, set TRUST_REMOTE_CODE=true.",
    ),
    Known(
        "driver",
        r"driver version is insufficient|NVIDIA driver on your system is too old"
        r"|Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device"
        r"|Failed to infer device type|NVML Shared Library Not Found|Can't initialize NVML"
        r"|CUDA unknown error|CUDA error: (?:unknown error|system not yet initialized"
        r"|initialization error|uncorrectable ECC error|forward compatibility)"
        r"|CUDA-capable device\(s\) is/are busy|Error 80[234]: ",
        "The GPU or its driver does not work: {said}. Start on another machine; RunPod's endpoint "
        "settings can ask for a minimal CUDA version.",
        in_configuration=False,
    ),
    Known(
        "driver",
        r"no kernel image is available for execution on the device",
        "This vLLM is not built for this GPU. Choose another GPU, or an image with another vLLM.",
        in_configuration=False,
    ),
    Known(
        "bad_flag",
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank",
        "A LoRA adapter has rank {rank}. Set MAX_LORA_RANK to {rank} or more.",
    ),
    Known(
        "model_not_found",
        r"Loading lora (?P<named>\S+) failed: No adapter found",
        "There is no LoRA adapter for {named}. Correct LORA_MODULES.",
    ),
    Known(
        "model_not_found",
        r"Cannot find any model weights with",
        "{model} has no weights that vLLM reads. Correct MODEL_NAME, or LOAD_FORMAT.",
    ),
    Known(
        "bad_flag",
        r"(?P<said>quantization method \S+ is not supported for the current GPU)",
        "The {said}. Choose another GPU, or another model.",
    ),
    Known(
        "bad_flag",
        r"Bfloat16 is only supported on GPUs with compute capability",
        "This GPU does not know bfloat16. Set DTYPE=half, or choose another GPU.",
    ),
    Known(
        "bad_flag",
        r"(?P<said>invalid (?:tool call|reasoning) parser: \S+)",
        "vLLM refused a setting: {said}. Correct TOOL_CALL_PARSER or REASONING_PARSER.",
    ),
    Known(
        "bad_flag",
        r"validation errors? for \w*(?:Config|Args)\w*\n(?:[\w.\[\]]+\n)?\s*(?P<said>.+)",
        f"vLLM refused its settings: {{said}} {CHECK_SETTINGS}",
    ),
    Known(
        "bad_flag",
        r"(?P<said>The supplied chat template .*doesn't exist)",
        "vLLM refused a setting: {said}. Correct CUSTOM_CHAT_TEMPLATE.",
    ),
)

_LEVEL: Final = re.compile(r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d \d\d:")
_LOG_PREFIX: Final = re.compile(r"^(?:\(\w+[^)]*\) )?(?:ERROR \d\d-\d\d [\d:]+ \[[^\]]*\] ?)?")
_PATTERNS: Final = [(known, re.compile(known.pattern, re.MULTILINE)) for known in KNOWN]
_CAPACITY: Final = re.compile(
    r"total capacity of (?P<all>[\d.]+) GiB of which (?P<free>[\d.]+) (?P<unit>[MG]iB) is free"
    r"(?:.*?this process has (?P<own>[\d.]+) GiB memory in use)?",
    re.DOTALL,
)
MAX_FOREIGN_SHARE: Final = 0.1
"""How much of a GPU's memory others may hold before a lack of memory is laid to them."""


def diagnose(lines: Sequence[str], chosen: Chosen) -> ModelNotStarted | None:
    """The failure that these last lines of vLLM tell of, or None where it is not known."""
    said = [_LOG_PREFIX.sub("", line) for line in lines if not _LEVEL.search(line)]
    text = "\n".join(said)
    for known, pattern in _PATTERNS:
        if match := pattern.search(text):
            return _failure(known, match, text, chosen)
    return None


def _failure(known: Known, match: re.Match[str], text: str, chosen: Chosen) -> ModelNotStarted:
    groups = match.groupdict()
    model = chosen.get("MODEL_NAME") or "the model"
    repository = groups.get("repository") or model
    most = groups.get("most")
    memory = _CAPACITY.search(text)
    words = {
        "named": repository,
        "said": match[0],
        **{name: value for name, value in groups.items() if value},
        "model": model,
        "variable": _variable_of(repository, chosen),
        "at_most": f"; at most {most} fit" if most else "",
        "capacity": f" of {memory['all']} GiB" if memory else "",
    }
    said = words["said"].partition(" [type=")[0].removeprefix("Value error, ")
    words["said"] = redact(said, chosen.values()).rstrip(". ")
    held_by_others = known.cause == "out_of_memory" and memory and _is_held_by_others(memory)
    return ModelNotStarted(
        known.cause,
        known.message.format(**words),
        in_configuration=known.in_configuration and not held_by_others,
        may_fit_smaller=known.may_fit_smaller,
    )


def _variable_of(repository: str, chosen: Chosen) -> str:
    """The variable that names this repository."""
    return next((name for name, value in chosen.items() if repository in value), "MODEL_NAME")


def _is_held_by_others(memory: re.Match[str]) -> bool:
    if not memory["own"]:
        return False
    total, own = float(memory["all"]), float(memory["own"])
    free = float(memory["free"]) / (1024 if memory["unit"] == "MiB" else 1)
    return total - free - own > MAX_FOREIGN_SHARE * total
