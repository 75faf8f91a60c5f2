"""One look at the hub before the download: whether the model exists, and may be read.

A misspelt name or a gated model then costs seconds and not a cold start. Only the hub's clear word
counts; when it cannot be reached or says anything else, vLLM finds out for itself.

The errors are told apart as huggingface_hub does it, by the header `X-Error-Code`
(`huggingface_hub.utils.hf_raise_for_status`): `RepoNotFound`, `GatedRepo`, `RevisionNotFound`.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx

from worker.errors import ModelNotStarted

log = logging.getLogger(__name__)

TIMEOUT_SECONDS: Final = 15.0
HUGGING_FACE: Final = "https://huggingface.co"

BAD_CREDENTIALS: Final = "Invalid credentials in Authorization header"
BAD_CREDENTIALS_MESSAGE: Final = (
    "Hugging Face does not know the token in HF_TOKEN. Set one that is valid, or none for a public "
    "model."
)

_REPOSITORY: Final = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_ELSEWHERE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_USE_MODELSCOPE")


def check_model(environment: Mapping[str, str], timeout: float = TIMEOUT_SECONDS) -> None:
    """Ask the hub for what `MODEL_NAME` names, where vLLM would download it from there.

    Raises:
        ModelNotStarted: the hub says that there is no such model or revision, or that it is gated.
    """
    model = environment.get("MODEL_NAME", "").strip()
    if not _is_to_be_downloaded(model, environment):
        return
    revision = environment.get("MODEL_REVISION", "").strip()
    try:
        code = _error_code(model, revision, environment, timeout)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError) as error:
        # ImportError: a SOCKS proxy in the environment, which httpx needs another package for.
        log.warning("cannot ask the hub for the model: %s", type(error).__name__)
        return
    if code == BAD_CREDENTIALS:
        raise ModelNotStarted("model_gated", BAD_CREDENTIALS_MESSAGE)
    if code == "RepoNotFound":
        raise ModelNotStarted(
            "model_not_found",
            f"Hugging Face has no model {model}, or it is private and HF_TOKEN may not read it. "
            "Correct MODEL_NAME, or set HF_TOKEN.",
        )
    if code == "RevisionNotFound":
        raise ModelNotStarted(
            "revision_not_found",
            f"Hugging Face has no revision {revision} of {model}. Correct MODEL_REVISION, or leave "
            "it unset.",
        )
    if code == "GatedRepo":
        raise ModelNotStarted(
            "model_gated",
            f"{model} is gated on Hugging Face. Accept its terms there, and set HF_TOKEN to a "
            "token of that account.",
        )


def _is_to_be_downloaded(model: str, environment: Mapping[str, str]) -> bool:
    if not _REPOSITORY.fullmatch(model) or model.endswith(".gguf") or Path(model).exists():
        return False
    if any(environment.get(name, "").strip().lower() in _TRUE for name in _ELSEWHERE):
        return False
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    token_file = Path(environment.get("HF_TOKEN_PATH") or home / "token")
    if not _token(environment) and token_file.exists():
        return False  # vLLM has a token that we do not read
    cache = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    folder = Path(cache or home / "hub") / f"models--{model.replace('/', '--')}" / "snapshots"
    return not folder.is_dir()


def _error_code(
    model: str, revision: str, environment: Mapping[str, str], timeout: float
) -> str | None:
    """The hub's word for what is wrong with the model; None if nothing is, or it is unclear."""
    base = (environment.get("HF_ENDPOINT", "").strip() or HUGGING_FACE).rstrip("/")
    token = _token(environment)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    path = f"{base}/api/models/{model}"
    with httpx.Client(headers=headers, timeout=timeout) as client:
        answer = client.get(f"{path}/revision/{quote(revision, safe='')}" if revision else path)
        if answer.status_code != 200:
            return answer.headers.get("x-error-code") or _unnamed(answer)
        if not _is_gated(answer):
            return None
        # Everyone may read what a gated model is, not everyone its files.
        access = client.get(f"{path}/auth-check")
        return "GatedRepo" if access.status_code in (401, 403) else None


def _unnamed(answer: httpx.Response) -> str | None:
    """What an error without a code means, of the hub or of a mirror that answers as it does."""
    found = answer.json() if answer.status_code in (401, 404) else None
    said = str(found.get("error", "")) if isinstance(found, dict) else ""
    if BAD_CREDENTIALS in (said, answer.headers.get("x-error-message")):
        return BAD_CREDENTIALS
    return "RepoNotFound" if "not found" in said.lower() else None


def _is_gated(answer: httpx.Response) -> bool:
    facts = answer.json()
    return isinstance(facts, dict) and facts.get("gated") not in (None, False)


def _token(environment: Mapping[str, str]) -> str:
    return next((token for name in _TOKENS if (token := environment.get(name, "").strip())), "")
