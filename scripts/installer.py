"""Installing locked packages into an environment: with uv, or with pip where uv cannot.

uv is several times faster, but reads none of pip's configuration. So it is left out where pip has
an index of its own, and whenever uv fails pip has a try, and its message is the one that counts.
uv itself is a package, kept in an environment beside the others.
"""

import re
import sys
from contextlib import suppress
from pathlib import Path

from scripts.environments import Environment, cache_folder, stamp_of
from scripts.progress import SetUpError, run

ROOT = Path(__file__).resolve().parent.parent
UV_LOCK = ROOT / "requirements" / "uv.txt"

PIP_INSTALL = (
    *("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"),
    *("install", "--no-deps"),
)


def create(environment: Environment) -> None:
    """Make an environment that has nothing but pip.

    Raises:
        SetUpError: this Python could not.
    """
    run([sys.executable, "-m", "venv", environment.folder])


def install(environment: Environment, lock: Path) -> None:
    """Install what the lock file lists, and nothing else.

    Raises:
        SetUpError: neither uv nor pip could.
    """
    if has_its_own_index(environment):
        install_with_pip(environment, lock)
        return
    try:
        install_with_uv(environment, lock)
    except SetUpError:
        install_with_pip(environment, lock)


def install_one(environment: Environment, wanted: str, index: str) -> None:
    """Install one package, without its dependencies: from where pip looks by itself, else `index`.

    Raises:
        SetUpError: neither uv nor pip could.
    """
    if not has_its_own_index(environment):
        for places in (_links(environment), ("--index-url", index)):
            with suppress(SetUpError):
                if places:
                    return run_uv(environment, *places, wanted)
    command: list[str | Path] = [environment.python, *PIP_INSTALL, wanted]
    try:
        run(command)
    except SetUpError:
        run([*command, "--index-url", index])


def install_editable(environment: Environment, project: Path) -> None:
    """Install a project in place, with what is there to build it.

    Raises:
        SetUpError: neither uv nor pip could.
    """
    wanted = ("--no-build-isolation", "--editable", project)
    try:
        run_uv(environment, *wanted)
    except SetUpError:
        run([environment.python, *PIP_INSTALL, *wanted])


def install_with_uv(environment: Environment, lock: Path) -> None:
    """The fast way.

    Raises:
        SetUpError: it failed, or there is no uv to be had.
    """
    run_uv(environment, "--require-hashes", "-r", lock)


def run_uv(environment: Environment, *wanted: str | Path) -> None:
    """Have uv install what is named, and nothing else.

    Raises:
        SetUpError: it failed, or there is no uv to be had.
    """
    into = ("--python", environment.python, "--quiet", "--no-deps")
    run([uv().folder / "bin" / "uv", "pip", "install", *into, *wanted])


def install_with_pip(environment: Environment, lock: Path) -> None:
    """The sure way.

    Raises:
        SetUpError: it failed.
    """
    run([environment.python, *PIP_INSTALL, "--require-hashes", "-r", lock])


def uv() -> Environment:
    """The environment that has the uv of `requirements/uv.txt`, made if it is missing.

    Raises:
        SetUpError: pip could not install it.
    """
    stamp = stamp_of(UV_LOCK)
    tool = Environment("uv", cache_folder() / f"uv-{stamp}", stamp)

    def make() -> None:
        create(tool)
        install_with_pip(tool, UV_LOCK)

    tool.ensure(make)
    return tool


def has_its_own_index(environment: Environment) -> bool:
    """Whether pip, as it is configured, is told to use another index than PyPI."""
    return ".index-url=" in _configuration_of_pip(environment)


def _links(environment: Environment) -> tuple[str, ...]:
    """uv's options to look only where pip is told to look for links; none where it is not told."""
    found = re.findall(r"\.find-links='(.*)'", _configuration_of_pip(environment))
    places = sorted({place for value in found for place in value.split()})
    return ("--no-index", *(f"--find-links={place}" for place in places)) if places else ()


def _configuration_of_pip(environment: Environment) -> str:
    return run([environment.python, "-m", "pip", "config", "list"])
