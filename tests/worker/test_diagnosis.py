"""What vLLM prints before it ends, and what its user is told.

The texts are what vLLM 0.32 printed on the CPU, or stand so in its code, in torch's,
transformers' and huggingface_hub's.
"""

import pytest

from worker.diagnosis import diagnose
from worker.errors import ModelNotStarted, VLLMExited
from worker.redaction import redact

MODEL = {"MODEL_NAME": "org/m", "TOKENIZER_NAME": "org/t", "MAX_MODEL_LEN": "100000"}
CONFIG = "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
TAIL = " [type=value_error, input_value=ArgsKwargs((), {'model': ...}), input_type=ArgsKwargs]"
ENGINE = "(EngineCore pid=15457) ERROR 11-28 17:23:19 [core.py:1510] "
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 108.00 MiB. GPU 0 has a total "
    "capacity of 19.57 GiB of which {free} MiB is free. Including non-PyTorch memory, this process "
    "has {own} GiB memory in use. Of the allocated memory 18.6 GiB is allocated by PyTorch"
)


def said(text: str) -> ModelNotStarted:
    failure = diagnose(text.splitlines(), MODEL)
    assert failure is not None
    return failure


IN_CONFIGURATION = {
    "flag": (
        "api_server.py: error: unrecognized arguments: --foo-bar",
        "bad_flag",
        "unrecognized arguments: --foo-bar.",
    ),
    "flag of vllm serve": (
        "vllm serve: error: argument --max-model-len: invalid int value: 'lots'",
        "bad_flag",
        "argument --max-model-len: invalid int value: 'lots'.",
    ),
    "choice": (
        "api_server.py: error: argument --dtype: invalid choice: 'float9' (choose from 'auto')",
        "bad_flag",
        "argument --dtype: invalid choice: 'float9' (choose from 'auto').",
    ),
    "too long for the model": (
        f"{CONFIG}  Value error, User-specified max_model_len (100000) is greater than the derived "
        f"max_model_len (max_position_embeddings=2048.0 or model_max_length=None){TAIL}",
        "context_too_long",
        "takes 2048 tokens",
    ),
    "too long for memory": (
        f"{ENGINE}ValueError: To serve at least one request with the model's max seq len (131072), "
        "(16.0 GiB KV cache is needed, which is larger than the available KV cache memory (4.21 "
        "GiB). Based on the available memory, the estimated maximum model length is 34480. Try "
        "increasing `gpu_memory_utilization`",
        "context_too_long",
        "16.0 GiB of memory, and 4.21 GiB are left for it; at most 34480 fit.",
    ),
    "too long for memory, by no estimate": (
        "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 "
        "GiB KV cache is needed, which is larger than the available KV cache memory (0.21 GiB). T",
        "context_too_long",
        "and 0.21 GiB are left for it. Set",
    ),
    "no memory": (
        f"{ENGINE}ValueError: No available memory for the cache blocks. Try increasing",
        "out_of_memory",
        "GPU_MEMORY_UTILIZATION",
    ),
    "no memory for one token": (
        "ValueError: Cannot auto-fit max_model_len: not enough GPU memory available",
        "out_of_memory",
        "GPU_MEMORY_UTILIZATION",
    ),
    "does not fit": (
        OOM.format(free="105.81", own="19.4"),
        "out_of_memory",
        "does not fit into the GPU's memory of 19.57 GiB.",
    ),
    "does not fit, while warming up": (
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests",
        "out_of_memory",
        "MAX_NUM_SEQS",
    ),
    "no model": (
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1)\n\n"
        "Repository Not Found for url: https://huggingface.co/org/m/resolve/main/config.json.",
        "model_not_found",
        "no model org/m,",
    ),
    "no tokenizer": (
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.\n\n"
        "Repository Not Found for url: https://huggingface.co/api/models/org/t/tree/main.",
        "model_not_found",
        "Correct TOKENIZER_NAME",
    ),
    "no such name": (
        "OSError: org/m is not a local folder and is not a valid model identifier listed on",
        "model_not_found",
        "MODEL_NAME",
    ),
    "empty folder": (
        f"{CONFIG}  Value error, Invalid repository ID or local directory specified: 'org/m'.",
        "model_not_found",
        "config.json",
    ),
    "gated": (
        "huggingface_hub.errors.GatedRepoError: 401 Client Error.\n\nCannot access gated repo for "
        "url https://huggingface.co/org/m/resolve/main/config.json.",
        "model_gated",
        "HF_TOKEN",
    ),
    "bad token": (
        "OSError: There was a specific connection error when trying to load org/m:\n401"
        "\nInvalid credentials in Authorization header",
        "model_gated",
        "HF_TOKEN",
    ),
    "no revision": (
        "huggingface_hub.errors.RevisionNotFoundError: 404 Client Error.\n\nRevision Not Found for "
        "url: https://huggingface.co/org/m/resolve/nope/config.json.",
        "revision_not_found",
        "MODEL_REVISION",
    ),
    "architecture": (
        f"{CONFIG}  Value error, Model architectures ['FooForCausalLM'] are not supported for now. "
        f"Supported architectures: dict_keys(['AfmoeForCausalLM']){TAIL}",
        "architecture_unsupported",
        "['FooForCausalLM'] of org/m",
    ),
    "old architecture": (
        "ValueError: Model architecture MotifForCausalLM was supported in vLLM until v0.10.2, and",
        "architecture_unsupported",
        "MotifForCausalLM",
    ),
    "model type": (
        f"{CONFIG}  Value error, The checkpoint you are trying to load has model type `foonet` but "
        "Transformers does not recognize this architecture. This could be",
        "architecture_unsupported",
        "foonet",
    ),
    "code": (
        f"{CONFIG}  Value error, The repository org/m contains custom code which must be executed "
        "to correctly load the model.",
        "bad_flag",
        "TRUST_REMOTE_CODE=true",
    ),
    "rank of an adapter": (
        f"{ENGINE}ValueError: LoRA rank 64 is greater than max_lora_rank 16.",
        "bad_flag",
        "MAX_LORA_RANK to 64",
    ),
    "no adapter": (
        "vllm.exceptions.LoRAAdapterNotFoundError: Loading lora sql failed: No adapter found for "
        "/models/sql",
        "model_not_found",
        "LoRA adapter for sql. Correct LORA_MODULES",
    ),
    "no weights": (
        f"{ENGINE}RuntimeError: Cannot find any model weights with `org/m`",
        "model_not_found",
        "org/m has no weights",
    ),
    "quantization": (
        f"{CONFIG}  Value error, The quantization method fp8 is not supported for the current GPU. "
        "Minimum capability: 89. Current capability: 80.",
        "bad_flag",
        "fp8 is not supported for the current GPU. Choose another GPU",
    ),
    "more GPUs than there are": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ParallelConfig\n"
        "  Value error, World size (8) is larger than the number of available GPUs (1) in this",
        "bad_flag",
        "World size (8) is larger than the number of available GPUs (1)",
    ),
    "parser": (
        "KeyError: 'invalid tool call parser: nope (chose from { apertus,cohere_command3 })'",
        "bad_flag",
        "invalid tool call parser: nope.",
    ),
    "other settings": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
        f"  Value error, Cannot find the config file for awq{TAIL}",
        "bad_flag",
        "Cannot find the config file for awq",
    ),
    "a field of the settings": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig\n"
        "max_num_seqs\n  Input should be greater than or equal to 1 [type=greater_than_equal, a=0]",
        "bad_flag",
        "Input should be greater than or equal to 1",
    ),
}

IN_THE_HOST = {
    "memory in use": (
        "ValueError: Free memory on device cuda:0 (3.1/23.6 GiB) on startup is less than desired "
        "GPU memory utilization (0.9, 21.3 GiB). Decrease GPU memory utilization",
        "out_of_memory",
        "Only 3.1 of 23.6 GiB",
    ),
    "memory in use, on the CPU": (
        "ValueError: Available memory on node 0 (3.1/23.6 GiB) on startup is less than desired CPU "
        "memory utilization (0.9, 21.3 GiB).",
        "out_of_memory",
        "Only 3.1 of 23.6 GiB",
    ),
    "memory held by others": (OOM.format(free="105.81", own="9.4"), "out_of_memory", "19.57 GiB"),
    "disk": ("OSError: [Errno 28] No space left on device", "disk_full", "container disk"),
    "quota": ("OSError: [Errno 122] Disk quota exceeded: '/x'", "disk_full", "network volume"),
    "driver": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020).",
        "driver",
        "minimal CUDA version",
    ),
    "no GPU": ("RuntimeError: No CUDA GPUs are available", "driver", "another machine"),
    "other GPU": (
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the "
        "device",
        "driver",
        "another GPU",
    ),
}


@pytest.mark.parametrize("name", IN_CONFIGURATION | IN_THE_HOST)
def test_a_known_failure_is_told_with_its_cause(name: str) -> None:
    text, cause, words = (IN_CONFIGURATION | IN_THE_HOST)[name]
    failure = said(f"INFO 11-28 17:22:20 [model.py:1] fine\nTraceback:\n{text}\nlast words\n")
    assert failure.cause == cause
    assert words in str(failure)
    assert failure.in_configuration == (name in IN_CONFIGURATION)
    assert "{" not in str(failure)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RuntimeError: not seen before",
        "(APIServer pid=1) WARNING 11-28 17:22:20 [x.py:1] CUDA out of memory, trying again",
        "INFO 11-28 17:22:20 [x.py:1] error: none",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
    ],
)
def test_what_is_not_known_is_not_guessed(text: str) -> None:
    assert diagnose(text.splitlines(), MODEL) is None


def test_only_a_lack_of_memory_is_worth_a_smaller_start() -> None:
    smaller = {name for name, (text, *_) in IN_CONFIGURATION.items() if said(text).may_fit_smaller}
    assert smaller == {
        *("too long for memory", "too long for memory, by no estimate"),
        *("no memory", "no memory for one token"),
        *("does not fit", "does not fit, while warming up"),
    }


def test_a_secret_and_a_path_of_the_container_are_not_told() -> None:
    secrets = {"HF_TOKEN": "hidden-token", "MY_API_KEY": "hidden-key"}
    text = (
        "unrecognized arguments: --hf-tokn hf_abcdefgh --x hidden-token hidden-key --api-key abc "
        "in /opt/venv/lib/python3.12/site-packages/vllm/x.py and /models/mine/config.json"
    )
    assert redact(text, ["/models/mine/config.json"], secrets) == (
        "unrecognized arguments: --hf-tokn *** --x *** *** --api-key *** "
        "in <path> and /models/mine/config.json"
    )
    assert len(redact("x" * 1000, [], {})) == 403


def last_words(code: int | None, *lines: str) -> str:
    return str(VLLMExited(code, lines))


OLD_MISTAKE = "(APIServer pid=9) ERROR 11-28 17:00:00 [serving.py:1] ValueError: a client's mistake"


def test_the_death_of_the_engine_is_told_and_not_a_clients_old_mistake() -> None:
    """As vLLM 0.32 ends when its inner process is killed: with exit code 0."""
    assert last_words(
        0,
        OLD_MISTAKE,
        "(APIServer pid=9) WARNING 11-28 17:26:22 [core_client.py:817] [shutdown] MPClient: engine "
        "core exited unexpectedly; starting cleanup",
        "(APIServer pid=9) ERROR 11-28 17:26:22 [async_llm.py:906] "
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        "INFO:     Finished server process [9]",
    ) == (
        "vLLM exited with code 0. It said: engine core exited unexpectedly | "
        "EngineDeadError: EngineCore encountered an issue."
    )


def test_what_the_engine_raised_is_told_first() -> None:
    assert last_words(
        1,
        OLD_MISTAKE,
        "(EngineCore pid=7) ERROR 11-28 17:26:21 [core.py:1] torch.AcceleratorError: CUDA error: x",
        "(APIServer pid=9) ERROR 11-28 17:26:22 [a.py:906] EngineDeadError: EngineCore is gone",
    ) == (
        "vLLM exited with code 1. It said: AcceleratorError: CUDA error: x | "
        "EngineDeadError: EngineCore is gone"
    )


def test_without_a_word_of_the_engine_the_last_exceptions_are_told() -> None:
    assert last_words(1, "RuntimeError: first", "chatter") == (
        "vLLM exited with code 1. It said: RuntimeError: first"
    )
