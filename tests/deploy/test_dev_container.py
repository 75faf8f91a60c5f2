"""The dev container: what it names is there."""

import json
import re
from typing import Any

import pytest

from scripts.set_up import PORTS, STEPS
from tests.deploy.conftest import ROOT


@pytest.fixture
def container() -> dict[str, Any]:
    text = (ROOT / ".devcontainer/devcontainer.json").read_text()
    found: dict[str, Any] = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    return found


def test_it_forwards_what_make_run_listens_on(container: dict[str, Any]) -> None:
    assert sorted(container["forwardPorts"]) == sorted(PORTS.values())
    assert set(container["portsAttributes"]) == {str(port) for port in PORTS.values()}


def test_it_sets_up_by_a_step_that_there_is_with_its_own_python(
    container: dict[str, Any],
) -> None:
    python, *module, step = container["updateContentCommand"].split()
    assert container["image"].split(":")[1].startswith(python.removeprefix("python"))
    assert container["containerEnv"]["PYTHON"] == python
    assert (module, step in STEPS) == (["-m", "scripts.set_up"], True)


def test_what_is_made_in_it_stays_out_of_the_folder_of_the_host(container: dict[str, Any]) -> None:
    mounts = [dict(part.split("=") for part in mount.split(",")) for mount in container["mounts"]]
    assert {mount["type"] for mount in mounts} == {"volume"}
    venv, cache = (mount["target"] for mount in mounts)
    assert venv == "${containerWorkspaceFolder}/.venv"
    assert cache == f"/home/{container['remoteUser']}/.cache"
