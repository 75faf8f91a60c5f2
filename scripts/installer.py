"""Installing locked packages into an environment: with uv, or with pip where uv cannot.

uv is several times faster, but reads none of pip's configuration. So it is left out where pip has
an index of its own, and whenever uv fails pip has a try, and its message is the one that counts.
uv itself is a package, kept in an environment beside the others.
"""

import sys
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


def install_with_uv(environment: Environment, lock: Path) -> None:
    """The fast way.

    Raises:
        SetUpError: it failed, or there is no uv to be had.
    """
    into = ("--python", environment.python, "--quiet", "--no-deps")
    run([uv().folder / "bin" / "uv", "pip", "install", *into, "--require-hashes", "-r", lock])


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
    return ".index-url=" in run([environment.python, "-m", "pip", "config", "list"])
