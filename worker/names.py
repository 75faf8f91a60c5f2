"""Names of environment variables that look like settings but are none: misspelt or retired."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Final

from worker.command import RESERVED, Environment, flag_variables
from worker.flags import VLLMFlags
from worker.settings import own_names

CLOSE: Final = 0.87
"""How alike two names must be, from 0 to 1, for one to be taken for a misspelling."""

_BATCHED = "outputs are batched by how fast they can be posted"
_SPECULATIVE = "set SPECULATIVE_CONFIG, a JSON object"
_STRUCTURED = "set STRUCTURED_OUTPUTS_CONFIG, a JSON object"
_ROPE = "set HF_OVERRIDES, a JSON object"
_PREEMPTION = "vLLM always computes anew what it has preempted"
_EXPERTS = "set EPLB_CONFIG, a JSON object"
_GRAPHS = "set COMPILATION_CONFIG, a JSON object with cudagraph_capture_sizes"
_GONE = "vLLM has nothing in its place"

RETIRED: Final = {
    "CUDA_GRAPH_SIZES": _GRAPHS,
    "DEFAULT_BATCH_SIZE": _BATCHED,
    "DEFAULT_BATCH_SIZE_GROWTH_FACTOR": _BATCHED,
    "DEFAULT_MIN_BATCH_SIZE": _BATCHED,
    "DEVICE": "vLLM finds the device by itself",
    "DISABLE_FRONTEND_MULTIPROCESSING": _GONE,
    "DISABLE_LOGGING_REQUEST": "set ENABLE_LOG_REQUESTS",
    "DISABLE_LOG_REQUESTS": "set ENABLE_LOG_REQUESTS",
    "DISABLE_MM_PREPROCESSOR_CACHE": "set MM_PROCESSOR_CACHE_GB=0",
    "ENABLE_LORA_BIAS": _GONE,
    "ENABLE_MULTIMODAL_ENCODER_DATA_PARALLEL": "set MM_ENCODER_TP_MODE=data",
    "ENABLE_REASONING": "REASONING_PARSER alone turns it on",
    "EPLB_LOG_BALANCEDNESS": _EXPERTS,
    "EPLB_STEP_INTERVAL": _EXPERTS,
    "EPLB_WINDOW_SIZE": _EXPERTS,
    "GUIDED_DECODING_BACKEND": _STRUCTURED,
    "GUIDED_DECODING_DISABLE_ADDITIONAL_PROPERTIES": _STRUCTURED,
    "GUIDED_DECODING_DISABLE_ANY_WHITESPACE": _STRUCTURED,
    "GUIDED_DECODING_DISABLE_FALLBACK": _STRUCTURED,
    "LOGITS_PROCESSOR_PATTERN": "set LOGITS_PROCESSORS",
    "LONG_LORA_SCALING_FACTORS": _GONE,
    "LORA_EXTRA_VOCAB_SIZE": _GONE,
    "MAX_CONTEXT_LEN_TO_CAPTURE": _GRAPHS,
    "MAX_LONG_PARTIAL_PREFILLS": _GONE,
    "MAX_NUM_PARTIAL_PREFILLS": _GONE,
    "MAX_SEQ_LEN_TO_CAPTURE": _GRAPHS,
    "NGRAM_PROMPT_LOOKUP_MAX": _SPECULATIVE,
    "NGRAM_PROMPT_LOOKUP_MIN": _SPECULATIVE,
    "NUM_LOOKAHEAD_SLOTS": _SPECULATIVE,
    "NUM_REDUNDANT_EXPERTS": _EXPERTS,
    "NUM_SCHEDULER_STEPS": "set ASYNC_SCHEDULING",
    "NUM_SPECULATIVE_TOKENS": _SPECULATIVE,
    "OVERRIDE_POOLER_CONFIG": "set POOLER_CONFIG, a JSON object",
    "PREEMPTION_CHECK_PERIOD": _PREEMPTION,
    "PREEMPTION_CPU_CAPACITY": _PREEMPTION,
    "PREEMPTION_MODE": _PREEMPTION,
    "QUANTIZATION_PARAM_PATH": "set KV_CACHE_DTYPE; the scales come with the model",
    "RAW_OPENAI_OUTPUT": "outputs always are what vLLM said",
    "ROPE_SCALING": _ROPE,
    "ROPE_THETA": _ROPE,
    "SCHEDULER_DELAY_FACTOR": _GONE,
    "SPECULATIVE_DISABLE_BY_BATCH_SIZE": _SPECULATIVE,
    "SPECULATIVE_DRAFT_TENSOR_PARALLEL_SIZE": _SPECULATIVE,
    "SPECULATIVE_MAX_MODEL_LEN": _SPECULATIVE,
    "SPECULATIVE_METHOD": _SPECULATIVE,
    "SPECULATIVE_MODEL": _SPECULATIVE,
    "SPEC_DECODING_ACCEPTANCE_METHOD": _SPECULATIVE,
    "SWAP_SPACE": "vLLM has none any more",
    "TOKENIZER_POOL_EXTRA_CONFIG": _GONE,
    "TOKENIZER_POOL_SIZE": "set API_SERVER_COUNT",
    "TOKENIZER_POOL_TYPE": _GONE,
    "TRANSFORMERS_VERSION": "the image has one version of it",
    "TYPICAL_ACCEPTANCE_SAMPLER_POSTERIOR_ALPHA": _SPECULATIVE,
    "TYPICAL_ACCEPTANCE_SAMPLER_POSTERIOR_THRESHOLD": _SPECULATIVE,
    "USE_V2_BLOCK_MANAGER": "vLLM has one block manager",
    "VLLM_ATTENTION_BACKEND": "set ATTENTION_BACKEND",
    "WORKER_USE_RAY": "set DISTRIBUTED_EXECUTOR_BACKEND",
}
"""Settings of the official image's older releases that vLLM no longer has, and what to do."""

TRANSLATED: Final = {"TASK": "RUNNER and CONVERT"}
"""Settings of older releases that `worker.translation` understands."""


def complaints(environment: Environment, flags: VLLMFlags) -> Iterator[str]:
    """One line for each variable that is meant as a setting and does nothing.

    A container is full of variables that are none of our business, so only retired names, near
    misses of a setting, and unknown names with our own prefix are worth a line. So is an older name
    that is still understood.
    """
    known = flag_variables(flags) | own_names()
    for name, value in sorted(environment.items()):
        if name in known or name in RESERVED or not value.strip():
            continue
        if name in TRANSLATED:
            yield f"{name} is passed on as {TRANSLATED[name]}"
        elif name in RETIRED:
            yield f"{name} has no effect: {RETIRED[name]}"
        elif near := get_close_matches(name, known, n=1, cutoff=CLOSE):
            yield f"{name} has no effect: did you mean {near[0]}?"
        elif name.startswith("WORKER_"):
            yield f"{name} has no effect: there is no such setting"
