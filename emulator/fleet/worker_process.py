"""WorkerProcess: a worker's process with the environment, directories and end of a container."""

import asyncio
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from emulator.fleet import freezing, launcher
from emulator.settings import EndpointSettings

LAUNCHER_SECONDS: Final = 5.0
"""How long a launcher may take to kill everything after it was told to."""


class WorkerProcess:
    """One running worker process, below a launcher that ends all of it when we end."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path, log_path: Path):
        self._process = process
        self._directory = directory
        self.log_path = log_path
        self._is_frozen = False

    @classmethod
    async def start(
        cls, command: list[str], environment: Mapping[str, str], directory: Path, log_path: Path
    ) -> "WorkerProcess":
        """Start the command in a fresh directory, its output going to the log file."""
        home, work = directory / "home", directory / "work"
        home.mkdir(parents=True)
        work.mkdir()
        with log_path.open("ab") as log_file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", launcher.__file__, *command),
                stdin=asyncio.subprocess.PIPE,
                stdout=log_file,
                stderr=log_file,
                cwd=work,
                env={**environment, "HOME": str(home)},
                start_new_session=True,
            )
        return cls(process, directory, log_path)

    @property
    def pid(self) -> int:
        """The process id of the launcher, the root of the worker's process tree."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the end of the worker and all it started; its exit code, as a shell tells it."""
        code = await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
        return code if code >= 0 else 128 - code  # the launcher itself was killed

    async def stop(self, grace_seconds: float) -> int:
        """SIGTERM, then after the grace time SIGKILL for everything; the exit code."""
        self.thaw()  # or it would not hear of it
        self._send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """SIGKILL the worker and everything it started; the exit code."""
        self.cut_off()
        try:
            async with asyncio.timeout(LAUNCHER_SECONDS):
                return await self.wait()
        except TimeoutError:
            self._send(signal.SIGKILL)
            return await self.wait()

    def cut_off(self) -> None:
        """Have the launcher kill everything, and do not wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def freeze(self) -> bool:
        """Stop everything in the worker where it is; False if there is nothing to stop."""
        self._is_frozen = freezing.freeze(self.pid)
        return self._is_frozen

    def thaw(self) -> None:
        """Let everything in the worker go on."""
        if self._is_frozen:
            freezing.thaw(self.pid)
            self._is_frozen = False

    def last_lines(self, count: int = 30) -> str:
        """The end of what the worker wrote."""
        with self.log_path.open(errors="replace") as log_file:
            return "".join(deque(log_file, maxlen=count)).rstrip()

    def _send(self, signal_number: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal_number)


def worker_environment(
    endpoint: EndpointSettings,
    worker_id: str,
    base_url: str,
    api_key: str,
    own: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What RunPod sets for a worker, and `own` for this one, on top of our own environment.

    `$ID` in the job-take URL is the worker's, in the others the job's; each URL needs a `?`, since
    the SDK appends its parameters with `&`. The caches of Hugging Face and vLLM stay those of the
    real user although HOME changes.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    cache = Path(inherited.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    defaults = {
        "XDG_CACHE_HOME": str(cache),
        "HF_HOME": str(cache / "huggingface"),
        "RUNPOD_LOG_LEVEL": "INFO",
    }
    platform = {
        **(_job_urls(endpoint, base_url) if endpoint.kind == "queue" else {}),
        "RUNPOD_AI_API_KEY": api_key,
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_POD_HOSTNAME": f"{worker_id}-emulated",
        "RUNPOD_ENDPOINT_ID": endpoint.id,
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), inherited.get("PYTHONPATH")])),
    }
    return {**defaults, **inherited, **platform, **(own or {}), **endpoint.env}


def _job_urls(endpoint: EndpointSettings, base_url: str) -> dict[str, str]:
    url = f"{base_url}/v2/{endpoint.id}"
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID?gpu=EMULATED",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$RUNPOD_POD_ID/$ID?gpu=EMULATED",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=EMULATED",
        "RUNPOD_WEBHOOK_PING": f"{url}/ping/$RUNPOD_POD_ID?gpu=EMULATED",
        "RUNPOD_PING_INTERVAL": str(endpoint.ping_interval_seconds * 1000),
    }


def worker_command(endpoint: EndpointSettings) -> list[str]:
    """The worker's command, its relative file names made absolute: it runs in a fresh directory."""
    return [os.path.abspath(word) if os.path.isfile(word) else word for word in endpoint.command]


# A non-zero RUNPOD_REALTIME_PORT switches the SDK's production loop off.
_NOT_INHERITED: Final = {"RUNPOD_REALTIME_PORT"}
