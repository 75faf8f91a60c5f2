"""The environments of the clients of `make conformance`, each made once per machine.

Their locks are `requirements/client-*.txt`. Node comes from PyPI as the others do, so that its
version is locked and none need be there; its packages are those of `package-lock.json`.
"""

import shutil
from pathlib import Path

from scripts.environments import Environment, cache_folder, python_version, stamp_of
from scripts.installer import ROOT, create, install
from scripts.progress import phase, run

NODE = ROOT / "tests" / "conformance" / "node"
CLI = ROOT / "tests" / "conformance" / "cli"
NPM_FOLDERS = {"node": NODE, "cli": CLI}
"""The environments that have npm packages, and the folders of their locks."""


def lock_of(name: str) -> Path:
    """The lock of a client's environment."""
    return ROOT / "requirements" / f"client-{name}.txt"


def set_up_client(name: str) -> Environment:
    """A client's environment, made if it is not ready.

    Raises:
        SetUpError: a package could not be installed.
    """
    lock, packages = lock_of(name), npm_files(name)
    stamp = stamp_of(lock, *packages)
    folder = cache_folder() / f"client-{name}-python{python_version()}-{stamp}"
    environment = Environment(f"the environment of {name}", folder, stamp)

    def make() -> None:
        with phase(f"packages of {name}"):
            create(environment)
            install(environment, lock)
            for file in packages:
                shutil.copy(file, folder)
            if packages:
                # Not `ci`: it fails where a registry lacks packages for other platforms.
                options = ("--no-audit", "--no-fund", "--ignore-scripts")
                run([npm_of(environment), "install", *options], cwd=folder)

    environment.ensure(make)
    if name == "node":
        _link(NODE / "node_modules", folder / "node_modules")
    return environment


def npm_files(name: str) -> tuple[Path, ...]:
    """What says which npm packages an environment has; nothing if it has none."""
    folder = NPM_FOLDERS.get(name)
    return () if folder is None else (folder / "package.json", folder / "package-lock.json")


def npm_of(environment: Environment) -> Path:
    """The npm of an environment that has Node."""
    return environment.folder / "bin" / "npm"


def _link(link: Path, folder: Path) -> None:
    """Node looks for packages above the file that imports them, and nowhere else."""
    if not (link.is_symlink() and link.readlink() == folder):
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
