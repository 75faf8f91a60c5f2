"""Why a job failed: the worker's `error`, in whichever form it arrives, as an error of ours.

The SDK applies `str()` to the error object a handler yields, so an error of RunPod's worker-vllm
arrives as a Python literal; the error of a handler that returns is JSON in a string; a handler
that raises leaves its message and a traceback; the platform itself leaves plain text.
"""

import ast
import re
from typing import Any

import msgspec

from proxy.errors import ProxyError, VLLMError, WorkerFailed

LONGEST_LITERAL = 100_000
"""`ast.literal_eval` takes memory out of proportion to its input; errors are short."""

_VLLM_ANSWERED = re.compile(r"vLLM returned HTTP (\d{3}): (.*)", re.DOTALL)


def error_from(error: Any) -> ProxyError:
    """The error to show for a FAILED job whose /status carries `error`."""
    details = _parsed(error)
    if isinstance(details, dict) and "error" in details:
        details = details["error"]
    if not isinstance(details, dict):
        return WorkerFailed("The worker failed to run the job.")
    message = str(details.get("message", ""))
    if answered := _VLLM_ANSWERED.match(message):
        return VLLMError(int(answered[1]), _envelope(answered[2]))
    code = details.get("code")
    if isinstance(code, int) and 400 <= code <= 599:
        return VLLMError(code, msgspec.json.encode({"error": details}))
    return WorkerFailed("The worker failed to run the job.")


def _envelope(text: str) -> bytes:
    """What vLLM answered, as it was if it was JSON."""
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        error = {"message": text, "type": "server_error", "param": None, "code": None}
        return msgspec.json.encode({"error": error})
    return text.encode()


def _parsed(error: Any) -> Any:
    if not isinstance(error, str):
        return error
    try:
        return msgspec.json.decode(error)
    except (ValueError, RecursionError):
        pass
    if len(error) > LONGEST_LITERAL:
        return error
    try:
        return ast.literal_eval(error)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return error
