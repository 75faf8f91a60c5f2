"""`python -m worker`: start vLLM, await it, take jobs until told to stop or until vLLM dies.

Exit codes: 0 after SIGTERM or SIGINT, 1 when vLLM did not start or died, 2 for wrong settings. The
last line of the log says why. Where the configuration is at fault, jobs are first answered with
that line for a while: to exit at once would have RunPod start, and bill, the same again.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from worker.answer import VLLMClient
from worker.command import (
    chosen_settings,
    flag_variables,
    printable,
    smaller_footprint,
    vllm_arguments,
    vllm_environment,
)
from worker.diagnosis import Chosen, diagnose
from worker.direct.road import DirectRoad
from worker.errors import ModelNotStarted, ModelStartFailed, SettingsError, StartError, VLLMExited
from worker.flags import load
from worker.handler import Handler, create_handler, create_refusing_handler
from worker.hub import check_model
from worker.names import complaints
from worker.sealing import Seals
from worker.server import VLLMServer
from worker.settings import WorkerSettings, own_names, start_failure_seconds
from worker.shutdown import REPORT_SECONDS, Shutdown
from worker.translation import LIBRARIES, unquote

log = logging.getLogger("worker")

REFUSALS: Final = 100
"""How many jobs at once are answered that the model did not start."""


def main() -> int:
    """Run the worker and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every look at vLLM's health
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_at_once)
    # At its default level, DEBUG, the SDK prints every output of every job.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", os.environ.get("RUNPOD_DEBUG_LEVEL", "INFO"))
    try:
        # Quotes around a command may be a part of it: of a program whose path has a blank.
        unquote(os.environ, own_names() - {"WORKER_VLLM_COMMAND"} | {*LIBRARIES, "MODEL_NAME"})
        run(WorkerSettings.from_environment())
    except StartError as error:
        if error.in_configuration:
            refuse_jobs(error, start_failure_seconds(os.environ))
        log.error("%s", error)
        return 2 if isinstance(error, SettingsError) else 1
    return 0


@dataclass(frozen=True)
class Launch:
    """How vLLM is started, and what its user chose for it."""

    command: list[str]
    environment: dict[str, str]
    port: int
    chosen: Chosen


def run(settings: WorkerSettings) -> None:
    """Start vLLM, take jobs until told to stop, and stop vLLM.

    A vLLM that lacks memory is started once more in a way that needs less.

    Raises:
        StartError: wrong settings, or vLLM did not start, or died.
    """
    launch = prepare(settings)
    try:
        serve(settings, launch)
    except ModelNotStarted as failure:
        smaller = smaller_footprint(launch.command, os.environ, settings)
        if not (failure.may_fit_smaller and smaller):
            raise
        log.warning("%s Starting once more with less: %s", failure, " ".join(smaller))
        try:
            serve(settings, replace(launch, command=[*launch.command, *smaller]))
        except ModelNotStarted as again:
            raise again if again.may_fit_smaller else failure from again


def prepare(settings: WorkerSettings) -> Launch:
    """Make vLLM's command line from the environment.

    Raises:
        StartError: the settings are wrong, or vLLM cannot be asked for its flags.
    """
    flags = load(settings)
    unquote(os.environ, flag_variables(flags))
    for complaint in complaints(os.environ, flags):
        log.warning("%s", complaint)
    port = settings.vllm_port or _free_port()
    command = [*settings.command, *vllm_arguments(os.environ, settings, flags, port)]
    environment = vllm_environment(os.environ, settings)
    return Launch(command, environment, port, chosen_settings(os.environ, flags))


def serve(settings: WorkerSettings, launch: Launch) -> None:
    """Start vLLM, await it, take jobs, and stop vLLM.

    Raises:
        StartError: vLLM did not start, or died.
    """
    started = time.monotonic()
    road = direct_road(settings)
    seals = Seals(settings.seal_secrets, allow_unsealed=settings.allow_unsealed)
    with running_vllm(settings, launch) as server:
        check_model(launch.environment)  # vLLM's own imports take longer than the hub
        # The SDK takes seconds to import; vLLM is loading its model meanwhile.
        import runpod  # noqa: F401

        road.prepare()
        seals.prepare()
        try:
            server.wait_until_healthy(settings.start_timeout_seconds)
        except VLLMExited as exited:
            raise diagnose(exited.lines, launch.chosen) or exited from None
        log.info("vLLM was ready after %.1f seconds", time.monotonic() - started)
        take_jobs(settings, server, road, seals)


@contextmanager
def running_vllm(settings: WorkerSettings, launch: Launch) -> Iterator[VLLMServer]:
    """A vLLM that is starting; it is stopped in the end."""
    log.info("starting vLLM: %s", printable(launch.command))
    server = VLLMServer(launch.command, launch.environment, port=launch.port)
    try:
        yield server
    finally:
        server.stop(settings.stop_seconds)


def direct_road(settings: WorkerSettings) -> DirectRoad:
    """The road past RunPod's queue, for jobs that ask for it."""
    host = settings.direct_listen_host
    return DirectRoad(
        os.environ,
        listen_host=None if host is None else str(host),
        dial_hosts=settings.dial_hosts,
    )


def take_jobs(settings: WorkerSettings, server: VLLMServer, road: DirectRoad, seals: Seals) -> None:
    """Run the SDK's loop until it ends.

    Raises:
        StartError: vLLM died.
    """
    client = VLLMClient(server.base_url, request_timeout_seconds=settings.request_timeout_seconds)
    server.watch()
    shutdown = Shutdown(
        lambda: asyncio.wrap_future(server.failed),
        client,
        road,
        concurrency=settings.concurrency,
        grace_seconds=settings.grace_seconds,
    )
    run_sdk(create_handler(client, server.models(), road, seals), shutdown)
    if shutdown.failure is not None:
        raise shutdown.failure


def refuse_jobs(error: StartError, seconds: float) -> None:
    """Answer jobs with why the model did not start, for so many seconds.

    Outside of RunPod there are none: the SDK would look for a test's input instead.
    """
    if not seconds or "RUNPOD_WEBHOOK_GET_JOB" not in os.environ:
        return
    log.error("%s Jobs are answered with this for %g seconds.", error, seconds)

    async def time_is_up() -> StartError:
        await asyncio.sleep(seconds)
        return error

    refusal = ModelStartFailed(error.cause, str(error))
    shutdown = Shutdown(time_is_up, concurrency=REFUSALS, grace_seconds=REPORT_SECONDS)
    run_sdk(create_refusing_handler(refusal), shutdown)


def run_sdk(handler: Handler, shutdown: Shutdown) -> None:
    """Take jobs from RunPod until the shutdown ends it."""
    import runpod

    config = {
        "handler": handler,
        "concurrency_modifier": shutdown.concurrency_modifier,
        "return_aggregate_stream": True,
    }
    try:
        runpod.serverless.start(config)
    except asyncio.CancelledError:
        # Shutdown cancelled the loop's tasks, and with them the loop, which is closed by now.
        if not shutdown.begun:
            raise


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
