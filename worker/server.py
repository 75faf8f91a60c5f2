"""VLLMServer: vLLM as a process of its own on loopback; started, awaited, stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx

from worker.errors import VLLMExited, VLLMStartTimeout

LAUNCHER: Final = Path(__file__).with_name("launcher.py")
HEALTH_CHECK_SECONDS: Final = 0.25
STDOUT: Final = 1
KEPT_LINES: Final = 200
OUTPUT_SECONDS: Final = 2.0
"""How long the last output may lag behind the end of the process."""
KILL_SECONDS: Final = 5.0

ServedModel = dict[str, str | int]
"""`id`, and `max_model_len` where vLLM tells it."""


class VLLMServer:
    """One vLLM server. What it prints goes on to our standard output as it is.

    `exited` is done when the process has ended, with its exit code (negative for a signal).
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, port: int
    ) -> None:
        self.port = port
        self.exited: Future[int] = Future()
        self.exited.set_running_or_notify_cancel()  # so that nobody who waits can cancel it
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        # One for all looks, since making one takes 30 ms; and a proxy that the environment names
        # is not for loopback.
        self._http = httpx.Client(base_url=self.base_url, trust_env=False, timeout=10)
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(LAUNCHER), str(os.getpid()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._output = threading.Thread(target=self._pass_output_on, daemon=True)
        self._output.start()
        threading.Thread(target=self._await_exit, daemon=True).start()

    @property
    def base_url(self) -> str:
        """Where vLLM answers."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_healthy(self, seconds: float) -> None:
        """Return when `/health` says 200.

        Raises:
            VLLMExited: the process ended first.
            VLLMStartTimeout: it was not healthy within that time.
        """
        deadline = time.monotonic() + seconds
        while not self._is_healthy():
            with suppress(TimeoutError):
                raise VLLMExited(self.exited.result(HEALTH_CHECK_SECONDS), self.last_lines())
            if time.monotonic() > deadline:
                raise VLLMStartTimeout(seconds)

    def models(self) -> list[ServedModel]:
        """The models it serves, its LoRA adapters among them; none if it does not tell."""
        try:
            told = self._http.get("/v1/models").json()["data"]
            return [_served(entry) for entry in told]
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return []

    def last_lines(self) -> list[str]:
        """The last lines it printed; complete once it has exited."""
        if self.exited.done():
            self._output.join(OUTPUT_SECONDS)
        return list(self._lines)

    def stop(self, seconds: float) -> None:
        """End vLLM and everything it started: SIGTERM, and after that time SIGKILL."""
        self._http.close()
        with suppress(ProcessLookupError):
            self._process.terminate()
        if not self._exits_within(seconds):
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR1)
            self._exits_within(KILL_SECONDS)
        # Should somebody have killed the launcher, its process group is still there.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _exits_within(self, seconds: float) -> bool:
        try:
            self.exited.result(seconds)
        except TimeoutError:
            return False
        return True

    def _is_healthy(self) -> bool:
        try:
            return self._http.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def _pass_output_on(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                # Not through sys.stdout: the SDK forks while this thread runs, and a fork that
                # happens inside a print would leave the child with a lock nobody will release.
                with suppress(OSError):
                    os.write(STDOUT, line if line.endswith(b"\n") else line + b"\n")
                self._lines.append(line.decode(errors="replace").rstrip())

    def _await_exit(self) -> None:
        self.exited.set_result(self._process.wait())


def _served(entry: dict[str, Any]) -> ServedModel:
    length = entry.get("max_model_len")
    return {"id": str(entry["id"])} | ({"max_model_len": length} if length else {})
