"""A proxy in a process of its own, for tests that stop it, kill it or look at it from outside."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.proxy.conftest import KEY
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Proxy:
    """`python -m proxy`, and a client of it; `changes` are settings without their prefix."""

    def __init__(
        self,
        runpod_url: str,
        *,
        state_dir: str | Path,
        runpod_api_key: str = "rp",
        module: str = "proxy",
        **changes: Any,
    ) -> None:
        self.state_dir = Path(state_dir)
        settings = {"api_keys": KEY, "models": "m", "port": 0, "keep_alive_seconds": 1} | changes
        environment = {f"PROXY_{name.upper()}": str(value) for name, value in settings.items()} | {
            "RUNPOD_API_KEY": runpod_api_key,
            "RUNPOD_ENDPOINT_ID": "ep",
            "RUNPOD_ENDPOINT_BASE_URL": f"{runpod_url}/v2",
            "PROXY_STATE_DIR": str(state_dir),
            "PROXY_LOG_LEVEL": "warning",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--env-file", os.devnull],
            cwd=ROOT,
            env=os.environ | environment,
        )
        wait_until(lambda: self._ports() != [], seconds=60)
        self.url = f"http://127.0.0.1:{self._ports()[0]}"
        headers = {"authorization": f"Bearer {KEY}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        wait_until(self._is_up, seconds=60)

    def journal(self) -> list[str]:
        """The ids of the jobs in flight."""
        ids: list[str] = []
        for path in self.state_dir.glob("jobs-*.sqlite3"):
            database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
            ids += [row[0] for row in database.execute("SELECT id FROM jobs")]
            database.close()
        return ids

    def close(self) -> None:
        """Kill it, if it still runs."""
        self.client.close()
        self.process.kill()
        self.process.wait()

    def _ports(self) -> list[int]:
        """Where it listens: the kernel chose the port, so that nobody else can have taken it."""
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return [here.laddr.port for here in found if here.status == psutil.CONN_LISTEN]

    def _is_up(self) -> bool:
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False
