"""Why a job failed: the worker's `error`, in whichever form it arrives, as an error of ours.

The SDK applies `str()` to the error object a handler yields, so an error of RunPod's worker-vllm
arrives as a Python literal; the error of a handler that returns is JSON in a string; a handler
that raises leaves its message and a traceback; the platform itself leaves plain text.

A start that failed is told in two forms beside our own worker's, which is in its frames:

- RunPod's worker-vllm (August 2026, src/startup_errors.py) stays up and ends each job with an
  error object of the type `startup_error`, whose message has the cause and what to change;
- runpod 2 (2.0.0rc2, serverless/modules/rp_prestart.py) ends the jobs it holds with JSON text,
  event `prestart_failed` or, at a shutdown, `prestart_cancelled`. Its `logs` and `error_traceback`
  may hold anything, prompts too, and are never read.
"""

import ast
import re
from contextlib import suppress
from typing import Any

import msgspec

from proxy.backends.runpod.scrubbing import scrubbed
from proxy.errors import (
    ModelStartFailed,
    ProxyError,
    SealingFailed,
    StartCancelled,
    VLLMError,
    WorkerFailed,
)
from proxy.foreign_json import encode

MAX_LITERAL_CHARS = 100_000
"""`ast.literal_eval` takes memory out of proportion to its input; errors are short."""

MAX_CAUSE_CHARS = 1_200
"""worker-vllm's longest cause has some 900."""
MAX_HOOK_ERROR_CHARS = 400
IN_THE_LOG = "The worker's log, in RunPod's console, has the details."

NOT_SEALED = (
    "The endpoint's jobs are sealed, and the answer is not. Its worker is another one than this "
    "project's, or one of an older release."
)
NEVER_OPENED = (
    "The job failed before anything was answered. It is sealed: a worker that is not this "
    "project's, or is of an older release, could not open it."
)
_SEAL_REFUSALS = {
    "no_secret": "The worker has no secret to open sealed jobs with: set WORKER_SEAL_SECRET.",
    "wrong_secret": (
        "The worker's WORKER_SEAL_SECRET does not open the job: it is not the proxy's secret for "
        "this endpoint, or the job was changed on its way."
    ),
    "unsealed": (
        "The worker takes sealed jobs only: give the proxy the secret of its endpoint, or set "
        "WORKER_ALLOW_UNSEALED=true."
    ),
}

_ADVICE = (
    (
        re.compile(r"out of memory|OutOfMemory|KV cache|cache blocks", re.IGNORECASE),
        "Use a GPU with more memory, a smaller or quantized model, or a shorter context.",
    ),
    (
        re.compile(r"gated|\b40[13]\b|unauthorized|forbidden", re.IGNORECASE),
        "Give the worker a token that may read the model (HF_TOKEN).",
    ),
    (
        re.compile(r"\b404\b|not found|does not exist|NotFound", re.IGNORECASE),
        "Check the model's name and revision.",
    ),
    (
        re.compile(r"No space left|ENOSPC|disk", re.IGNORECASE),
        "Give the endpoint a larger container disk, or a network volume.",
    ),
    (
        re.compile(r"prestart_timeout|PrestartTimeout"),
        "Allow the hook more time (prestart_timeout), or make the start shorter.",
    ),
)
_NAME = re.compile(r"[A-Za-z_][\w.]{0,79}")
_VLLM_ANSWERED = re.compile(r"vLLM returned HTTP ([45]\d\d): (.*)", re.DOTALL | re.ASCII)


def error_from(error: Any) -> ProxyError:
    """The error to show for a FAILED job whose /status carries `error`."""
    details = _parsed(error)
    if (failure := start_failure(details)) is not None:
        return failure
    if isinstance(details, dict) and "error" in details:
        details = details["error"]
    if not isinstance(details, dict):
        return WorkerFailed("The worker failed to run the job.")
    message, code = details.get("message"), details.get("code")
    answered = _VLLM_ANSWERED.match(message) if isinstance(message, str) else None
    with suppress(ValueError):  # what cannot be written as JSON again is not told
        if answered:
            return VLLMError(int(answered[1]), _envelope(answered[2]))
        if type(code) is int and 400 <= code <= 599:
            return VLLMError(code, encode({"error": details}))
    return WorkerFailed("The worker failed to run the job.")


def start_failure(details: Any) -> ProxyError | None:
    """The error for a start that failed, in one of its foreign forms; None for anything else.

    `details` is an error, the object that holds it, or an output that is one.
    """
    if isinstance(details, dict) and isinstance(details.get("error"), dict | str):
        details = _parsed(details["error"])
    if not isinstance(details, dict):
        return None
    match details:
        case {"type": "startup_error"}:
            return model_start_failed(details.get("message"))
        case {"event": "prestart_failed"}:
            return _prestart_failed(details)
        case {"event": "prestart_cancelled"}:
            return StartCancelled("The worker was shut down before it had started. Try again.")
    return None


def seal_refused(reason: Any) -> SealingFailed:
    """The error for a worker that refuses a job for how it is sealed."""
    told = _SEAL_REFUSALS.get(reason) if isinstance(reason, str) else None
    return SealingFailed(told or "The worker refused the job for how it is sealed.")


def failure_of_sealed(details: Any) -> ProxyError:
    """The error for a sealed job that failed with nothing put out.

    Other workers do not know what to do with one, and each says so in its way. It may have failed
    for any other reason as well.
    """
    failure = error_from(details)
    if type(failure) in (WorkerFailed, VLLMError):
        return WorkerFailed(NEVER_OPENED)
    return failure


def model_start_failed(cause: Any) -> ModelStartFailed:
    """The error for a start that failed for a cause that the worker tells, one to act on."""
    text = scrubbed(cause, max_chars=MAX_CAUSE_CHARS) if isinstance(cause, str) else ""
    return ModelStartFailed(f"The model could not be started: {text or IN_THE_LOG}")


def _prestart_failed(details: dict[str, Any]) -> ModelStartFailed:
    """Of a hook's failure, its name, and the type and first line of its exception."""
    hook, kind = (_name(details.get(key)) for key in ("hook", "error_type"))
    message = details.get("error_message")
    text = scrubbed(message, max_chars=MAX_HOOK_ERROR_CHARS) if isinstance(message, str) else ""
    what = f"the prestart hook '{hook}'" if hook else "a prestart hook"
    cause = ": ".join(filter(None, (kind, text))) or "its exception is not told"
    advice = next((advice for known, advice in _ADVICE if known.search(cause)), IN_THE_LOG)
    end = "" if cause.endswith((".", "…")) else "."
    return ModelStartFailed(
        f"The model could not be started: {what} of the worker failed: {cause}{end} {advice}"
    )


def _name(value: Any) -> str:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def _envelope(text: str) -> bytes:
    """What vLLM answered, as it was if it was JSON."""
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        error = {"message": text, "type": "server_error", "param": None, "code": None}
        return encode({"error": error})
    return text.encode()


def _parsed(error: Any) -> Any:
    if not isinstance(error, str):
        return error
    try:
        return msgspec.json.decode(error)
    except (ValueError, RecursionError):
        pass
    if len(error) > MAX_LITERAL_CHARS:
        return error
    try:
        return ast.literal_eval(error)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return error
