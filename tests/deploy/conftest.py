"""The tools that check what is deployed."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.deploy_tools import deploy_environment, set_up_deploy_tools

ROOT = Path(__file__).parents[2]
BARE = {name: os.environ[name] for name in ("HOME", "PATH")}
"""An environment that has no settings."""


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder that has `helm`, `docker-compose` and `kubernetes-validate`."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Helm's program is for Linux on x86_64")
    set_up_deploy_tools()
    return deploy_environment().folder / "bin"


def output_of(*command: str | Path) -> str:
    """What a program prints; fails with what it says is wrong."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=BARE)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended.stdout
