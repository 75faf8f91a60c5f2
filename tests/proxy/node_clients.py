"""Clients for Node.js, each call in a process of its own; `js/client.mjs` makes them."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.progress import only_one
from tests.proxy.conftest import KEY

FOLDER = Path(__file__).parent / "js"

needs_node = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no node"),
]


@pytest.fixture(scope="session")
def node_clients() -> None:
    """The clients are installed as their lock says."""
    lock, done = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".package-lock.json"
    with only_one(FOLDER / "node_modules.lock", "installing clients for Node.js"):
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=FOLDER, check=True)


def run_in_node(call: str, url: str, *arguments: Any) -> Any:
    """What a function of `client.mjs` returns; its errors come back as `{"error": ...}`."""
    words = [call, f"{url}/v1", KEY, *map(json.dumps, arguments)]
    done = subprocess.run(
        ["node", str(FOLDER / "client.mjs"), *words],
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
        env=os.environ | {"NO_PROXY": "127.0.0.1"},
    )
    return json.loads(done.stdout.splitlines()[-1])
