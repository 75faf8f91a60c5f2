"""A stack to measure: emulator, worker, engine and proxy, each in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.storm import Stack
from tests.emulator.running import API_KEY, Client
from tests.end_to_end.conftest import endpoint_settings
from tests.proxy.process import ROOT, Proxy
from tests.servers import free_port
from tests.waiting import wait_until

STOP_SECONDS = 60


@contextmanager
def stack_of_processes(
    *, streams: int, settings: dict[str, Any] | None = None, **endpoint: Any
) -> Iterator[Stack]:
    """A stack with one worker up that takes that many jobs at once.

    `settings` are the proxy's, the others the emulated endpoint's.
    """
    endpoint = endpoint_settings() | {"min_workers": 1, "scaler_value": 10 * streams} | endpoint
    endpoint["env"] |= {"MAX_CONCURRENCY": str(streams + 50)}
    with tempfile.TemporaryDirectory() as folder, _emulator(Path(folder), endpoint) as runpod:
        proxy = Proxy(
            runpod.url.removesuffix("/v2/ep"),
            runpod_api_key=API_KEY,
            state_dir=f"{folder}/state",
            **(settings or {}),
        )
        try:
            wait_until(lambda: runpod.workers("idle") == 1, seconds=60)
            yield Stack(proxy, runpod, int(endpoint["env"]["WORKER_VLLM_PORT"]))
        finally:
            proxy.close()


@contextmanager
def _emulator(folder: Path, endpoint: dict[str, Any]) -> Iterator[Client]:
    port = free_port()
    endpoints = [{"id": "ep"} | endpoint]
    config = {"port": port, "api_key": API_KEY, "log_dir": str(folder), "endpoints": endpoints}
    path = folder / "emulator.toml"
    path.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in config.items()))
    with (folder / "emulator.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "emulator", "--config", str(path)], cwd=ROOT, stderr=log
        )
    client = Client(f"http://127.0.0.1:{port}", "ep")
    try:
        wait_until(lambda: _is_up(client), seconds=60)
        yield client
    finally:
        client.http.close()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()


def _is_up(client: Client) -> bool:
    try:
        return client.health() != {}
    except httpx.TransportError:
        return False


def _toml(value: Any) -> str:
    """A value of TOML on one line. Its strings, numbers and booleans are written as JSON's are."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
