"""`python -m worker`: start vLLM, await it, take jobs until told to stop or until vLLM dies.

Exit codes: 0 after SIGTERM or SIGINT, 1 when vLLM did not start or died, 2 for wrong settings. The
last line of the log says why.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from worker.answer import VLLMClient
from worker.command import printable, vllm_arguments, vllm_environment
from worker.errors import SettingsError, StartError
from worker.flags import load
from worker.handler import create_handler
from worker.names import complaints
from worker.server import VLLMServer
from worker.settings import WorkerSettings
from worker.shutdown import Shutdown

log = logging.getLogger("worker")


def main() -> int:
    """Run the worker and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every look at vLLM's health
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_at_once)
    # At its default level, DEBUG, the SDK prints every output of every job.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", os.environ.get("RUNPOD_DEBUG_LEVEL", "INFO"))
    try:
        run(WorkerSettings.from_environment())
    except StartError as error:
        log.error("%s", error)
        return 2 if isinstance(error, SettingsError) else 1
    return 0


def run(settings: WorkerSettings) -> None:
    """Start vLLM, take jobs until told to stop, and stop vLLM.

    Raises:
        StartError: wrong settings, or vLLM did not start, or died.
    """
    started = time.monotonic()
    server = start_vllm(settings)
    try:
        # The SDK takes seconds to import; vLLM is loading its model meanwhile.
        from runpod.serverless.modules.worker_state import JobsProgress

        server.wait_until_healthy(settings.start_timeout_seconds)
        log.info("vLLM was ready after %.1f seconds", time.monotonic() - started)
        take_jobs(settings, server, JobsProgress().get_job_count)
    finally:
        server.stop(settings.stop_seconds)


def start_vllm(settings: WorkerSettings) -> VLLMServer:
    """Start vLLM as the environment says.

    Raises:
        StartError: the settings are wrong, or vLLM cannot be asked for its flags.
    """
    flags = load(settings)
    for complaint in complaints(os.environ, flags):
        log.warning("%s", complaint)
    port = settings.vllm_port or _free_port()
    arguments = vllm_arguments(os.environ, settings, flags, port)
    log.info("starting vLLM: %s", printable([*settings.command, *arguments]))
    environment = vllm_environment(os.environ, settings)
    return VLLMServer([*settings.command, *arguments], environment, port=port)


def take_jobs(
    settings: WorkerSettings, server: VLLMServer, jobs_in_progress: Callable[[], int]
) -> None:
    """Run the SDK's loop until it ends.

    Raises:
        VLLMExited: vLLM died.
    """
    import runpod

    client = VLLMClient(server.base_url, request_timeout_seconds=settings.request_timeout_seconds)
    shutdown = Shutdown(
        server,
        client,
        concurrency=settings.concurrency,
        grace_seconds=settings.grace_seconds,
        jobs_in_progress=jobs_in_progress,
    )
    config = {
        "handler": create_handler(client, server.models()),
        "concurrency_modifier": shutdown.concurrency_modifier,
        "return_aggregate_stream": True,
    }
    try:
        runpod.serverless.start(config)
    except asyncio.CancelledError:
        # Shutdown cancelled the loop's tasks, and with them the loop, which is closed by now.
        if not shutdown.begun:
            raise
    if shutdown.failure is not None:
        raise shutdown.failure


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _exit_at_once(number: int, _frame: object) -> NoReturn:
    """Before the SDK's loop runs there is nothing to finish."""
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
