"""Settings as they are meant: without stray quotes, and in the words of today's vLLM.

Env files under Docker keep the quotes around a value, and so do some consoles. RunPod's official
image had settings whose form has changed since; what they say is said in today's.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Final

from worker.errors import SettingsError

log = logging.getLogger(__name__)

LIBRARIES: Final = (
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "TRANSFORMERS_OFFLINE",
)
"""Variables of libraries that people set beside the worker's own."""

POOLING_TASKS: Final = {
    "embed": "embed",
    "embedding": "embed",
    "classify": "classify",
    "score": "classify",
    "reward": "auto",
}
"""What `TASK` asked for, and vLLM's `--convert` for it, with `--runner pooling`."""

GENERATING_TASKS: Final = frozenset({"generate", "transcription"})

_QUOTES: Final = {'"': '"', "'": "'", "“": "”", "‘": "’"}
_LIMIT: Final = re.compile(r"(?P<modality>\w+)\s*[=:]\s*(?P<number>\d+)")


def unquote(environment: MutableMapping[str, str], names: Iterable[str]) -> None:
    """Take quotes off the values of these variables, where they stand around the whole value.

    Raises:
        SettingsError: a model's name has a quote on one side.
    """
    for name in sorted(names):
        value = environment.get(name, "").strip()
        bare = without_quotes(value)
        if bare != value:
            log.warning("%s has quotes around its value; they are taken off", name)
            environment[name] = bare
        if name == "MODEL_NAME" and set(bare) & {*_QUOTES, *_QUOTES.values()}:
            raise SettingsError(f"{name} has a quotation mark in it: {bare}")


def without_quotes(value: str) -> str:
    """The value inside of quotes, as often as there are some around it."""
    while len(value) > 1 and _QUOTES.get(value[0]) == value[-1]:
        inside = _inside(value)
        if inside is None:
            break
        value = inside.strip()
    return value


def _inside(value: str) -> str | None:
    """What stands between the quotes; None where they belong to parts of the value."""
    inside = value[1:-1]
    if value[0] not in inside and value[-1] not in inside:
        return inside
    try:
        parsed = json.loads(value)  # JSON in quotes has its own escaped
    except ValueError:
        return None
    return parsed if isinstance(parsed, str) else None


def translate(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with older settings in today's form.

    Raises:
        SettingsError: one of them says what cannot be said any more.
    """
    today = dict(environment)
    if limit := today.get("LIMIT_MM_PER_PROMPT", "").strip():
        today["LIMIT_MM_PER_PROMPT"] = _limits(limit)
    if task := today.get("TASK", "").strip().lower():
        for name, value in _runner(task).items():
            today[name] = today.get(name, "").strip() or value
    return today


def _limits(value: str) -> str:
    """`image=2,video=1` as vLLM takes it since 0.10, `{"image": 2, "video": 1}`."""
    if value.startswith("{"):
        return value
    parts = [_LIMIT.fullmatch(part.strip()) for part in re.split(r"[,;]", value) if part.strip()]
    if not all(parts):
        raise SettingsError(
            f'LIMIT_MM_PER_PROMPT must be like image=2,video=1 or {{"image": 2}}, not {value!r}'
        )
    return json.dumps({part["modality"]: int(part["number"]) for part in parts if part})


def _runner(task: str) -> dict[str, str]:
    if task == "auto":
        return {}
    if task in GENERATING_TASKS:
        return {"RUNNER": "generate"}
    if task in POOLING_TASKS:
        return {"RUNNER": "pooling", "CONVERT": POOLING_TASKS[task]}
    known = ", ".join(sorted({"auto", *GENERATING_TASKS, *POOLING_TASKS}))
    raise SettingsError(f"TASK must be one of {known}, not {task!r}")
