"""RunPod's own JavaScript client against the emulator, with the real worker SDK behind it."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.progress import only_one
from tests.emulator.running import API_KEY, SCRIPTED, Client, eventually, one_endpoint

FOLDER = Path(__file__).parent / "js"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no node"),
]

Js = Callable[..., Any]

PATIENCE_MS = 60_000
"""By itself the client waits three seconds for most answers."""


@pytest.fixture(scope="session")
def installed() -> None:
    """The client is installed as its lock says."""
    lock, done = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".package-lock.json"
    with only_one(FOLDER / "node_modules.lock", "installing RunPod's JavaScript client"):
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=FOLDER, check=True)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """An endpoint with one scripted worker, warm."""
    with one_endpoint(worker=SCRIPTED, min_workers=1) as client:
        eventually(lambda: client.workers("idle") == 1)
        yield client


@pytest.fixture
def js(client: Client, installed: None) -> Js:
    """Calls a method of the client's endpoint, in a process of its own."""

    def call(method: str, *arguments: Any, key: str = API_KEY) -> Any:
        base_url, _, endpoint_id = client.url.rpartition("/")
        words = [base_url, key, endpoint_id, method, *map(json.dumps, arguments)]
        command = ["node", str(FOLDER / "client.mjs"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    return call


def request(*steps: tuple[str, Any]) -> dict[str, Any]:
    """A request for the scripted handler."""
    return {"input": {"steps": steps}}


def test_run_sync(js: Js) -> None:
    done = js("runSync", request(("yield", "größe 🙂")))
    assert (done["status"], done["succeeded"]) == ("COMPLETED", True)
    assert done["output"] == ["größe 🙂"]


def test_run_sync_that_outlasts_its_call_asks_for_the_status(
    js: Js, client: Client, tmp_path: Path
) -> None:
    """It waits a second at a time, first with /runsync and then with /status-sync."""
    gate = tmp_path / "gate"
    job_id = client.run({"steps": [("wait", str(gate)), ("touch", str(gate))]})
    eventually(lambda: client.status(job_id)["status"] == "IN_PROGRESS")
    assert js("statusSync", job_id, 1000)["status"] == "IN_PROGRESS"
    gate.touch()
    assert js("statusSync", job_id, PATIENCE_MS)["completed"]


def test_run_and_status(js: Js, client: Client) -> None:
    job = js("run", request(("yield", 1), ("yield", {"b": None})), PATIENCE_MS)
    assert job["status"] == "IN_QUEUE"
    client.result(job["id"])
    found = js("status", job["id"], PATIENCE_MS)
    assert (found["status"], found["output"]) == ("COMPLETED", [1, {"b": None}])


def test_stream_yields_every_chunk_once_and_in_order(js: Js) -> None:
    job = js("run", request(*[("yield", n) for n in range(20)]), PATIENCE_MS)
    assert js("stream", job["id"]) == [{"output": n} for n in range(20)]


def test_cancel_stops_the_handler(js: Js, tmp_path: Path) -> None:
    begun, freed = tmp_path / "begun", tmp_path / "freed"
    steps = request(("touch", str(begun)), ("mark_cancel", str(freed)))
    job = js("run", steps, PATIENCE_MS)
    eventually(begun.exists)
    assert js("cancel", job["id"], PATIENCE_MS) == {"id": job["id"], "status": "CANCELLED"}
    eventually(freed.exists)


def test_health(js: Js, client: Client) -> None:
    eventually(lambda: client.workers("idle") == 1)
    assert js("health", PATIENCE_MS) == client.health()


def test_purge_queue(js: Js) -> None:
    assert js("purgeQueue", PATIENCE_MS) == {"removed": 0, "status": "completed"}


def test_a_wrong_key_is_told_as_such(js: Js) -> None:
    assert js("health", PATIENCE_MS, key="wrong") == {"thrown": 401}
