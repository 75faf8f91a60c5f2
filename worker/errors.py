"""What can go wrong in the worker.

    WorkerError                 one job cannot be answered; leaves as OpenAI's error object
    ├── InvalidInput      400   the job's input is not one we understand
    ├── SealRefused       403   the job cannot be opened, or is not sealed and has to be
    ├── EngineFailed      503   vLLM could not be reached, or broke off its answer
    ├── WorkerStopping    503   the worker was told to stop before the answer was complete
    ├── RequestTimeout    504   the answer took longer than REQUEST_TIMEOUT
    ├── ModelStartFailed  503   the worker could not start its model; says why and what to change
    └── UnexpectedError   500   a defect of ours
    StartError                  the worker cannot start or go on; its text is the last log line
    ├── SettingsError           an environment variable that cannot be right
    │   └── FolderMissing       the model's folder is not there
    ├── ModelNotStarted         the model cannot be served, for a cause that is known
    ├── VLLMExited              vLLM ended by itself
    ├── EngineDead              vLLM goes on, and its engine does not
    └── VLLMStartTimeout        vLLM did not become healthy in time

A StartError that lies in the configuration would meet every worker: jobs are answered with it.

vLLM's own HTTP errors are no exceptions here: they are answers, and pass through as they are.
"""

import json
import re
import signal
from collections.abc import Sequence
from typing import ClassVar, Literal

LAST_LINES = 3
LINE_LENGTH = 400
_EXCEPTION = re.compile(r"\b\w+(Error|Exception): .+")
_FROM_ENGINE = re.compile(r"\((?:EngineCore|Worker)\w*[ )]")
_ENGINE_GONE = re.compile(
    r"\bengine core exited unexpectedly|\bEngineDeadError: .+"
    r"|\w[^:]* died (?:unexpectedly|with exit).*"
)

StartCause = Literal[
    "out_of_memory",
    "context_too_long",
    "model_not_found",
    "model_gated",
    "revision_not_found",
    "architecture_unsupported",
    "bad_flag",
    "disk_full",
    "driver",
    "unknown",
]
"""Why a model did not start, as the proxy is told."""


class WorkerError(Exception):
    """One job cannot be answered; the message is for its client."""

    status: ClassVar[int]
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None]
    param: str | None = None

    def body(self, error_type: str | None = None) -> str:
        """OpenAI's error object as JSON text; another API has another word for its type."""
        kind = error_type or self.type
        facts = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": facts}, separators=(",", ":"))


class InvalidInput(WorkerError):
    """The job's input is not one we understand; `param` names the part at fault."""

    status = 400
    type = "invalid_request_error"
    code = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


SealRefusal = Literal["no_secret", "wrong_secret", "unsealed"]
"""Why a job is refused for how it is sealed, as the proxy is told."""


class SealRefused(WorkerError):
    """The job cannot be opened, or is not sealed and has to be; vLLM is not asked."""

    status = 403
    type = "invalid_request_error"
    code = "seal_refused"

    def __init__(self, reason: SealRefusal) -> None:
        super().__init__(_SEAL_REFUSALS[reason])
        self.reason = reason


_SEAL_REFUSALS: dict[SealRefusal, str] = {
    "no_secret": "The job is sealed, and WORKER_SEAL_SECRET is not set.",
    "wrong_secret": "WORKER_SEAL_SECRET does not open the job: its proxy has another secret, or it "
    "was changed on its way.",
    "unsealed": "This worker takes sealed jobs only, unless WORKER_ALLOW_UNSEALED is true.",
}


class EngineFailed(WorkerError):
    """vLLM could not be reached, or broke off its answer."""

    status = 503
    code = "engine_failed"

    def __init__(self) -> None:
        super().__init__("vLLM broke off before the answer was complete.")


class WorkerStopping(WorkerError):
    """The worker was told to stop, and its grace time ended before the answer."""

    status = 503
    code = "worker_stopping"

    def __init__(self) -> None:
        super().__init__("The worker was stopped before the answer was complete.")


class RequestTimeout(WorkerError):
    """The answer took longer than REQUEST_TIMEOUT."""

    status = 504
    code = "timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The answer was not complete within {seconds:g} seconds.")


class ModelStartFailed(WorkerError):
    """The worker could not start its model; `cause` is one of a few words for the proxy."""

    status = 503
    code = "model_start_failed"

    def __init__(self, cause: StartCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class UnexpectedError(WorkerError):
    """A defect of ours; the traceback is in the worker's log."""

    status = 500
    code = "worker_error"

    def __init__(self) -> None:
        super().__init__("The worker failed; its log says how.")


class StartError(Exception):
    """The worker cannot start or go on; the message is for whoever reads its log."""

    cause: StartCause = "unknown"
    in_configuration: bool = False


class SettingsError(StartError):
    """An environment variable that cannot be right."""

    cause: StartCause = "bad_flag"
    in_configuration = True


class FolderMissing(SettingsError):
    """`MODEL_NAME` is a folder that is not there."""

    cause: StartCause = "model_not_found"


class ModelNotStarted(StartError):
    """The model cannot be served, for a cause that is known.

    The message is for clients too. `may_fit_smaller`: less memory could be enough for it.
    """

    def __init__(
        self,
        cause: StartCause,
        message: str,
        *,
        in_configuration: bool = True,
        may_fit_smaller: bool = False,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.in_configuration = in_configuration
        self.may_fit_smaller = may_fit_smaller


class VLLMExited(StartError):
    """vLLM ended by itself, or its engine did (`code` is None); says how, and its last words.

    What its engine raised says most, then that the engine is gone, then what its HTTP server
    raised: that may have been about a client's request, long ago. The very last lines are often
    chatter of libraries that are being unloaded.
    """

    def __init__(self, code: int | None, last_lines: Sequence[str]) -> None:
        self.lines = list(last_lines)
        said = " | ".join(word[:LINE_LENGTH] for word in _last_words(self.lines)) or "nothing"
        super().__init__(f"vLLM {_ending(code)}. It said: {said}")


class EngineDead(StartError):
    """vLLM answers that its engine is dead, and does not end."""

    def __init__(self) -> None:
        super().__init__("vLLM's engine is dead: /health answers with an error.")


class VLLMStartTimeout(StartError):
    """vLLM did not become healthy in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"vLLM was not healthy within {seconds:g} seconds (VLLM_STARTUP_TIMEOUT).")


def _last_words(lines: Sequence[str]) -> list[str]:
    printed = [line.strip() for line in lines if line.strip()]
    engines = [line for line in printed if _FROM_ENGINE.match(line)]
    raised = [found[0] for line in engines if (found := _EXCEPTION.search(line))]
    gone = [found[0] for line in printed if (found := _ENGINE_GONE.search(line))]
    if not gone:
        raised = [found[0] for line in printed if (found := _EXCEPTION.search(line))]
    words = list(dict.fromkeys([*raised, *gone]))
    return (words or printed)[-LAST_LINES:]


def _ending(code: int | None) -> str:
    if code is None:
        return "has lost its engine"
    if code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name
    hint = ", which often means that memory ran out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
