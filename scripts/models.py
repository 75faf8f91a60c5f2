"""Which models a local stack serves, each on an endpoint of its own, and the settings they need.

Without a wish: the built-in two. A model that is wished for is served alone, so that it has the
machine for itself. And there is an engine that needs no model at all.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.progress import SetUpError
from scripts.set_up import ROOT, TINY_CHAT, TINY_EMBED, VLLM_FLAGS

CHAT_ENDPOINT = "local"
EMBEDDING_ENDPOINT = "local-embed"

ANY_MODEL = {
    # Without compilation: that takes minutes on a CPU and needs a C++ compiler.
    "ENFORCE_EAGER": "true",
    "VLLM_NO_USAGE_STATS": "1",
}
OTHER_MODEL = {
    # As long as the cache has room for.
    "MAX_MODEL_LEN": "auto",
    "VLLM_CPU_KVCACHE_SPACE": "2",
}
TINY_MODEL = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    # One thread for the model, which is too small for more.
    "OMP_NUM_THREADS": "1",
    # The engine runs the model itself: a process for it, as vLLM has on the CPU to bind threads to
    # cores, would import vLLM for a third time.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # In bfloat16 vLLM 0.32 takes AMX where the processor has it, and its worker process then dies
    # of an illegal instruction at a prompt of a token or two, as embeddings often have.
    "DTYPE": "float32",
}
CHAT_MODEL = {
    "MAX_MODEL_LEN": "2048",
    "ENABLE_AUTO_TOOL_CHOICE": "true",
    "TOOL_CALL_PARSER": "hermes",
    # A model this small would follow one white space with another until its length is used up.
    "STRUCTURED_OUTPUTS_CONFIG": '{"backend": "xgrammar", "disable_any_whitespace": true}',
}
EMBEDDING_MODEL = {
    # All that it has, also when our environment says another length for the other model.
    "MAX_MODEL_LEN": "512",
}
SCRIPTED = "scripted"
"""What `ENGINE` names, and the name that clients know: no model, but an engine with a script."""


@dataclass(frozen=True)
class Model:
    """What vLLM loads, the name clients know it by, its endpoint, and the worker's settings."""

    path: str
    name: str
    endpoint: str
    settings: Mapping[str, str]
    owner: str = "vllm"


def find_models(wanted: str = "", engine: str = "") -> tuple[Model, ...]:
    """The built-in models, or the one wanted: a name on the Hugging Face hub, or a folder.

    The first is the one to chat with, and what our environment says of the worker is about it.
    With the engine `scripted` there is no model, and no vLLM.

    Raises:
        SetUpError: there is no such model here, or no such engine.
    """
    if engine:
        return (_scripted(wanted, engine),)
    if wanted:
        path, name = _wanted(wanted)
        return (Model(path, name, CHAT_ENDPOINT, _unless_set(ANY_MODEL | OTHER_MODEL)),)
    chat = _unless_set(ANY_MODEL | TINY_MODEL | CHAT_MODEL)
    embed = ANY_MODEL | TINY_MODEL | EMBEDDING_MODEL
    return (
        Model(str(TINY_CHAT.folder), TINY_CHAT.name, CHAT_ENDPOINT, chat),
        Model(str(TINY_EMBED.folder), TINY_EMBED.name, EMBEDDING_ENDPOINT, embed),
    )


def _scripted(wanted: str, engine: str) -> Model:
    if engine != SCRIPTED:
        raise SetUpError(f"ENGINE is {engine}: there is {SCRIPTED}, and without it vLLM")
    if wanted:
        raise SetUpError(
            f"MODEL is {wanted}, but ENGINE={SCRIPTED} has no model: set one of the two"
        )
    program = ROOT / "scripts" / "scripted_engine.py"
    settings = {
        "HF_HUB_OFFLINE": "1",
        "WORKER_VLLM_COMMAND": shlex.join([sys.executable, str(program), "--introduce"]),
        "WORKER_VLLM_FLAGS": str(VLLM_FLAGS),
    }
    return Model(SCRIPTED, SCRIPTED, CHAT_ENDPOINT, settings, owner="scripted-engine")


def _wanted(wanted: str) -> tuple[str, str]:
    """Where vLLM finds the model, and the name it is served under."""
    folder = Path(wanted).expanduser().absolute()
    if folder.is_dir():
        return str(folder), folder.name
    if wanted.startswith((".", "/", "~")):
        raise SetUpError(f"MODEL is {wanted}, but there is no such folder")
    return wanted, wanted


def _unless_set(defaults: Mapping[str, str]) -> dict[str, str]:
    """The defaults that our environment, which the worker inherits, has no word on."""
    return {name: value for name, value in defaults.items() if name not in os.environ}
