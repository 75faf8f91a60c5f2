"""What `make ui-check` needs beyond the project: `python -m scripts.ui_tools` makes it.

- Open WebUI, in an environment of its own in the cache folder, as it has pins of its own. Without
  PyTorch, which it needs only to embed, rank and transcribe by itself.
- The packages of `requirements/node`, in the cache folder too.
- Chromium, which only the system's packages have: `CHROMIUM` names another one than the first on
  the PATH.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from scripts.environments import Environment, cache_folder, python_version, stamp_of
from scripts.installer import ROOT, create, install
from scripts.progress import SetUpError, only_one, phase, run

OPEN_WEBUI_LOCK = ROOT / "requirements" / "open-webui.txt"
NODE_LOCK = ROOT / "requirements" / "node" / "package-lock.json"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def open_webui_environment() -> Environment:
    """Open WebUI's environment in the cache folder, named by what is in it."""
    stamp = stamp_of(OPEN_WEBUI_LOCK)
    pinned = re.search(r"^open-webui==(\S+)", OPEN_WEBUI_LOCK.read_text(), re.MULTILINE)
    assert pinned is not None, "the lock has no open-webui"
    name = f"open-webui-{pinned[1]}-python{python_version()}-{stamp}"
    return Environment("Open WebUI's environment", cache_folder() / name, stamp)


def set_up_open_webui() -> None:
    """Make Open WebUI's environment, if it is not ready.

    Raises:
        SetUpError: this Python is too new for it, or a package could not be installed.
    """
    environment = open_webui_environment()

    def make() -> None:
        if sys.version_info >= (3, 13):
            raise SetUpError("Open WebUI needs Python 3.11 or 3.12: set PYTHON, and `make clean`")
        with phase("packages of Open WebUI"):
            create(environment)
            install(environment, OPEN_WEBUI_LOCK)

    environment.ensure(make)


def node_packages() -> Path:
    """The folder `node_modules` that has what the guides for Node.js need."""
    return cache_folder() / f"node-{stamp_of(NODE_LOCK)}" / "node_modules"


def set_up_node_packages() -> None:
    """Install them, if they are missing.

    Raises:
        SetUpError: there is no npm, or it failed.
    """
    folder = node_packages().parent
    half = folder.with_name(f"{folder.name}.half")
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise SetUpError("no Node.js with npm: on Debian and Ubuntu `apt-get install nodejs npm`")
    with only_one(folder.with_name(f"{folder.name}.lock"), "installing packages of Node.js"):
        if folder.exists():
            return
        shutil.rmtree(half, ignore_errors=True)
        with phase("packages of Node.js"):
            shutil.copytree(NODE_LOCK.parent, half)
            run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=half)
        half.rename(folder)


def chromium() -> Path:
    """The browser.

    Raises:
        SetUpError: there is none.
    """
    wanted = os.environ.get("CHROMIUM")
    found = [shutil.which(name) for name in ([wanted] if wanted else CHROMIUM_NAMES)]
    for program in filter(None, found):
        return Path(program)
    raise SetUpError(
        f"no {wanted or 'Chromium'}: on Debian `apt-get install chromium`, or set CHROMIUM to one"
    )


def main() -> int:
    """Make all of it, or say what is missing."""
    try:
        chromium()
        set_up_open_webui()
        set_up_node_packages()
    except SetUpError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
