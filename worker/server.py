"""VLLMServer: vLLM as a process of its own on loopback; started, awaited, stopped."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx

from worker.errors import EngineDead, StartError, VLLMExited, VLLMStartTimeout

LAUNCHER: Final = Path(__file__).with_name("launcher.py")
HEALTH_CHECK_SECONDS: Final = 0.25
WATCH_SECONDS: Final = 2.0
DEAD_AFTER: Final = 3
"""How often in a row `/health` has to say that the engine is dead. A vLLM that is about to end by
itself gets that far too, and tells more."""
STDOUT: Final = 1
KEPT_LINES: Final = 400
OUTPUT_SECONDS: Final = 2.0
"""How long the last output may lag behind the end of the process."""
KILL_SECONDS: Final = 5.0
ENGINE_FAILED: Final = b"EngineCore failed to start."
EXIT_SECONDS: Final = 10.0
"""How long vLLM may take to end after its engine has said that."""

MAX_PARENT_BYTES: Final = 48
"""The path of a folder in which vLLM's folder (14 bytes) and a socket of it (37) find room."""

ServedModel = dict[str, str | int]
"""`id`, and `max_model_len` where vLLM tells it."""


class VLLMServer:
    """One vLLM server. What it prints goes on to our standard output as it is.

    `exited` is done when the process has ended, with its exit code (negative for a signal).
    `failed` is done then too, or when `watch()` finds that the engine is dead, with the reason.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, port: int
    ) -> None:
        self.port = port
        self.exited: Future[int] = Future()
        self.exited.set_running_or_notify_cancel()  # so that no waiting task can cancel it
        self.failed: Future[StartError] = Future()
        self.failed.set_running_or_notify_cancel()
        self._stopping = threading.Event()
        self._engine_failed: float | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        # One for all looks, since making one takes 30 ms; and a proxy that the environment names
        # is not for loopback.
        self._http = httpx.Client(base_url=self.base_url, trust_env=False, timeout=10)
        self._folder = temporary_folder(environment)
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(LAUNCHER), str(os.getpid()), self._folder, *command],
            env={**environment, "TMPDIR": self._folder},
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

        vLLM's HTTP server may wait up to ten minutes for an engine that is gone already (vLLM
        0.32, `MPClient.__init__`), so the engine's own last words count as its end.

        Raises:
            VLLMExited: the process, or its engine, ended first.
            VLLMStartTimeout: it was not healthy within that time.
        """
        deadline = time.monotonic() + seconds
        while not self._is_healthy():
            with suppress(TimeoutError):
                self.exited.result(HEALTH_CHECK_SECONDS)
                raise self.failed.result(2 * OUTPUT_SECONDS)
            now = time.monotonic()
            if self._engine_failed is not None and now > self._engine_failed + EXIT_SECONDS:
                raise VLLMExited(None, self.last_lines())
            if now > deadline:
                raise VLLMStartTimeout(seconds)

    def watch(self) -> None:
        """From now on, look whether the engine lives.

        vLLM ends when its engine dies, but not always: with fault tolerance (vLLM 0.33) its HTTP
        server stays and answers 503 on `/health`.
        """
        threading.Thread(target=self._watch_health, daemon=True).start()

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
        self._stopping.set()
        self._http.close()
        with suppress(ProcessLookupError):
            self._process.terminate()
        if not self._exits_within(seconds):
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR1)
            self._exits_within(KILL_SECONDS)
        # If the launcher was killed, its process group is still there, and so is vLLM's folder.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _exits_within(self, seconds: float) -> bool:
        try:
            self.exited.result(seconds)
        except TimeoutError:
            return False
        return True

    def _is_healthy(self) -> bool:
        return self._health() == 200

    def _health(self) -> int | None:
        """The status of `/health`, or None without an answer, as from a vLLM that is busy."""
        try:
            return self._http.get("/health").status_code
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: stop() has closed the client
            return None

    def _watch_health(self) -> None:
        dead = 0
        while not self._stopping.wait(WATCH_SECONDS) and not self.exited.done():
            dead = dead + 1 if self._health() == HTTPStatus.SERVICE_UNAVAILABLE else 0
            if dead == DEAD_AFTER:
                self._fail(EngineDead())

    def _pass_output_on(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                # Not through sys.stdout: the SDK forks while this thread runs, and a fork that
                # happens inside a print would leave the child with a lock that is never released.
                with suppress(OSError):
                    os.write(STDOUT, line if line.endswith(b"\n") else line + b"\n")
                self._lines.append(line.decode(errors="replace").rstrip())
                if ENGINE_FAILED in line:
                    self._engine_failed = time.monotonic()

    def _await_exit(self) -> None:
        code = self._process.wait()
        self.exited.set_result(code)
        self._fail(VLLMExited(code, self.last_lines()))

    def _fail(self, error: StartError) -> None:
        with suppress(InvalidStateError):
            self.failed.set_result(error)


def temporary_folder(environment: Mapping[str, str]) -> str:
    """A new folder for the temporary files of one vLLM, where the environment wants them.

    vLLM puts sockets there, whose paths must not have more than 107 bytes. Where the environment's
    place is too deep for that, or is none, the folder is below `/tmp`.
    """
    parent = environment.get("TMPDIR", "")
    if not os.path.isdir(parent) or len(os.fsencode(parent)) > MAX_PARENT_BYTES:
        parent = "/tmp"  # noqa: S108
    return tempfile.mkdtemp(prefix="vllm-", dir=parent)


def _served(entry: dict[str, Any]) -> ServedModel:
    length = entry.get("max_model_len")
    return {"id": str(entry["id"])} | ({"max_model_len": length} if length else {})
