"""Names of environment variables that look like settings but are none: misspelt or retired."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Final

from worker.command import ALIASES, RESERVED, Environment
from worker.flags import VLLMFlags
from worker.settings import own_names

CLOSE: Final = 0.87
"""How alike two names must be, from 0 to 1, for one to be taken for a misspelling."""

RETIRED: Final = {
    "DEFAULT_BATCH_SIZE": "outputs are batched by how fast they can be posted",
    "DEFAULT_MIN_BATCH_SIZE": "outputs are batched by how fast they can be posted",
    "DEFAULT_BATCH_SIZE_GROWTH_FACTOR": "outputs are batched by how fast they can be posted",
    "RAW_OPENAI_OUTPUT": "outputs always are what vLLM said",
    "DISABLE_LOG_REQUESTS": "set ENABLE_LOG_REQUESTS",
    "DISABLE_LOGGING_REQUEST": "set ENABLE_LOG_REQUESTS",
    "SPECULATIVE_METHOD": "set SPECULATIVE_CONFIG, a JSON object",
    "SPECULATIVE_MODEL": "set SPECULATIVE_CONFIG, a JSON object",
    "NUM_SPECULATIVE_TOKENS": "set SPECULATIVE_CONFIG, a JSON object",
    "ROPE_SCALING": "set HF_OVERRIDES, a JSON object",
    "ROPE_THETA": "set HF_OVERRIDES, a JSON object",
    "GUIDED_DECODING_BACKEND": "set STRUCTURED_OUTPUTS_CONFIG, a JSON object",
    "VLLM_ATTENTION_BACKEND": "set ATTENTION_BACKEND",
    "WORKER_USE_RAY": "set DISTRIBUTED_EXECUTOR_BACKEND",
    "SWAP_SPACE": "vLLM has none any more",
}
"""Settings of the official image's older releases that vLLM no longer has, and what to do."""


def complaints(environment: Environment, flags: VLLMFlags) -> Iterator[str]:
    """One line for each variable that somebody meant as a setting and that does nothing.

    A container is full of variables that are none of our business, so only retired names, near
    misses of a setting, and unknown names with our own prefix are worth a line.
    """
    known = {flag.variable for flag in flags.flags.values()} - RESERVED
    known |= own_names() | set(ALIASES)
    for name, value in sorted(environment.items()):
        if name in known or name in RESERVED or not value.strip():
            continue
        if name in RETIRED:
            yield f"{name} has no effect: {RETIRED[name]}"
        elif near := get_close_matches(name, known, n=1, cutoff=CLOSE):
            yield f"{name} has no effect: did you mean {near[0]}?"
        elif name.startswith("WORKER_"):
            yield f"{name} has no effect: there is no such setting"
